// The recurrence on a GPU: launchers. Pointers of a problem are the device's, layout included; nothing waits,
// nothing is allocated, and everything can be captured in a graph.
//
// Half precision as on the CPU: stored so, computed in float32; for bfloat16 the factors of the product are
// rounded to it, for float16 to TF32, which has float16's digits.
#pragma once

#include "core/problem.h"
#include "cuda/plan.h"

namespace rnnkernels::cuda {

using Stream = void*;  // cudaStream_t
using Status = int;    // cudaError_t: 0 is success
const char* text(Status status);

// With a plan of another team than the steps (steps.h), and its workspace. `tf32`: products of float32 may
// be TF32's.
Status forward(const ForwardProblem& problem, const Plan& plan, bool tf32, void* workspace, Stream stream);
Status backward(const BackwardProblem& problem, const Plan& plan, bool tf32, void* workspace, Stream stream);
Status linear(const LinearProblem& problem, const Plan& plan, bool tf32, void* workspace, Stream stream);

}  // namespace rnnkernels::cuda
