// The backward formulas of rnnkernels::leaky_recurrence and rnnkernels::projected_recurrence. They live here
// rather than in Python because a short sequence would otherwise cost more for its formula than for its
// kernels; whatever is rare is Python's, by way of rnnkernels::leaky_recurrence_vjp and its like.
#include "binding/autograd.h"

#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

// What is kept of a call, in this order; the last two by projected_recurrence only.
enum Kept { kOutput, kSaved, kH0, kWeightHh, kDecay, kBatchSizes, kInput, kWeightIh };

void keep(AutogradContext* context, const ForwardResult& result, const OptionalTensor& h0,
          const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
          const std::string& nonlinearity, const std::string& form, bool reverse, bool save,
          const variable_list& others, Begun* begun) {
  const auto& [output, h_n, saved] = result;
  *begun = {context, output};
  context->set_materialize_grads(false);
  if (!saved.is_floating_point() || saved.sym_numel() == 0) context->mark_non_differentiable({saved});
  variable_list kept = {output,    saved, h0.value_or(at::Tensor()),
                        weight_hh, decay, batch_sizes.value_or(at::Tensor())};
  kept.insert(kept.end(), others.begin(), others.end());
  context->save_for_backward(kept);
  context->saved_data["nonlinearity"] = nonlinearity;
  context->saved_data["form"] = form;
  context->saved_data["reverse"] = reverse;
  context->saved_data["save"] = save;
}

// The gradients of pre, h0, weight_hh and decay, from those of output, h_n and saved.
BackwardResult recurrence_gradients(AutogradContext* context, const variable_list& kept,
                                    const variable_list& grads, const std::array<bool, 4>& wanted) {
  const std::string& nonlinearity = context->saved_data["nonlinearity"].toStringRef();
  const std::string& form = context->saved_data["form"].toStringRef();
  const bool reverse = context->saved_data["reverse"].toBool();
  const OptionalTensor grad_output = if_defined(grads[0]), grad_h_n = if_defined(grads[1]);
  const OptionalTensor h0 = if_defined(kept[kH0]), batch_sizes = if_defined(kept[kBatchSizes]);
  // f(z) itself is seen by second derivatives only.
  if (grads[2].defined() || is_transformed(grads) || is_transformed(kept)) {
    static const auto op = find_operator<decltype(leaky_recurrence_vjp)>("rnnkernels::leaky_recurrence_vjp");
    return op.call(grad_output, grad_h_n, if_defined(grads[2]), kept[kOutput], kept[kSaved], h0,
                   kept[kWeightHh], kept[kDecay], batch_sizes, nonlinearity, form, reverse, wanted);
  }
  static const auto op =
      find_operator<decltype(leaky_recurrence_backward)>("rnnkernels::leaky_recurrence_backward");
  return call(op, at::GradMode::is_enabled(), grad_output, grad_h_n, kept[kOutput], kept[kSaved], h0,
              kept[kWeightHh], kept[kDecay], batch_sizes, nonlinearity, form, reverse, wanted);
}

// Whether there is anything to do in backward; raises where the call was not made for one.
bool has_any(AutogradContext* context, const variable_list& grads) {
  TORCH_CHECK(context->saved_data["save"].toBool(),
              "the recurrence was called with save=False, so it has no backward");
  return grads[0].defined() || grads[1].defined() || grads[2].defined();
}

// Whether the arguments of a call need gradients. Those that are absent have no place in autograd's count.
class Needs {
 public:
  explicit Needs(AutogradContext* context) : context_(context) {}
  bool next(bool present = true) { return present && context_->needs_input_grad(place_++); }

 private:
  AutogradContext* context_;
  size_t place_ = 0;
};

class LeakyRecurrence : public torch::autograd::Function<LeakyRecurrence> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& pre, const OptionalTensor& h0,
                               const at::Tensor& weight_hh, const at::Tensor& decay,
                               const OptionalTensor& batch_sizes, const std::string& nonlinearity,
                               const std::string& form, bool reverse, bool save, Begun* begun) {
    static const auto op = find_operator<decltype(leaky_recurrence)>("rnnkernels::leaky_recurrence");
    const ForwardResult result =
        call(op, false, pre, h0, weight_hh, decay, batch_sizes, nonlinearity, form, reverse, save);
    keep(context, result, h0, weight_hh, decay, batch_sizes, nonlinearity, form, reverse, save, {}, begun);
    return {std::get<0>(result), std::get<1>(result), std::get<2>(result)};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(10);
    if (!has_any(context, grads)) return result;
    const variable_list kept = context->get_saved_variables();
    Needs needs(context);
    const bool pre = needs.next(), h0 = needs.next(kept[kH0].defined()), weight = needs.next();
    const std::array<bool, 4> wanted = {pre, h0, weight, needs.next()};
    const auto [d_pre, d_h0, d_weight, d_decay] = recurrence_gradients(context, kept, grads, wanted);
    if (wanted[0]) result[0] = d_pre;
    if (wanted[1]) result[1] = d_h0;
    if (wanted[2]) result[2] = d_weight;
    if (wanted[3]) result[3] = d_decay;
    return result;
  }
};

