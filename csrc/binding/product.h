// Products of whole sequences, for the operators to call.
#pragma once

#include "binding/arguments.h"

namespace rnnkernels::binding {

// [..., n] as a matrix of all its rows; a copy if they do not lie evenly. Not by flatten, which batched
// gradients (is_grads_batched) do not know.
inline at::Tensor all_rows(const at::Tensor& tensor) {
  c10::SymInt rows = 1;
  for (int64_t dim = 0; dim < tensor.dim() - 1; ++dim) rows *= tensor.sym_size(dim);
  return tensor.reshape_symint({rows, tensor.sym_size(-1)});
}

// out = left right (+ bias), or out += left right: [m, k] and [k, n], each perhaps with a leading G, of any
// strides but those of out, whose columns are contiguous. All in float32 or all in float64.
void multiply(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
              const OptionalTensor& bias = {}, bool accumulate = false);

// out = the sum over the rows of [m, n], or out += it, each perhaps with a leading G; as a product with ones,
// since torch's own sum gives other bits with other numbers of threads.
void sum_over_rows(const at::Tensor& out, const at::Tensor& rows, bool accumulate = false);

}  // namespace rnnkernels::binding
