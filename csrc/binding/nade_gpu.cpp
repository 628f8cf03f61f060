// Runs the NADE kernels of csrc/cuda on torch's current stream. Nothing here synchronizes with the device.
#include <ATen/ops/ne.h>
#include <c10/core/DeviceGuard.h>

#include "binding/host.h"
#include "binding/nade.h"
#include "cuda/nade.h"

namespace rnnkernels::binding {

namespace {

#if defined(RNNKERNELS_EMULATED)
constexpr int64_t kMostBlocks = 3;  // the emulator keeps the threads of all blocks until the launch ends
#else
constexpr int64_t kMostBlocks = 1 << 16;
#endif

}  // namespace

at::Tensor bytes_on_gpu(const at::Tensor& v) {
  const c10::DeviceGuard guard(v.device());
  return at::ne(v, 0).contiguous();
}

void run_on_gpu(const NadeForward& problem, const at::Device& device) {
  const c10::DeviceGuard guard(device);
  const at::Tensor workspace = empty_bytes(cuda::workspace_bytes(problem, kMostBlocks), device);
  check_launched(cuda::nade(problem, kMostBlocks, workspace.data_ptr(), current_stream(device)));
}

void run_on_gpu(const NadeBackward& problem, const at::Device& device) {
  const c10::DeviceGuard guard(device);
  const at::Tensor workspace = empty_bytes(cuda::workspace_bytes(problem), device);
  check_launched(cuda::nade_backward(problem, kMostBlocks, workspace.data_ptr(), current_stream(device)));
}

}  // namespace rnnkernels::binding
