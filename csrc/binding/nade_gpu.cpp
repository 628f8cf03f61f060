// NADE's kernels of csrc/cuda under the binding, on torch's current stream. Nothing here waits for the
// device.
#include <ATen/ops/empty.h>
#include <ATen/ops/ne.h>
#include <c10/core/DeviceGuard.h>

#include "binding/machine.h"
#include "binding/nade.h"
#include "cuda/nade.h"
#include "cuda/tuning.h"

namespace rnnkernels::binding {

namespace {

using cuda::tuning::kMostNadeBlocks;

at::Tensor empty_bytes(int64_t bytes, const at::Device& device) {
  return at::empty({bytes}, at::TensorOptions().device(device).dtype(at::kByte));
}

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
