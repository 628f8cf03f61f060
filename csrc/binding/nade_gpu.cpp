// Runs the NADE kernels of csrc/cuda on torch's current stream. Nothing here synchronizes with the device.
#include <ATen/ops/ne.h>
#include <c10/core/DeviceGuard.h>

#include "binding/host.h"
#include "binding/nade.h"
#include "cuda/nade.h"
#include "cuda/tuning.h"

namespace rnnkernels::binding {

namespace {

using cuda::tuning::kMostNadeBlocks;

}  // namespace

at::Tensor bytes_on_gpu(const at::Tensor& v) {
  const c10::DeviceGuard guard(v.device());
  return at::ne(v, 0).contiguous();
}

void run_on_gpu(const NadeForward& problem, const at::Device& device) {
  const c10::DeviceGuard guard(device);
  const at::Tensor workspace = empty_bytes(cuda::workspace_bytes(problem, kMostNadeBlocks), device);
  check_launched(cuda::nade(problem, kMostNadeBlocks, workspace.data_ptr(), current_stream(device)));
}

void run_on_gpu(const NadeBackward& problem, const at::Device& device) {
  const c10::DeviceGuard guard(device);
  const at::Tensor workspace = empty_bytes(cuda::workspace_bytes(problem), device);
  check_launched(cuda::nade_backward(problem, kMostNadeBlocks, workspace.data_ptr(), current_stream(device)));
}

}  // namespace rnnkernels::binding
