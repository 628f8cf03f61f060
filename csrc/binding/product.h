// Products of whole sequences, for the operators to call.
#pragma once

#include <ATen/ops/ones.h>

#include "binding/arguments.h"

namespace rnnkernels::binding {

// [..., n] as a matrix of all its rows; a copy if they do not lie evenly. Not by flatten, which batched
// gradients (is_grads_batched) do not know.
inline at::Tensor all_rows(const at::Tensor& tensor) {
  c10::SymInt rows = 1;
  for (int64_t dim = 0; dim < tensor.dim() - 1; ++dim) rows *= tensor.sym_size(dim);
  return tensor.reshape_symint({rows, tensor.sym_size(-1)});
}

// [..., 1, m]: what the sum over all of m rows is a product with. torch's own sum gives other bits with other
// numbers of threads.
inline at::Tensor ones_for(const at::Tensor& rows) {
  std::vector<c10::SymInt> shape = rows.sym_sizes().vec();
  shape.back() = shape[shape.size() - 2];
  shape[shape.size() - 2] = 1;
  return at::ones({1}, rows.options()).expand_symint(shape);
}

// out = left right (+ bias), or out += left right: [m, k] and [k, n], each perhaps with a leading G, of any
// strides but those of out, whose columns are contiguous. All in float32 or all in float64.
void multiply(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
              const OptionalTensor& bias = {}, bool accumulate = false);

}  // namespace rnnkernels::binding
