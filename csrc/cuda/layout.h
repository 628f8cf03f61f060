// The layout of a packed sequence, brought to a GPU in the arguments of kernels. There the numbers are the
// launch's own: nothing of the host's has to outlive the call, nobody waits, and a graph that captures the
// launch holds them. (A copy from pageable memory may be neither captured nor left alone.)
#pragma once

#include "core/problem.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

// Of device memory that put_layout fills; none where steps are strided.
int64_t layout_bytes(const Layout& layout);

// `device` becomes `host` with its arrays in `memory`.
Status put_layout(Layout host, void* memory, Layout* device, Stream stream);

}  // namespace rnnkernels::cuda
