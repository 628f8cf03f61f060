// The operators' schemas and implementations, as registered with PyTorch. CONTRIBUTING.md says how to add one.
#include <torch/library.h>

#include "binding/host.h"
#include "binding/nade.h"
#include "binding/optimizer.h"
#include "binding/recurrence.h"

// The arguments of the recurrence:
//   pre                          p, [T, B, H] or packed rows [sum(batch_sizes), H]; with a leading G if
//                                weight_hh is [G, H, H]
//   h0                           [B, H]; None for zero. Required with batch_sizes
//   decay                        d: one value, [H], or [G, H]
//   batch_sizes                  int64 on the CPU, as in a PackedSequence
//   nonlinearity, form, reverse  which recurrence; binding/arguments.h, RecurrenceSpec
//   save                         what to save even if autograd does not record the call. 0: nothing; 1: what
//                                backward needs; 2: also, in half precision, what an accurate d_decay needs
// They return output (shaped like pre), h_n [B, H], and the tensor that backward needs besides the output.
#define RECURRENCE_SPEC "str nonlinearity, str form, bool reverse"
#define FORWARD_RESULT "(Tensor output, Tensor h_n, Tensor saved)"
#define BACKWARD_TENSORS                                                                               \
  "Tensor? grad_output, Tensor? grad_h_n, Tensor output, Tensor saved, Tensor? h0, Tensor weight_hh, " \
  "Tensor decay, Tensor? batch_sizes"
#define BACKWARD_RESULT "(Tensor d_pre, Tensor d_h0, Tensor d_weight_hh, Tensor d_decay)"
#define PROJECTED_BACKWARD_TENSORS                                                                 \
  "Tensor? grad_output, Tensor? grad_h_n, Tensor output, Tensor saved, Tensor input, Tensor? h0, " \
  "Tensor weight_ih, Tensor weight_hh, Tensor decay, Tensor? batch_sizes"
#define PROJECTED_BACKWARD_RESULT                                                                         \
  "(Tensor d_input, Tensor d_h0, Tensor d_weight_ih, Tensor d_weight_hh, Tensor d_bias, Tensor d_drive, " \
  "Tensor d_decay)"

namespace binding = rnnkernels::binding;
using binding::flat;
using binding::limited;

