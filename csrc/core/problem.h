// The recurrence as plain data: the binding fills it in, and an engine reads it.
//
// Legend, in this order everywhere, rightmost index fastest:
//   G networks, T steps, B batch rows, H hidden units.
//
//   rate:     h_t = d h_{t-1} + (1-d) f(p_t + W h_{t-1})
//   current:  h_t = d h_{t-1} + (1-d) (p_t + W f(h_{t-1}))
//
// Source: Bengio, Boulanger-Lewandowski, Pascanu 2012 (arXiv 1212.0901), where d is called alpha.
// No torch, no allocation, no exceptions: pointers, sizes and strides counted in elements.
//
// Sequences and rows are stored in the element type `type`. The engine computes in float64 for float64, else
// in float32; the matrix, the decay and its gradient are given in that type, and the state and all sums are
// kept in it. Half precision is widened when it is read and rounded when it is written. For bfloat16 an
// engine may round both factors of a product with W to bfloat16.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/element_type.h"

namespace rnnkernels {

// The index of f in the list of core/nonlinearities.h.
using NonlinearityIndex = int;

enum class Form : int { kRate, kCurrent };

// Which rows belong to step t, and in which order the steps follow each other. A padded batch and a packed
// sequence are the same layout with different values: a packed one has `rows` and `offsets`, and `rows` never
// grows with t, so that rows 0 .. rows[t]-1 are the sequences that have a step t.
struct Layout {
  int64_t steps = 0;                 // T
  int64_t batch = 0;                 // B, the rows of step 0
  const int64_t* rows = nullptr;     // [T] rows of each step; null: B rows at every step
  const int64_t* offsets = nullptr;  // [T] first row of each step; null: steps are strided
  bool reverse = false;              // whether the forward pass goes from step T-1 down to step 0

  RNNKERNELS_INLINE int64_t rows_at(int64_t t) const { return rows ? rows[t] : batch; }
  // The index of a step's first row among the rows of all steps.
  RNNKERNELS_INLINE int64_t first_row(int64_t t) const { return offsets ? offsets[t] : t * batch; }
  // The factor of a sequence's step_stride.
  RNNKERNELS_INLINE int64_t position(int64_t t) const { return offsets ? offsets[t] : t; }

  // The state before a step: rows 0 .. carried_rows(t)-1 of step t continue the state that previous_step(t)
  // left, and its other rows begin with h0.
  //
  // The step before step t in the forward pass; -1 if step t is the first one.
  RNNKERNELS_INLINE int64_t previous_step(int64_t t) const {
    if (!reverse) return t - 1;
    return t + 1 < steps ? t + 1 : -1;
  }
  RNNKERNELS_INLINE int64_t carried_rows(int64_t t) const {
    const int64_t previous = previous_step(t);
    if (previous < 0) return 0;
    const int64_t mine = rows_at(t), before = rows_at(previous);
    return mine < before ? mine : before;
  }
};

// A sequence [G, T, B, H] (or [G, sum(rows), H]) whose units are contiguous.
struct Sequence {
  void* data = nullptr;
  int64_t network_stride = 0;
  // Between steps; equal to row_stride where the layout has offsets, which count rows.
  int64_t step_stride = 0;
  int64_t row_stride = 0;
};

// One row per batch element, [G, B, H], whose units are contiguous.
struct Rows {
  void* data = nullptr;
  int64_t network_stride = 0;
  int64_t row_stride = 0;
};

// A matrix per network, [G, H, H], with any strides. Read only.
struct Matrix {
  const void* data = nullptr;
  int64_t network_stride = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
};

// Values that the forward pass keeps for the backward pass, besides its output: the forward pass writes them,
// the backward pass reads them. Null: not kept. Each has one row for each row of all steps.
//   active:      [G, rows, ceil(H / 32)] words; bit i of a row says f'(z_i) = 1 (rate, f with a binary slope)
//   activation:  [G, rows, H] values f(z) (rate, other f)
//   decay_slope: [G, rows, H] values h_{t-1} - y_t, where h_t = d h_{t-1} + (1-d) y_t: the derivative of h_t by
//                d for a given past. In half precision only, and only if d_decay will be wanted, because the
//                rounded outputs do not give it: h_{t-1} - h_t is 1-d times as much.
struct Saved {
  Rows active;  // of words
  Rows activation;
  Rows decay_slope;
};

// The part that all passes have in common. Only read by the kernels, but for `saved`.
struct Recurrence {
  ElementType type = ElementType::kFloat32;
  NonlinearityIndex nonlinearity = 0;
  Form form = Form::kRate;
  int64_t networks = 1;  // G
  int64_t hidden = 0;    // H
  Layout layout;
  Matrix weight;                // W_hh
  const void* decay = nullptr;  // d: one value, or H of them
  int64_t decay_network_stride = 0;
  int64_t decay_stride = 0;  // 0: one value for all units
  Rows h0;                   // null: zero
  Saved saved;
};

struct ForwardProblem : Recurrence {
  Sequence pre;     // p, read; may be the output itself, because each p_t is read just before h_t is written
  Sequence output;  // h_t, written
  Rows h_n;         // the last state of each row, written
};

// With g_t the incoming gradient of h_t and c_t the gradient that step t+1 carries back to it:
//   rate:     delta_t = g_t + c_t;  u_t = (1-d) f'(z_t) delta_t;  c_{t-1} = d delta_t + W^T u_t
//   current:  delta_t = g_t + c_t;  u_t = (1-d) delta_t;  c_{t-1} = d delta_t + f'(h_{t-1}) W^T u_t
// d_pre is u. The sums over all steps (dW) are products (core/product.h), which the caller computes.
struct BackwardProblem : Recurrence {
  Sequence grad_output;  // g, read; null: zero
  Rows grad_h_n;         // read; null: zero
  Sequence output;       // h_t of the forward pass, read
  Sequence d_pre;        // u, written
  Rows d_h0;             // c_0, written; null: not wanted
  // sum_t delta_t (h_{t-1} - h_t) per row; sum_t delta_t (h_{t-1} - y_t) if saved.decay_slope is there.
  // float64 or float32, written; null: not wanted.
  Rows d_decay;
};

// The recurrence with f replaced by its slope:
//   y_t = d y_{t-1} + alpha_t * (W (beta_t * y_{t-1})) + r_t,   y_0 = h0
// The tangent of the forward pass is such a recurrence. Its adjoint is another one, with time reversed, W
// transposed, and alpha and beta exchanged. So derivatives of any order of the two are such recurrences, too.
struct LinearProblem : Recurrence {
  Sequence drive;   // r, read
  Sequence alpha;   // read; null: ones
  Sequence beta;    // read; null: ones
  Sequence output;  // y_t, written
};

}  // namespace rnnkernels