class ProjectedRecurrence : public torch::autograd::Function<ProjectedRecurrence> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& input, const OptionalTensor& h0,
                               const at::Tensor& weight_ih, const at::Tensor& weight_hh,
                               const OptionalTensor& bias, const OptionalTensor& drive,
                               const at::Tensor& decay, const OptionalTensor& batch_sizes,
                               const std::string& nonlinearity, const std::string& form, bool reverse,
                               bool save, Begun* begun) {
    static const auto op =
        find_operator<decltype(projected_recurrence_cpu)>("rnnkernels::projected_recurrence");
    const ForwardResult result = call(op, false, input, h0, weight_ih, weight_hh, bias, drive, decay,
                                      batch_sizes, nonlinearity, form, reverse, save);
    keep(context, result, h0, weight_hh, decay, batch_sizes, nonlinearity, form, reverse, save,
         {input, weight_ih}, begun);
    context->saved_data["has_bias"] = bias.has_value();
    context->saved_data["has_drive"] = drive.has_value();
    return {std::get<0>(result), std::get<1>(result), std::get<2>(result)};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(13);
    if (!has_any(context, grads)) return result;
    const variable_list kept = context->get_saved_variables();
    Needs needs(context);
    std::array<bool, 7> present;
    present.fill(true);
    present[1] = kept[kH0].defined();
    present[4] = context->saved_data["has_bias"].toBool();
    present[5] = context->saved_data["has_drive"].toBool();
    std::array<bool, 7> wanted;
    for (int i = 0; i < 7; ++i) wanted[i] = needs.next(present[i]);
    const bool again = at::GradMode::is_enabled() || grads[2].defined();
    const auto gradients = again || is_transformed(grads) || is_transformed(kept)
                               ? differentiable(context, kept, grads, wanted)
                               : at_once(context, kept, grads, wanted);
    for (int i = 0; i < 7; ++i) {
      if (wanted[i]) result[i] = gradients[i];
    }
    return result;
  }

 private:
  static variable_list at_once(AutogradContext* context, const variable_list& kept,
                               const variable_list& grads, const std::array<bool, 7>& wanted) {
    static const auto op = find_operator<decltype(projected_recurrence_backward_cpu)>(
        "rnnkernels::projected_recurrence_backward");
    const auto [d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay] =
        call(op, false, if_defined(grads[0]), if_defined(grads[1]), kept[kOutput], kept[kSaved], kept[kInput],
             if_defined(kept[kH0]), kept[kWeightIh], kept[kWeightHh], kept[kDecay],
             if_defined(kept[kBatchSizes]), context->saved_data["nonlinearity"].toStringRef(),
             context->saved_data["form"].toStringRef(), context->saved_data["reverse"].toBool(), wanted);
    return {d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay};
  }

  static variable_list differentiable(AutogradContext* context, const variable_list& kept,
                                      const variable_list& grads, const std::array<bool, 7>& wanted) {
    static const auto op =
        find_operator<decltype(projected_recurrence_vjp)>("rnnkernels::projected_recurrence_vjp");
    const auto [d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay] =
        op.call(if_defined(grads[0]), if_defined(grads[1]), if_defined(grads[2]), kept[kOutput], kept[kSaved],
                kept[kInput], if_defined(kept[kH0]), kept[kWeightIh], kept[kWeightHh], kept[kDecay],
                if_defined(kept[kBatchSizes]), context->saved_data["nonlinearity"].toStringRef(),
                context->saved_data["form"].toStringRef(), context->saved_data["reverse"].toBool(), wanted);
    return {d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay};
  }
};

}  // namespace

ForwardResult leaky_recurrence_autograd(const at::Tensor& pre, const OptionalTensor& h0,
                                        const at::Tensor& weight_hh, const at::Tensor& decay,
                                        const OptionalTensor& batch_sizes, std::string nonlinearity,
                                        std::string form, bool reverse, bool save) {
  const variable_list results =
      apply<LeakyRecurrence>(pre, h0, weight_hh, decay, batch_sizes, nonlinearity, form, reverse, save);
  return {results[0], results[1], results[2]};
}

ForwardResult projected_recurrence_autograd(const at::Tensor& input, const OptionalTensor& h0,
                                            const at::Tensor& weight_ih, const at::Tensor& weight_hh,
                                            const OptionalTensor& bias, const OptionalTensor& drive,
                                            const at::Tensor& decay, const OptionalTensor& batch_sizes,
                                            std::string nonlinearity, std::string form, bool reverse,
                                            bool save) {
  const variable_list results = apply<ProjectedRecurrence>(
      input, h0, weight_ih, weight_hh, bias, drive, decay, batch_sizes, nonlinearity, form, reverse, save);
  return {results[0], results[1], results[2]};
}

}  // namespace rnnkernels::binding