TORCH_LIBRARY(rnnkernels, m) {
  m.def(
      "leaky_recurrence(Tensor pre, Tensor? h0, Tensor weight_hh, Tensor decay, Tensor? "
      "batch_sizes, " RECURRENCE_SPEC ", int save) -> " FORWARD_RESULT);
  // The same with pre = input weight_ih^T + bias + drive, which is computed in the memory of the output:
  // input [T, B, I] or packed rows, weight_ih [H, I], bias [H] or None, drive shaped like pre or None, each
  // with a leading G if weight_hh has it; float32 or float64.
  m.def(
      "projected_recurrence(Tensor input, Tensor? h0, Tensor weight_ih, Tensor weight_hh, Tensor? bias, "
      "Tensor? drive, Tensor decay, Tensor? batch_sizes, " RECURRENCE_SPEC ", int save) -> " FORWARD_RESULT);
  // wanted: d_pre (returned in any case), d_h0, d_weight_hh, d_decay; the others are returned empty.
  m.def("leaky_recurrence_backward(" BACKWARD_TENSORS ", " RECURRENCE_SPEC
        ", bool[4] wanted) -> " BACKWARD_RESULT);
  // wanted: d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay; the others are returned empty.
  m.def("projected_recurrence_backward(" PROJECTED_BACKWARD_TENSORS ", " RECURRENCE_SPEC
        ", bool[7] wanted) -> " PROJECTED_BACKWARD_RESULT);
  // Both backward operators made of differentiable operations, for transforms and for gradients of `saved`.
  // They are implemented in Python (rnnkernels/_autograd/backward.py).
  m.def("leaky_recurrence_vjp(Tensor? grad_saved, " BACKWARD_TENSORS ", " RECURRENCE_SPEC
        ", bool[4] wanted) -> " BACKWARD_RESULT);
  m.def("projected_recurrence_vjp(Tensor? grad_saved, " PROJECTED_BACKWARD_TENSORS ", " RECURRENCE_SPEC
        ", bool[7] wanted) -> " PROJECTED_BACKWARD_RESULT);
  // y_t = d y_{t-1} + alpha_t (W (beta_t y_{t-1})) + drive_t; all sequences are shaped like drive. d may
  // be anything; in a packed sequence h0 must be given.
  m.def(
      "linear_recurrence(Tensor drive, Tensor? h0, Tensor weight_hh, Tensor decay, Tensor? alpha, "
      "Tensor? beta, Tensor? batch_sizes, bool reverse) -> Tensor");

  // A step over all parameters, in place; the rules and letters are those of core/update_rules.h.
  //   masters            float32 copies that hold what half precision drops, or the parameters again
  //   group_ends         where each group of parameters ends
  //   numbers            [groups, fields]: lr, max_norm, weight_decay, then Nesterov's momentum, or
  //                      AdamW's beta1, beta2, eps; on_device, where not empty, has tensors instead
  //   previous_momentum  mu_{t-1} of each group; steps: the number of steps of each parameter
  //   record             float64 [norm, steps skipped, steps taken, whether to raise]
  //   nonfinite          'skip', 'raise' (the caller does, after a look at the record) or 'apply'
  //   norm               of the gradients as they come, where it is one of more than these
  m.def(
      "clipped_nesterov_(Tensor(a!)[] params, Tensor?[] grads, Tensor(b!)[] velocities, "
      "Tensor(c!)[] masters, Tensor(d!)[] previous_momentum, int[] group_ends, float[] numbers, "
      "Tensor?[] on_device, bool[] maximize, Tensor(e!) record, float norm_type, str nonfinite, "
      "Tensor? grad_scale, Tensor? found_inf, Tensor? norm) -> ()");
  m.def(
      "clipped_adamw_(Tensor(a!)[] params, Tensor?[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] masters, Tensor(f!)[] steps, int[] group_ends, "
      "float[] numbers, Tensor?[] on_device, bool[] maximize, Tensor(e!) record, float norm_type, "
      "str nonfinite, Tensor? grad_scale, Tensor? found_inf, Tensor? norm) -> ()");
  // sum |g / unit|^p, or max |g|, as a float64 scalar
  m.def("gradient_power_sum(Tensor?[] grads, float norm_type, float unit) -> Tensor");

  // log p(v) and the logits l of a NADE (core/nade.h): v [N, D], zeros and ones (on a GPU every value other
  // than zero is a one), b [N, D], c [N, H], W and V [D, H]; float32 or float64.
  m.def(
      "nade(Tensor v, Tensor visible_bias, Tensor hidden_bias, Tensor encoder, Tensor decoder) "
      "-> (Tensor log_prob, Tensor logits)");
  // wanted: d_visible_bias, d_hidden_bias, d_encoder, d_decoder; what is not wanted comes back empty.
  m.def(
      "nade_backward(Tensor? grad_log_prob, Tensor? grad_logits, Tensor v, Tensor logits, "
      "Tensor hidden_bias, Tensor encoder, Tensor decoder, bool[4] wanted) "
      "-> (Tensor d_visible_bias, Tensor d_hidden_bias, Tensor d_encoder, Tensor d_decoder)");
  // The same made of differentiable operations: in Python.
  m.def(
      "nade_vjp(Tensor? grad_log_prob, Tensor? grad_logits, Tensor v, Tensor visible_bias, "
      "Tensor hidden_bias, Tensor encoder, Tensor decoder, bool[4] wanted) "
      "-> (Tensor d_visible_bias, Tensor d_hidden_bias, Tensor d_encoder, Tensor d_decoder)");
  // v, drawn: v_i = uniform_i < sigmoid(l_i); uint8, and the logits along the way. It has no derivative.
  m.def(
      "nade_sample(Tensor uniform, Tensor visible_bias, Tensor hidden_bias, Tensor encoder, "
      "Tensor decoder) -> (Tensor v, Tensor logits)");
}

