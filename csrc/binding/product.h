// Products and sums over whole sequences, for the operators to call.
#pragma once

#include "binding/arguments.h"

namespace rnnkernels::binding {

// A sequence [T, B, H] or packed [rows, H] as the matrix [rows, H] of all its rows, with a leading G if it
// has one. A view, or a copy if no strides describe the rows.
inline at::Tensor all_rows(const at::Tensor& sequence, const Sizes& sizes) {
  return sizes.packed ? sequence : sequence.flatten(-3, -2);
}

inline OptionalTensor all_rows(const OptionalTensor& sequence, const Sizes& sizes) {
  return sequence ? OptionalTensor(all_rows(*sequence, sizes)) : sequence;
}

// out = left right (+ bias) (+ addend)
//
// left [m, k], right [k, n], bias [n], addend and out [m, n], each with a leading G or each without one; all
// float32 or all float64, on the CPU. The columns of out are contiguous; the other strides are free. The
// addend may be out itself.
void multiply(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
              const OptionalTensor& bias = {}, const OptionalTensor& addend = {});

// out = sum of the rows of [m, n], or out += that sum if `accumulate`; both with or both without a leading G.
// On the CPU it is a product with ones, because torch's sum gives different bits for different numbers of
// threads.
void sum_over_rows(const at::Tensor& out, const at::Tensor& rows, bool accumulate = false);

// The gradient of a decay, from its gradient per unit, [H] or [G, H]: the sum over the dimensions that the
// decay, a scalar, [H] or [G, H], does not have.
at::Tensor sum_like(const at::Tensor& decay, at::Tensor per_unit);

}  // namespace rnnkernels::binding
