// The recurrence on a GPU: launchers. Pointers of a problem are the device's, layout included; nothing waits.
//
// One team so far, a block (block_engine.h). What does not fit one is refused with cudaErrorNotSupported.
#pragma once

#include <cuda_runtime_api.h>

#include "core/problem.h"

namespace rnnkernels::cuda {

// Whether a block can have all of W_hh in its registers.
bool fits_block(ElementType type, int64_t hidden);

cudaError_t forward(const ForwardProblem& problem, cudaStream_t stream);
cudaError_t backward(const BackwardProblem& problem, cudaStream_t stream);
cudaError_t linear(const LinearProblem& problem, cudaStream_t stream);

}  // namespace rnnkernels::cuda
