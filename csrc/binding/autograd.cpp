// The backward formulas of rnnkernels::leaky_recurrence and rnnkernels::projected_recurrence. They are in C++
// because for short sequences a formula in Python would take longer than the kernels. Calls inside of transforms,
// gradients of `saved`, and second derivatives of the projected operator go to Python, through
// rnnkernels::leaky_recurrence_vjp and rnnkernels::projected_recurrence_vjp.
#include "binding/autograd.h"

#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

// The saved tensors of a call, in this order; the last two by projected_recurrence only.
enum Kept { kOutput, kSaved, kH0, kWeightHh, kDecay, kBatchSizes, kInput, kWeightIh };

template <class Call>
void keep(AutogradContext* context, const Call& call, const ForwardResult& result, Begun* begun,
          const variable_list& others = {}) {
  const auto& [output, h_n, saved] = result;
  *begun = {context, output};
  context->set_materialize_grads(false);
  if (!saved.is_floating_point() || saved.sym_numel() == 0) context->mark_non_differentiable({saved});
  variable_list kept = {output,         saved,      call.h0.value_or(at::Tensor()),
                        call.weight_hh, call.decay, call.batch_sizes.value_or(at::Tensor())};
  kept.insert(kept.end(), others.begin(), others.end());
  context->save_for_backward(kept);
  context->saved_data["nonlinearity"] = call.spec.nonlinearity;
  context->saved_data["form"] = call.spec.form;
  context->saved_data["reverse"] = call.spec.reverse;
}

SpecArguments kept_spec(AutogradContext* context) {
  return {context->saved_data["nonlinearity"].toStringRef(), context->saved_data["form"].toStringRef(),
          context->saved_data["reverse"].toBool()};
}

// Whether a gradient has to be computed.
bool has_any(const variable_list& grads) {
  return grads[0].defined() || grads[1].defined() || grads[2].defined();
}

// Whether a predicate holds for one of the tensors among a call's arguments.
template <class Call, class Holds>
bool any_tensor(const Call& call, const Holds& holds) {
  const auto check = [&]<class T>(const T& argument) {
    if constexpr (std::is_same_v<T, at::Tensor>) {
      return holds(argument);
    } else if constexpr (std::is_same_v<T, OptionalTensor>) {
      return argument && holds(*argument);
    } else {
      return false;
    }
  };
  return call.unpack([&](const auto&... arguments) { return (check(arguments) || ...); });
}

// Whether autograd will record the call.
template <class Call>
bool is_recorded(const Call& call) {
  return at::GradMode::is_enabled() &&
         any_tensor(call, [](const at::Tensor& tensor) { return tensor.requires_grad(); });
}

// A call that autograd records saves what backward needs. This is decided when the call runs, because a program
// may have been traced under no_grad.
template <class Call>
void save_for_backward(Call* call) {
  if (is_recorded(*call)) {
    call->save =
        std::max<int64_t>(call->save, call->decay.requires_grad() ? kSaveForDecay : kSaveForBackward);
  }
}

// Which tensor arguments need gradients. torch counts the arguments that are present only.
template <size_t n>
std::array<bool, n> needed(AutogradContext* context, const std::array<bool, n>& present) {
  std::array<bool, n> needs;
  for (size_t i = 0, place = 0; i < n; ++i) needs[i] = present[i] && context->needs_input_grad(place++);
  return needs;
}

// As many empty gradients as a Function's forward has arguments: Begun* and those of the operator.
template <class Call>
variable_list no_gradients() {
  return variable_list(1 + Call().unpack([](const auto&... arguments) { return sizeof...(arguments); }));
}

// The gradients that are wanted; the first n arguments of a Call are the tensors that can have one.
template <class Call, size_t n, class Gradients>
variable_list wanted_gradients(const std::array<bool, n>& wanted, const Gradients& gradients) {
  variable_list result = no_gradients<Call>();
  const auto assign = [&]<size_t... i>(std::index_sequence<i...>) {
    ((wanted[i] ? void(result[1 + i] = std::get<i>(gradients)) : void()), ...);
  };
  assign(std::make_index_sequence<n>());
  return result;
}

template <class Call>
auto call_operator(bool differentiable, const Call& arguments) {
  static const auto op = find_operator<Signature<Call>>(Call::kOperator);
  return arguments.unpack([&](const auto&... flat) { return call(op, differentiable, flat...); });
}

