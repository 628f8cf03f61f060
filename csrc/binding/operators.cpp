// The operators as PyTorch knows them. Adding one: its schema here, its CPU and Meta function, its
// autograd formula and its only caller in rnnkernels/_ops.py.
#include <torch/library.h>

#include "binding/recurrence.h"

// pre          p [T, B, H], or [sum(batch_sizes), H]; with a leading G if weight_hh is [G, H, H]
// h0           [B, H], or nothing for zero
// decay        d: one value, [H], or [G, H]
// batch_sizes  int64 on the CPU, as in a PackedSequence
// save         whether a backward will follow
// returns output (like pre), h_n [B, H], and what backward needs besides the output
TORCH_LIBRARY(rnnkernels, m) {
  m.def(
      "leaky_recurrence(Tensor pre, Tensor? h0, Tensor weight_hh, Tensor decay, Tensor? batch_sizes, "
      "str nonlinearity, str form, bool reverse, bool save) "
      "-> (Tensor output, Tensor h_n, Tensor saved)");
  // wanted: d_pre (always made), d_h0, d_weight_hh, d_decay; what is not wanted comes back empty.
  m.def(
      "leaky_recurrence_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor output, Tensor saved, "
      "Tensor? h0, Tensor weight_hh, Tensor decay, Tensor? batch_sizes, str nonlinearity, str form, "
      "bool reverse, bool[4] wanted) "
      "-> (Tensor d_pre, Tensor d_h0, Tensor d_weight_hh, Tensor d_decay)");
  // y_t = d y_{t-1} + alpha_t (W (beta_t y_{t-1})) + drive_t; all sequences are shaped like drive. d may
  // be anything; in a packed sequence h0 must be given.
  m.def(
      "linear_recurrence(Tensor drive, Tensor? h0, Tensor weight_hh, Tensor decay, Tensor? alpha, "
      "Tensor? beta, Tensor? batch_sizes, bool reverse) -> Tensor");
}

TORCH_LIBRARY_IMPL(rnnkernels, CPU, m) {
  m.impl("leaky_recurrence", &rnnkernels::binding::leaky_recurrence_cpu);
  m.impl("leaky_recurrence_backward", &rnnkernels::binding::leaky_recurrence_backward_cpu);
  m.impl("linear_recurrence", &rnnkernels::binding::linear_recurrence_cpu);
}

TORCH_LIBRARY_IMPL(rnnkernels, Meta, m) {
  m.impl("leaky_recurrence", &rnnkernels::binding::leaky_recurrence_meta);
  m.impl("leaky_recurrence_backward", &rnnkernels::binding::leaky_recurrence_backward_meta);
  m.impl("linear_recurrence", &rnnkernels::binding::linear_recurrence_meta);
}
