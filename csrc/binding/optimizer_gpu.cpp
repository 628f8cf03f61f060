// Runs the optimizers' kernels of csrc/cuda on torch's current stream. Nothing here synchronizes with the
// device.
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include "binding/host.h"
#include "binding/optimizer.h"
#include "cuda/optimizer.h"
#include "cuda/tuning.h"

namespace rnnkernels::binding {

namespace {

using cuda::tuning::kMostOptimizerBlocks;

}  // namespace

template <class Rule>
void step_on_gpu(const StepProblem& problem, const at::Device& device) {
  const c10::DeviceGuard guard(device);
  const at::Tensor workspace = empty_bytes(cuda::workspace_bytes(problem), device);
  check_launched(cuda::optimizer_step<Rule>(problem, kMostOptimizerBlocks, workspace.data_ptr(),
                                            current_stream(device)));
}

template void step_on_gpu<NesterovRule>(const StepProblem&, const at::Device&);
template void step_on_gpu<AdamWRule>(const StepProblem&, const at::Device&);

at::Tensor power_sum_on_gpu(const PowerSum& problem, const at::Device& device) {
  const c10::DeviceGuard guard(device);
  const at::Tensor sum = at::empty({}, at::TensorOptions().device(device).dtype(at::kDouble));
  const at::Tensor workspace = empty_bytes(cuda::workspace_bytes(problem), device);
  check_launched(cuda::power_sum(problem, sum.data_ptr<double>(), kMostOptimizerBlocks, workspace.data_ptr(),
                                 current_stream(device)));
  return sum;
}

}  // namespace rnnkernels::binding
