// The kernels of the recurrence for what is stored as float32.
#include "cuda/launch.h"

namespace rnnkernels::cuda {

template Status forward_of<ElementType::kFloat32>(const ForwardProblem&, const Plan&, bool, void*, Stream);
template Status backward_of<ElementType::kFloat32>(const BackwardProblem&, const Plan&, bool, void*, Stream);
template Status linear_of<ElementType::kFloat32>(const LinearProblem&, const Plan&, bool, void*, Stream);

}  // namespace rnnkernels::cuda
