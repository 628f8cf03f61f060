// The kernels of the recurrence for what is stored as float16.
#include "cuda/launch.h"

namespace rnnkernels::cuda {

template Status forward_of<ElementType::kFloat16>(const ForwardProblem&, const Plan&, bool, void*, Stream);
template Status backward_of<ElementType::kFloat16>(const BackwardProblem&, const Plan&, bool, void*, Stream);
template Status linear_of<ElementType::kFloat16>(const LinearProblem&, const Plan&, bool, void*, Stream);

}  // namespace rnnkernels::cuda
