// The recurrence kernels for sequences stored as float32.
#include "cuda/launch.h"

namespace rnnkernels::cuda {

template Status run_stored<ElementType::kFloat32>(const ForwardProblem&, const LaunchPlan&, bool, void*,
                                                  Stream);
template Status run_stored<ElementType::kFloat32>(const BackwardProblem&, const LaunchPlan&, bool, void*,
                                                  Stream);
template Status run_stored<ElementType::kFloat32>(const LinearProblem&, const LaunchPlan&, bool, void*,
                                                  Stream);

}  // namespace rnnkernels::cuda
