// Copies the layout of a packed sequence to a GPU, through the arguments of kernels (upload.h).
#pragma once

#include "core/problem.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

// Bytes of device memory that put_layout fills: the arrays `rows` and `offsets`, or 0 if steps are strided.
int64_t layout_bytes(const Layout& layout);

// Copies `host` to `device`, and its arrays into `memory`.
Status put_layout(Layout host, void* memory, Layout* device, Stream stream);

}  // namespace rnnkernels::cuda
