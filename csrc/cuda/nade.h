// Launchers of NADE; core/nade.h has the equations. All pointers of a problem are in device memory. A
// launcher does not synchronize with the device and allocates nothing, so it can be captured in a CUDA graph.
#pragma once

#include "core/nade.h"
#include "cuda/status.h"

namespace rnnkernels::cuda {

// Bytes of the workspace, which may be uninitialized.
int64_t workspace_bytes(const NadeForward& problem, int64_t most_blocks);
int64_t workspace_bytes(const NadeBackward& problem);

// `most_blocks` limits the grid; results do not depend on it.
Status nade(const NadeForward& problem, int64_t most_blocks, void* workspace, Stream stream);
Status nade_backward(const NadeBackward& problem, int64_t most_blocks, void* workspace, Stream stream);

}  // namespace rnnkernels::cuda
