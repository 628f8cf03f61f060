// NADE on a GPU (core/nade.h has the equations): launchers. All pointers of a problem are the device's;
// nothing waits, nothing is allocated, and everything can be captured in a graph.
#pragma once

#include "core/nade.h"

namespace rnnkernels::cuda {

using Stream = void*;  // cudaStream_t
using Status = int;    // cudaError_t: 0 is success

// At most so many blocks a launch, of which no number changes a bit. The workspace may hold anything.
int64_t workspace_bytes(const NadeForward& problem, int64_t most_blocks);
int64_t workspace_bytes(const NadeBackward& problem);

Status nade(const NadeForward& problem, int64_t most_blocks, void* workspace, Stream stream);
Status nade_backward(const NadeBackward& problem, int64_t most_blocks, void* workspace, Stream stream);

}  // namespace rnnkernels::cuda
