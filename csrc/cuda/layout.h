// The layout of a packed sequence, brought to a GPU in the arguments of kernels (upload.h).
#pragma once

#include "core/problem.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

// Of device memory that put_layout fills; none where steps are strided.
int64_t layout_bytes(const Layout& layout);

// `device` becomes `host` with its arrays in `memory`.
Status put_layout(Layout host, void* memory, Layout* device, Stream stream);

}  // namespace rnnkernels::cuda
