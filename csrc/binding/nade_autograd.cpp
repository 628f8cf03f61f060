// The backward formula of rnnkernels::nade: its backward operator, or rnnkernels::nade_vjp, which is
// implemented in Python, where the gradients themselves have to be differentiable.
#include "binding/autograd.h"
#include "binding/nade.h"

namespace rnnkernels::binding {

namespace {

enum Kept { kV, kLogits, kVisibleBias, kHiddenBias, kEncoder, kDecoder };

class NadeFormula : public torch::autograd::Function<NadeFormula> {
 public:
  static variable_list forward(AutogradContext* context, Begun* begun, const at::Tensor& v,
                               const at::Tensor& visible_bias, const at::Tensor& hidden_bias,
                               const at::Tensor& encoder, const at::Tensor& decoder) {
    static const auto op = find_operator<decltype(nade)>("rnnkernels::nade");
    const auto [log_prob, logits] = call(op, false, v, visible_bias, hidden_bias, encoder, decoder);
    *begun = {context, logits};
    context->set_materialize_grads(false);
    context->save_for_backward({v, logits, visible_bias, hidden_bias, encoder, decoder});
    return {log_prob, logits};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(6);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    std::array<bool, 4> wanted;  // v, the first argument, has no gradient
    for (int i = 0; i < 4; ++i) wanted[i] = context->needs_input_grad(i + 1);
    const variable_list kept = context->get_saved_variables();
    const auto [d_visible_bias, d_hidden_bias, d_encoder, d_decoder] = gradients(kept, grads, wanted);
    if (wanted[0]) result[2] = d_visible_bias;
    if (wanted[1]) result[3] = d_hidden_bias;
    if (wanted[2]) result[4] = d_encoder;
    if (wanted[3]) result[5] = d_decoder;
    return result;
  }

 private:
  static NadeGradients gradients(const variable_list& kept, const variable_list& grads,
                                 const std::array<bool, 4>& wanted) {
    const OptionalTensor grad_log_prob = if_defined(grads[0]), grad_logits = if_defined(grads[1]);
    if (at::GradMode::is_enabled() || is_transformed(grads) || is_transformed(kept)) {
      static const auto op = find_operator<decltype(nade_vjp)>("rnnkernels::nade_vjp");
      return op.call(grad_log_prob, grad_logits, kept[kV], kept[kVisibleBias], kept[kHiddenBias],
                     kept[kEncoder], kept[kDecoder], wanted);
    }
    static const auto op = find_operator<decltype(nade_backward)>("rnnkernels::nade_backward");
    return call(op, false, grad_log_prob, grad_logits, kept[kV], kept[kLogits], kept[kHiddenBias],
                kept[kEncoder], kept[kDecoder], wanted);
  }
};

}  // namespace

NadeResult nade_autograd(const at::Tensor& v, const at::Tensor& visible_bias, const at::Tensor& hidden_bias,
                         const at::Tensor& encoder, const at::Tensor& decoder) {
  const variable_list results = apply<NadeFormula>(v, visible_bias, hidden_bias, encoder, decoder);
  return {results[0], results[1]};
}

}  // namespace rnnkernels::binding
