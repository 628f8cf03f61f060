// The operator rnnkernels::product, and the same product for other operators to call.
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

// Whether forward-mode differentiation is at work on this tensor.
inline bool has_tangent(const at::Tensor& tensor) { return tensor.defined() && tensor._fw_grad(0).defined(); }

// out = left right (+ bias), or out += left right: [m, k] and [k, n], each perhaps with a leading G, of any
// strides but those of out, whose columns are contiguous. All in float32 or all in float64.
void multiply(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
              const OptionalTensor& bias = {}, bool accumulate = false);

at::Tensor product_cpu(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias);
at::Tensor product_meta(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias);
at::Tensor product_autograd(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias);
// The same as torch's own product, for transforms and forward mode, which know nothing of this one.
at::Tensor product_transformed(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias);

}  // namespace rnnkernels::binding
