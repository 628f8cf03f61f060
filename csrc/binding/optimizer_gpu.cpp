// Runs the optimizers' kernels of csrc/cuda on torch's current stream. Nothing here synchronizes with the
// device.
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include "binding/host.h"
#include "binding/optimizer.h"
#include "cuda/optimizer.h"

namespace rnnkernels::binding {

namespace {

#if defined(RNNKERNELS_EMULATED)
constexpr int64_t kMostBlocks = 3;  // the emulator keeps the threads of all blocks until the launch ends
#else
constexpr int64_t kMostBlocks = INT32_MAX;  // the GPU starts a block when another one ends
#endif

void run_step(decltype(cuda::nesterov_step)* step, const StepProblem& problem, const at::Device& device) {
  const c10::DeviceGuard guard(device);
  const at::Tensor workspace = empty_bytes(cuda::workspace_bytes(problem), device);
  check_launched(step(problem, kMostBlocks, workspace.data_ptr(), current_stream(device)));
}

}  // namespace

template <>
void step_on_gpu<NesterovRule>(const StepProblem& problem, const at::Device& device) {
  run_step(&cuda::nesterov_step, problem, device);
}
template <>
void step_on_gpu<AdamWRule>(const StepProblem& problem, const at::Device& device) {
  run_step(&cuda::adamw_step, problem, device);
}

at::Tensor power_sum_on_gpu(const PowerSum& problem, const at::Device& device) {
  const c10::DeviceGuard guard(device);
  const at::Tensor sum = at::empty({}, at::TensorOptions().device(device).dtype(at::kDouble));
  const at::Tensor workspace = empty_bytes(cuda::workspace_bytes(problem), device);
  check_launched(cuda::power_sum(problem, sum.data_ptr<double>(), kMostBlocks, workspace.data_ptr(),
                                 current_stream(device)));
  return sum;
}

}  // namespace rnnkernels::binding
