// Launchers of the recurrence for a team that holds W_hh on chip (plan.h); core/problem.h has the equations.
//
// All pointers of a problem, including those of its layout, are in device memory. A launcher does not
// synchronize with the device and allocates nothing, so it can be captured in a CUDA graph.
//
// Half precision is a storage format, as on the CPU: everything is computed in float32. The factors of the
// product are rounded to bfloat16 for bfloat16, and to TF32 for float16, which has as many digits as TF32.
#pragma once

#include "core/problem.h"
#include "cuda/plan.h"
#include "cuda/status.h"

namespace rnnkernels::cuda {

// The message of the CUDA runtime.
const char* text(Status status);

// `plan` must have another team than steps (steps.h). `workspace` has plan.workspace_bytes. `tf32` allows one
// product of TF32 in place of an exact product of float32.
Status forward(const ForwardProblem& problem, const LaunchPlan& plan, bool tf32, void* workspace,
               Stream stream);
Status backward(const BackwardProblem& problem, const LaunchPlan& plan, bool tf32, void* workspace,
                Stream stream);
Status linear(const LinearProblem& problem, const LaunchPlan& plan, bool tf32, void* workspace,
              Stream stream);

}  // namespace rnnkernels::cuda