// Calls the differentiable equivalent of a backward operator, which also takes the gradient of `saved`.
template <class Call>
auto call_vjp(const at::Tensor& grad_saved, const Call& arguments) {
  static const auto op = find_operator<PrefixedSignature<Call>>(Call::kVjp);
  return arguments.unpack([&](const auto&... flat) { return op.call(if_defined(grad_saved), flat...); });
}

// A Function applied to the arguments of its operator.
template <class Function, class Call>
ForwardResult apply_to(const Call& call) {
  const variable_list results = call.unpack([](const auto&... flat) { return apply<Function>(flat...); });
  return {results[0], results[1], results[2]};
}

class LeakyRecurrence : public torch::autograd::Function<LeakyRecurrence> {
 public:
  template <class... Arguments>
  static variable_list forward(AutogradContext* context, Begun* begun, const Arguments&... arguments) {
    const RecurrenceCall call{arguments...};
    const ForwardResult result = call_operator(false, call);
    keep(context, call, result, begun);
    return {std::get<0>(result), std::get<1>(result), std::get<2>(result)};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    if (!has_any(grads)) return no_gradients<RecurrenceCall>();
    const variable_list kept = context->get_saved_variables();
    const auto wanted = needed<4>(context, {true, kept[kH0].defined(), true, true});
    const BackwardCall arguments = {if_defined(grads[0]),  if_defined(grads[1]),
                                    kept[kOutput],         kept[kSaved],
                                    if_defined(kept[kH0]), kept[kWeightHh],
                                    kept[kDecay],          if_defined(kept[kBatchSizes]),
                                    kept_spec(context),    wanted};
    // Only second derivatives differentiate f(z) itself, which `saved` may hold.
    const bool in_python = grads[2].defined() || is_transformed(grads) || is_transformed(kept);
    const auto gradients =
        in_python ? call_vjp(grads[2], arguments) : call_operator(at::GradMode::is_enabled(), arguments);
    return wanted_gradients<RecurrenceCall>(wanted, gradients);
  }
};

class ProjectedRecurrence : public torch::autograd::Function<ProjectedRecurrence> {
 public:
  template <class... Arguments>
  static variable_list forward(AutogradContext* context, Begun* begun, const Arguments&... arguments) {
    const ProjectedCall call{arguments...};
    const ForwardResult result = call_operator(false, call);
    keep(context, call, result, begun, {call.input, call.weight_ih});
    context->saved_data["has_bias"] = call.bias.has_value();
    context->saved_data["has_drive"] = call.drive.has_value();
    return {std::get<0>(result), std::get<1>(result), std::get<2>(result)};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    if (!has_any(grads)) return no_gradients<ProjectedCall>();
    const variable_list kept = context->get_saved_variables();
    const bool has_bias = context->saved_data["has_bias"].toBool();
    const bool has_drive = context->saved_data["has_drive"].toBool();
    const auto wanted =
        needed<7>(context, {true, kept[kH0].defined(), true, true, has_bias, has_drive, true});
    const ProjectedBackwardCall arguments = {
        if_defined(grads[0]), if_defined(grads[1]),          kept[kOutput],      kept[kSaved],
        kept[kInput],         if_defined(kept[kH0]),         kept[kWeightIh],    kept[kWeightHh],
        kept[kDecay],         if_defined(kept[kBatchSizes]), kept_spec(context), wanted};
    const bool in_python =
        at::GradMode::is_enabled() || grads[2].defined() || is_transformed(grads) || is_transformed(kept);
    const auto gradients = in_python ? call_vjp(grads[2], arguments) : call_operator(false, arguments);
    return wanted_gradients<ProjectedCall>(wanted, gradients);
  }
};

}  // namespace

ForwardResult leaky_recurrence_autograd(RecurrenceCall call) {
  if (!is_recorded(call) && !any_tensor(call, has_tangent)) return call_operator(false, call);
  save_for_backward(&call);
  return apply_to<LeakyRecurrence>(call);
}

ForwardResult projected_recurrence_autograd(ProjectedCall call) {
  if (!is_recorded(call) && !any_tensor(call, has_tangent)) return call_operator(false, call);
  save_for_backward(&call);
  return apply_to<ProjectedRecurrence>(call);
}

}  // namespace rnnkernels::binding
