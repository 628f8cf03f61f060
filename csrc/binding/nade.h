// The operators of NADE as C++ functions: log p(v) and the logits, their gradients, and samples.
// operators.cpp has their schemas and describes the arguments.
#pragma once

#include <array>
#include <tuple>

#include "binding/arguments.h"
#include "core/nade.h"

namespace rnnkernels::binding {

using NadeResult = std::tuple<at::Tensor, at::Tensor>;
using NadeGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

NadeResult nade(const at::Tensor& v, const at::Tensor& visible_bias, const at::Tensor& hidden_bias,
                const at::Tensor& encoder, const at::Tensor& decoder);
NadeResult nade_meta(const at::Tensor& v, const at::Tensor& visible_bias, const at::Tensor& hidden_bias,
                     const at::Tensor& encoder, const at::Tensor& decoder);
NadeResult nade_autograd(const at::Tensor& v, const at::Tensor& visible_bias, const at::Tensor& hidden_bias,
                         const at::Tensor& encoder, const at::Tensor& decoder);

NadeGradients nade_backward(const OptionalTensor& grad_log_prob, const OptionalTensor& grad_logits,
                            const at::Tensor& v, const at::Tensor& logits, const at::Tensor& hidden_bias,
                            const at::Tensor& encoder, const at::Tensor& decoder, std::array<bool, 4> wanted);
NadeGradients nade_backward_meta(const OptionalTensor& grad_log_prob, const OptionalTensor& grad_logits,
                                 const at::Tensor& v, const at::Tensor& logits, const at::Tensor& hidden_bias,
                                 const at::Tensor& encoder, const at::Tensor& decoder,
                                 std::array<bool, 4> wanted);

NadeResult nade_sample(const at::Tensor& uniform, const at::Tensor& visible_bias,
                       const at::Tensor& hidden_bias, const at::Tensor& encoder, const at::Tensor& decoder);
NadeResult nade_sample_meta(const at::Tensor& uniform, const at::Tensor& visible_bias,
                            const at::Tensor& hidden_bias, const at::Tensor& encoder,
                            const at::Tensor& decoder);

// Not defined in C++: the signature of an operator that rnnkernels/outputs/_nade_autograd.py implements.
NadeGradients nade_vjp(const OptionalTensor& grad_log_prob, const OptionalTensor& grad_logits,
                       const at::Tensor& v, const at::Tensor& visible_bias, const at::Tensor& hidden_bias,
                       const at::Tensor& encoder, const at::Tensor& decoder, std::array<bool, 4> wanted);

// --- Between the files of NADE -----------------------------------------------------------------------

// In builds with kernels for a GPU, defined in nade_gpu.cpp.
//
// v as bytes, with a 1 for each element that is not zero; the values are not checked, because checking would
// synchronize.
at::Tensor bytes_on_gpu(const at::Tensor& v);
void run_on_gpu(const NadeForward& problem, const at::Device& device);
void run_on_gpu(const NadeBackward& problem, const at::Device& device);

}  // namespace rnnkernels::binding
