// Functions that the operators' backward formulas in C++ share.
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

// Calls an operator below autograd, or with autograd if its results will be differentiated.
template <class Operator, class... Arguments>
auto call(const Operator& op, bool differentiable, const Arguments&... arguments) {
  if (differentiable) return op.call(arguments...);
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(arguments...);
}

inline bool has_tangent(const at::Tensor& tensor) { return tensor.defined() && tensor._fw_grad(0).defined(); }

// Whether torch.func's transforms or a tangent are involved, which only the formulas in Python support.
inline bool is_transformed(const variable_list& tensors) {
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) return true;
  return std::any_of(tensors.begin(), tensors.end(), has_tangent);
}

inline OptionalTensor if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : OptionalTensor();
}

// The state of a Function's forward, which apply() needs if it fails.
struct Begun {
  AutogradContext* context = nullptr;
  at::Tensor output;
};

// Applies a Function; its forward gets a Begun* as the first argument and fills it in. A hook that packs
// saved tensors may throw (activation checkpointing ends each recomputation in this way). Then the output
// already refers to its node, and the node to the output; saving nothing breaks this cycle, so that both are
// freed.
template <class Function, class... Arguments>
variable_list apply(const Arguments&... arguments) {
  Begun begun;
  try {
    return Function::apply(&begun, arguments...);
  } catch (...) {
    if (begun.output.defined() && begun.output.grad_fn()) begun.context->save_for_backward({});
    throw;
  }
}

}  // namespace rnnkernels::binding
