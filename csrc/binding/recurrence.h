// The operators of the recurrence as C++ functions: rnnkernels::leaky_recurrence, the same with its input
// projection, the backward of both, and the linear walk that derivatives of higher order are made of.
// Their schemas, and what each argument means, stand in operators.cpp.
#pragma once

#include <array>
#include <tuple>

#include "binding/arguments.h"

namespace rnnkernels::binding {

using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using BackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

ForwardResult leaky_recurrence(const at::Tensor& pre, const OptionalTensor& h0, const at::Tensor& weight_hh,
                               const at::Tensor& decay, const OptionalTensor& batch_sizes,
                               std::string nonlinearity, std::string form, bool reverse, bool save);
ForwardResult leaky_recurrence_meta(const at::Tensor& pre, const OptionalTensor& h0,
                                    const at::Tensor& weight_hh, const at::Tensor& decay,
                                    const OptionalTensor& batch_sizes, std::string nonlinearity,
                                    std::string form, bool reverse, bool save);

ForwardResult leaky_recurrence_autograd(const at::Tensor& pre, const OptionalTensor& h0,
                                        const at::Tensor& weight_hh, const at::Tensor& decay,
                                        const OptionalTensor& batch_sizes, std::string nonlinearity,
                                        std::string form, bool reverse, bool save);

ForwardResult projected_recurrence_cpu(const at::Tensor& input, const OptionalTensor& h0,
                                       const at::Tensor& weight_ih, const at::Tensor& weight_hh,
                                       const OptionalTensor& bias, const OptionalTensor& drive,
                                       const at::Tensor& decay, const OptionalTensor& batch_sizes,
                                       std::string nonlinearity, std::string form, bool reverse, bool save);
ForwardResult projected_recurrence_meta(const at::Tensor& input, const OptionalTensor& h0,
                                        const at::Tensor& weight_ih, const at::Tensor& weight_hh,
                                        const OptionalTensor& bias, const OptionalTensor& drive,
                                        const at::Tensor& decay, const OptionalTensor& batch_sizes,
                                        std::string nonlinearity, std::string form, bool reverse, bool save);
ForwardResult projected_recurrence_autograd(const at::Tensor& input, const OptionalTensor& h0,
                                            const at::Tensor& weight_ih, const at::Tensor& weight_hh,
                                            const OptionalTensor& bias, const OptionalTensor& drive,
                                            const at::Tensor& decay, const OptionalTensor& batch_sizes,
                                            std::string nonlinearity, std::string form, bool reverse,
                                            bool save);

BackwardResult leaky_recurrence_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                         const at::Tensor& output, const at::Tensor& saved,
                                         const OptionalTensor& h0, const at::Tensor& weight_hh,
                                         const at::Tensor& decay, const OptionalTensor& batch_sizes,
                                         std::string nonlinearity, std::string form, bool reverse,
                                         std::array<bool, 4> wanted);
BackwardResult leaky_recurrence_backward_meta(const OptionalTensor& grad_output,
                                              const OptionalTensor& grad_h_n, const at::Tensor& output,
                                              const at::Tensor& saved, const OptionalTensor& h0,
                                              const at::Tensor& weight_hh, const at::Tensor& decay,
                                              const OptionalTensor& batch_sizes, std::string nonlinearity,
                                              std::string form, bool reverse, std::array<bool, 4> wanted);

// The walk itself and its sums, for arguments that are right.
BackwardResult run_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                            const at::Tensor& output, const at::Tensor& saved, const OptionalTensor& h0,
                            const at::Tensor& weight_hh, const at::Tensor& decay,
                            const OptionalTensor& batch_sizes, const Kind& kind, bool reverse,
                            const std::array<bool, 4>& wanted);

using ProjectedBackwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

ProjectedBackwardResult projected_recurrence_backward_cpu(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const at::Tensor& output,
    const at::Tensor& saved, const at::Tensor& input, const OptionalTensor& h0, const at::Tensor& weight_ih,
    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
    std::string nonlinearity, std::string form, bool reverse, std::array<bool, 7> wanted);
ProjectedBackwardResult projected_recurrence_backward_meta(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const at::Tensor& output,
    const at::Tensor& saved, const at::Tensor& input, const OptionalTensor& h0, const at::Tensor& weight_ih,
    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
    std::string nonlinearity, std::string form, bool reverse, std::array<bool, 7> wanted);

// Not defined in C++: the signatures of what rnnkernels/_autograd/backward.py implements.
BackwardResult leaky_recurrence_vjp(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                    const OptionalTensor& grad_saved, const at::Tensor& output,
                                    const at::Tensor& saved, const OptionalTensor& h0,
                                    const at::Tensor& weight_hh, const at::Tensor& decay,
                                    const OptionalTensor& batch_sizes, std::string nonlinearity,
                                    std::string form, bool reverse, std::array<bool, 4> wanted);
ProjectedBackwardResult projected_recurrence_vjp(const OptionalTensor& grad_output,
                                                 const OptionalTensor& grad_h_n,
                                                 const OptionalTensor& grad_saved, const at::Tensor& output,
                                                 const at::Tensor& saved, const at::Tensor& input,
                                                 const OptionalTensor& h0, const at::Tensor& weight_ih,
                                                 const at::Tensor& weight_hh, const at::Tensor& decay,
                                                 const OptionalTensor& batch_sizes, std::string nonlinearity,
                                                 std::string form, bool reverse, std::array<bool, 7> wanted);

at::Tensor linear_recurrence(const at::Tensor& drive, const OptionalTensor& h0, const at::Tensor& weight_hh,
                             const at::Tensor& decay, const OptionalTensor& alpha, const OptionalTensor& beta,
                             const OptionalTensor& batch_sizes, bool reverse);
at::Tensor linear_recurrence_meta(const at::Tensor& drive, const OptionalTensor& h0,
                                  const at::Tensor& weight_hh, const at::Tensor& decay,
                                  const OptionalTensor& alpha, const OptionalTensor& beta,
                                  const OptionalTensor& batch_sizes, bool reverse);

}  // namespace rnnkernels::binding
