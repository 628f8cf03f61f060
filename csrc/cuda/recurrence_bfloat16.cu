// The recurrence kernels for sequences stored as bfloat16.
#include "cuda/launch.h"

namespace rnnkernels::cuda {

template Status run_stored<ElementType::kBFloat16>(const ForwardProblem&, const LaunchPlan&, bool, void*,
                                                   Stream);
template Status run_stored<ElementType::kBFloat16>(const BackwardProblem&, const LaunchPlan&, bool, void*,
                                                   Stream);
template Status run_stored<ElementType::kBFloat16>(const LinearProblem&, const LaunchPlan&, bool, void*,
                                                   Stream);

}  // namespace rnnkernels::cuda
