// Launchers of a step of the optimizers, and of the power sum of their gradients (core/optimizer.h has the
// equations).
//
// The arrays of leaves and groups are in host memory; all pointers in their elements are in device memory. A
// launcher does not synchronize with the device and allocates nothing, so it can be captured in a CUDA graph.
// A replay reads the current contents of device memory, and the host's values as they were captured.
//
// Memory traffic of Nesterov per float32 parameter: 4 bytes in the norm pass (g) and 20 in the update pass
// (theta, g, v read; theta, v written), 24 in total. AdamW has one state more, so 32 in total.
#pragma once

#include "core/optimizer.h"
#include "cuda/status.h"

namespace rnnkernels::cuda {

// Bytes of the workspace, which may be uninitialized.
int64_t workspace_bytes(const StepProblem& problem);
int64_t workspace_bytes(const PowerSum& problem);

// One step of Rule, NesterovRule or AdamWRule. `most_blocks` limits the grid; results do not depend on it.
template <class Rule>
Status optimizer_step(const StepProblem& problem, int64_t most_blocks, void* workspace, Stream stream);

// Writes the sum to `sum` in device memory.
Status power_sum(const PowerSum& problem, double* sum, int64_t most_blocks, void* workspace, Stream stream);

}  // namespace rnnkernels::cuda
