// One optimizer step on a GPU: launchers. Pointers of leaves and groups are the device's; nothing waits,
// nothing is allocated, and everything can be captured in a graph, which replays with whatever the device's
// memory holds then and with the numbers that the host had.
//
// Bytes a float32 parameter: 4 in the norm pass (g), 20 in the update pass (theta, g, v read; theta, v
// written), 24 in all. For AdamW 32, because it has a state more.
#pragma once

#include "core/optimizer.h"

namespace rnnkernels::cuda {

using Stream = void*;  // cudaStream_t
using Status = int;    // cudaError_t: 0 is success

// Bytes of workspace of both kinds of calls, which may hold anything.
int64_t workspace_bytes(const StepProblem& problem);
int64_t workspace_bytes(const PowerSum& problem);

// At most so many blocks, of which no number changes a bit.
Status nesterov_step(const StepProblem& problem, int64_t most_blocks, void* workspace, Stream stream);
Status adamw_step(const StepProblem& problem, int64_t most_blocks, void* workspace, Stream stream);

// Into one number on the device.
Status power_sum(const PowerSum& problem, double* sum, int64_t most_blocks, void* workspace, Stream stream);

}  // namespace rnnkernels::cuda