namespace {

// Operators whose functions are the same for the CPU and for CUDA.
void register_common(torch::Library& m) {
  m.impl("leaky_recurrence", limited<flat<&binding::leaky_recurrence>()>());
  m.impl("leaky_recurrence_backward", limited<flat<&binding::leaky_recurrence_backward>()>());
  m.impl("linear_recurrence", limited<flat<&binding::linear_recurrence>()>());
  m.impl("clipped_nesterov_", limited<&binding::clipped_nesterov>());
  m.impl("clipped_adamw_", limited<&binding::clipped_adamw>());
  m.impl("gradient_power_sum", limited<&binding::gradient_power_sum>());
  m.impl("nade", limited<&binding::nade>());
  m.impl("nade_backward", limited<&binding::nade_backward>());
  m.impl("nade_sample", limited<&binding::nade_sample>());
}

// Operators that accept sparse gradients in order to refuse them with a message.
void register_sparse(torch::Library& m) {
  m.impl("clipped_nesterov_", &binding::clipped_nesterov);
  m.impl("clipped_adamw_", &binding::clipped_adamw);
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnkernels, CPU, m) {
  register_common(m);
  m.impl("projected_recurrence", limited<flat<&binding::projected_recurrence>()>());
  m.impl("projected_recurrence_backward", limited<flat<&binding::projected_recurrence_backward>()>());
}
TORCH_LIBRARY_IMPL(rnnkernels, SparseCPU, m) {
  register_sparse(m);
  m.impl("gradient_power_sum", &binding::gradient_power_sum);
}
TORCH_LIBRARY_IMPL(rnnkernels, SparseCsrCPU, m) { register_sparse(m); }

#if defined(RNNKERNELS_CUDA)
TORCH_LIBRARY_IMPL(rnnkernels, CUDA, m) { register_common(m); }
TORCH_LIBRARY_IMPL(rnnkernels, SparseCUDA, m) {
  register_sparse(m);
  m.impl("gradient_power_sum", &binding::gradient_power_sum);
}
TORCH_LIBRARY_IMPL(rnnkernels, SparseCsrCUDA, m) { register_sparse(m); }
#endif

// First derivatives are in C++; those of the recurrence's backward operators and of the linear recurrence are
// in Python (rnnkernels/_autograd). The optimizers and draws are not differentiable and go to the kernel
// directly.
TORCH_LIBRARY_IMPL(rnnkernels, Autograd, m) {
  m.impl("leaky_recurrence", flat<&binding::leaky_recurrence_autograd>());
  m.impl("projected_recurrence", flat<&binding::projected_recurrence_autograd>());
  m.impl("clipped_nesterov_", torch::CppFunction::makeFallthrough());
  m.impl("clipped_adamw_", torch::CppFunction::makeFallthrough());
  m.impl("gradient_power_sum", torch::CppFunction::makeFallthrough());
  m.impl("nade", &binding::nade_autograd);
  m.impl("nade_sample", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(rnnkernels, Meta, m) {
  m.impl("leaky_recurrence", flat<&binding::leaky_recurrence_meta>());
  m.impl("projected_recurrence", flat<&binding::projected_recurrence_meta>());
  m.impl("leaky_recurrence_backward", flat<&binding::leaky_recurrence_backward_meta>());
  m.impl("projected_recurrence_backward", flat<&binding::projected_recurrence_backward_meta>());
  m.impl("linear_recurrence", flat<&binding::linear_recurrence_meta>());
  m.impl("nade", &binding::nade_meta);
  m.impl("nade_backward", &binding::nade_backward_meta);
  m.impl("nade_sample", &binding::nade_sample_meta);
}
