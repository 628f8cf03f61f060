// The recurrence in half precision, for the operators to call; the arguments are theirs, checked.
#pragma once

#include "binding/recurrence.h"

namespace rnnkernels::binding {

// Fills in output, h_n and saved.
void half_forward(const at::Tensor& pre, const OptionalTensor& h0, const at::Tensor& weight_hh,
                  const at::Tensor& decay, const OptionalTensor& batch_sizes, const Kind& kind, bool reverse,
                  bool save, const Sizes& sizes, const ForwardResult& result);

// Fills in what is wanted.
void half_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                   const at::Tensor& output, const at::Tensor& saved, const OptionalTensor& h0,
                   const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
                   const Kind& kind, bool reverse, const std::array<bool, 4>& wanted, const Sizes& sizes,
                   const BackwardResult& result);

}  // namespace rnnkernels::binding
