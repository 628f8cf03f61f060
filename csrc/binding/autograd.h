// What the operators' backward formulas in C++ share.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "binding/arguments.h"

namespace rnnkernels::binding {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Calls an operator below autograd, or with it where the gradients will be differentiated again.
template <class Operator, class... Arguments>
auto call(const Operator& op, bool differentiable, const Arguments&... arguments) {
  if (differentiable) return op.call(arguments...);
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(arguments...);
}

inline bool has_tangent(const at::Tensor& tensor) { return tensor.defined() && tensor._fw_grad(0).defined(); }

// Inside torch.func's transforms, or with a tangent along: only Python's formulas know those.
inline bool is_transformed(const variable_list& tensors) {
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) return true;
  return std::any_of(tensors.begin(), tensors.end(), has_tangent);
}

inline OptionalTensor if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : OptionalTensor();
}

// A call whose output autograd may already know.
struct Begun {
  AutogradContext* context = nullptr;
  at::Tensor output;
};

// Hooks that pack what is kept may throw; activation checkpointing ends each recomputation so. The output
// then has its node, and the node has not let go of the output, which it is to keep: neither would ever be
// freed.
template <class Function, class... Arguments>
variable_list apply(const Arguments&... arguments) {
  Begun begun;
  try {
    return Function::apply(arguments..., &begun);
  } catch (...) {
    if (begun.output.defined() && begun.output.grad_fn()) begun.context->save_for_backward({});
    throw;
  }
}

}  // namespace rnnkernels::binding
