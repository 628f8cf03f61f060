// Products of whole sequences, for the operators to call.
#pragma once

#include "binding/arguments.h"

namespace rnnkernels::binding {

// [..., n] as a matrix of all its rows; a copy if they do not lie evenly.
inline at::Tensor all_rows(const at::Tensor& tensor) {
  return tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor.flatten(0, -2);
}

// out = left right (+ bias), or out += left right: [m, k] and [k, n], each perhaps with a leading G, of any
// strides but those of out, whose columns are contiguous. All in float32 or all in float64.
void multiply(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
              const OptionalTensor& bias = {}, bool accumulate = false);

}  // namespace rnnkernels::binding
