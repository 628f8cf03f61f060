// Products of whole sequences, for the operators to call.
#pragma once

#include "binding/arguments.h"

namespace rnnkernels::binding {

// A sequence as the matrix of all its rows, or as one for each of G networks; a copy if they do not lie
// evenly.
inline at::Tensor all_rows(const at::Tensor& sequence, const Sizes& sizes) {
  return sizes.packed ? sequence : sequence.flatten(-3, -2);
}

inline OptionalTensor all_rows(const OptionalTensor& sequence, const Sizes& sizes) {
  return sequence ? OptionalTensor(all_rows(*sequence, sizes)) : sequence;
}

// out = left right (+ bias) (+ addend): [m, k], [k, n], [n] and [m, n], each perhaps with a leading G, of any
// strides but those of out, whose columns are contiguous. All in float32 or all in float64. The addend may be
// out itself.
void multiply(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
              const OptionalTensor& bias = {}, const OptionalTensor& addend = {});

// out = the sum over the rows of [m, n], or out += it, each perhaps with a leading G; on the CPU as a product
// with ones, since torch's own sum gives other bits with other numbers of threads.
void sum_over_rows(const at::Tensor& out, const at::Tensor& rows, bool accumulate = false);

// The sum of [H] or [G, H] that a decay of this shape is owed: a scalar, [H], or [G, H].
at::Tensor sum_like(const at::Tensor& decay, at::Tensor per_unit);

}  // namespace rnnkernels::binding
