// The operators of the recurrence in C++: rnnkernels::leaky_recurrence, the same with its input projection,
// the backward of both, and the linear recurrence that derivatives of higher order consist of.
//
// The arguments of each operator are one struct, spelled out here. A struct's fields are in
// the order of the operator's schema, which stands in operators.cpp with the meaning of each argument. A
// function that implements an operator takes the struct; flat() (binding/flat.h) makes it a function of the
// single arguments, as torch registers it.
#pragma once

#include <array>
#include <tuple>

#include "binding/arguments.h"
#include "binding/flat.h"

namespace rnnkernels::binding {

// The results of the operators, in the order of their schemas.
using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using BackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using ProjectedBackwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

struct RecurrenceCall {
  static constexpr const char* kOperator = "rnnkernels::leaky_recurrence";
  using Result = ForwardResult;
  at::Tensor pre;
  OptionalTensor h0;
  at::Tensor weight_hh, decay;
  OptionalTensor batch_sizes;
  SpecArguments spec;
  int64_t save;  // one of Save

  template <class F>
  auto unpack(F&& f) const {
    return f(pre, h0, weight_hh, decay, batch_sizes, spec.nonlinearity, spec.form, spec.reverse, save);
  }
};

struct ProjectedCall {
  static constexpr const char* kOperator = "rnnkernels::projected_recurrence";
  using Result = ForwardResult;
  at::Tensor input;
  OptionalTensor h0;
  at::Tensor weight_ih, weight_hh;
  OptionalTensor bias, drive;
  at::Tensor decay;
  OptionalTensor batch_sizes;
  SpecArguments spec;
  int64_t save;  // one of Save

  template <class F>
  auto unpack(F&& f) const {
    return f(input, h0, weight_ih, weight_hh, bias, drive, decay, batch_sizes, spec.nonlinearity, spec.form,
             spec.reverse, save);
  }
};

struct BackwardCall {
  static constexpr const char* kOperator = "rnnkernels::leaky_recurrence_backward";
  static constexpr const char* kVjp = "rnnkernels::leaky_recurrence_vjp";  // differentiable equivalent
  using Result = BackwardResult;
  OptionalTensor grad_output, grad_h_n;
  at::Tensor output, saved;
  OptionalTensor h0;
  at::Tensor weight_hh, decay;
  OptionalTensor batch_sizes;
  SpecArguments spec;
  std::array<bool, 4> wanted;

  template <class F>
  auto unpack(F&& f) const {
    return f(grad_output, grad_h_n, output, saved, h0, weight_hh, decay, batch_sizes, spec.nonlinearity,
             spec.form, spec.reverse, wanted);
  }
};

struct ProjectedBackwardCall {
  static constexpr const char* kOperator = "rnnkernels::projected_recurrence_backward";
  static constexpr const char* kVjp = "rnnkernels::projected_recurrence_vjp";
  using Result = ProjectedBackwardResult;
  OptionalTensor grad_output, grad_h_n;
  at::Tensor output, saved, input;
  OptionalTensor h0;
  at::Tensor weight_ih, weight_hh, decay;
  OptionalTensor batch_sizes;
  SpecArguments spec;
  std::array<bool, 7> wanted;

  template <class F>
  auto unpack(F&& f) const {
    return f(grad_output, grad_h_n, output, saved, input, h0, weight_ih, weight_hh, decay, batch_sizes,
             spec.nonlinearity, spec.form, spec.reverse, wanted);
  }
};

struct LinearCall {
  static constexpr const char* kOperator = "rnnkernels::linear_recurrence";
  using Result = at::Tensor;
  at::Tensor drive;
  OptionalTensor h0;
  at::Tensor weight_hh, decay;
  OptionalTensor alpha, beta, batch_sizes;
  bool reverse;

  template <class F>
  auto unpack(F&& f) const {
    return f(drive, h0, weight_hh, decay, alpha, beta, batch_sizes, reverse);
  }
};

// The implementations for real tensors, for meta tensors (shapes only), and in autograd. Those for real tensors
// take a call of their own, in which they replace the batch sizes (own_batch_sizes).
ForwardResult leaky_recurrence(RecurrenceCall call);
ForwardResult leaky_recurrence_meta(const RecurrenceCall& call);
ForwardResult leaky_recurrence_autograd(RecurrenceCall call);

ForwardResult projected_recurrence(ProjectedCall call);
ForwardResult projected_recurrence_meta(const ProjectedCall& call);
ForwardResult projected_recurrence_autograd(ProjectedCall call);

BackwardResult leaky_recurrence_backward(BackwardCall call);
BackwardResult leaky_recurrence_backward_meta(const BackwardCall& call);
// The same without the checks of values, for batch sizes that are the call's own.
BackwardResult run_backward(const BackwardCall& call, const RecurrenceSpec& spec);

ProjectedBackwardResult projected_recurrence_backward(ProjectedBackwardCall call);
ProjectedBackwardResult projected_recurrence_backward_meta(const ProjectedBackwardCall& call);

at::Tensor linear_recurrence(LinearCall call);
at::Tensor linear_recurrence_meta(const LinearCall& call);

}  // namespace rnnkernels::binding
