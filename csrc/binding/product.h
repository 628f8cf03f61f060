// The operator rnnkernels::product, and the same product for other operators to call.
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

// Whether forward-mode differentiation is at work on this tensor.
inline bool has_tangent(const at::Tensor& tensor) { return tensor.defined() && tensor._fw_grad(0).defined(); }

// out = left right (+ bias), or out += left right: [m, k] and [k, n], each perhaps with a leading G, of any
// strides but those of out, whose columns are contiguous. All in float32 or all in float64.
void multiply(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
              const OptionalTensor& bias = {}, bool accumulate = false);

at::Tensor product_cpu(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias);
at::Tensor product_meta(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias);
at::Tensor product_autograd(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias);
// torch's own product, for transforms and forward mode, which know nothing of this one.
at::Tensor product_transformed(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias);

}  // namespace rnnkernels::binding
