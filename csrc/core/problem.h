// The recurrence as plain data: what the binding fills in and what an engine reads.
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
// `type` is what sequences and rows are stored as. What is computed is float64 for float64, else float32: the
// state and all sums, the matrix, the decay and its gradient are that. Half precision is widened as it is
// read and rounded as it is written. For bfloat16 an engine may round what W is multiplied with, and W, to
// bfloat16.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/element_type.h"

namespace rnnkernels {

// Which f, as the index of its row in the list of core/nonlinearities.h.
using NonlinearityIndex = int;

enum class Form : int { kRate, kCurrent };

// Which rows belong to step t. A padded batch and a packed sequence are the same layout with other
// numbers: a packed one has `rows` and `offsets`, and rows never grows with t.
struct Layout {
  int64_t steps = 0;                 // T
  int64_t batch = 0;                 // B, the rows of step 0
  const int64_t* rows = nullptr;     // [T] rows of each step; null: B at every step
  const int64_t* offsets = nullptr;  // [T] where a step's first row lies; null: steps are strided
  bool reverse = false;              // walk from step T-1 down to step 0

  RNNKERNELS_INLINE int64_t rows_at(int64_t t) const { return rows ? rows[t] : batch; }
  // Where a step begins among the rows of all steps.
  RNNKERNELS_INLINE int64_t first_row(int64_t t) const { return offsets ? offsets[t] : t * batch; }
  // What a sequence's step_stride is multiplied with.
  RNNKERNELS_INLINE int64_t position(int64_t t) const { return offsets ? offsets[t] : t; }
};

// A sequence [G, T, B, H] (or [G, sum(rows), H]) whose units are contiguous.
struct Sequence {
  void* data = nullptr;
  int64_t network_stride = 0;
  int64_t step_stride = 0;  // where the layout has offsets, the row_stride: they count rows
  int64_t row_stride = 0;
};

// One row a batch element, [G, B, H], units contiguous.
struct Rows {
  void* data = nullptr;
  int64_t network_stride = 0;
  int64_t row_stride = 0;
};

// A matrix per network, [G, H, H], any strides.
struct Matrix {
  const void* data = nullptr;
  int64_t network_stride = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
};

// What the forward walk keeps for the backward one, besides its output.
//   active:     [G, rows, ceil(H / 32)] words; bit i of a row says f'(z_i) = 1 (rate, f with a binary slope)
//   activation: [G, rows, H] values f(z) (rate, other f)
// A null pointer means: not kept.
struct Saved {
  uint32_t* active = nullptr;
  int64_t active_network_stride = 0;
  void* activation = nullptr;
  int64_t activation_network_stride = 0;
};

// What both directions share.
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
  Sequence pre;     // p, read only
  Sequence output;  // h_t, written
  Rows h_n;         // each row's last state, written
};

// With g_t the incoming gradient of h_t and c_t the one carried down from step t+1:
//   rate:     delta_t = g_t + c_t;  u_t = (1-d) f'(z_t) delta_t;  c_{t-1} = d delta_t + W^T u_t
//   current:  delta_t = g_t + c_t;  u_t = (1-d) delta_t;  c_{t-1} = d delta_t + f'(h_{t-1}) W^T u_t
// d_pre is u; the sums over all steps (dW) are products (core/product.h) and the caller's.
struct BackwardProblem : Recurrence {
  Sequence grad_output;  // g, read only; null: zero
  Rows grad_h_n;         // read only; null: zero
  Sequence output;       // h_t of the forward walk, read only
  Sequence d_pre;        // u, written
  Rows d_h0;             // c_0, written
  Rows d_decay;          // sum_t delta_t (h_{t-1} - h_t) for each row, computed, written; null: not wanted
};

// What is left of the recurrence where f is replaced by its slope:
//   y_t = d y_{t-1} + alpha_t * (W (beta_t * y_{t-1})) + r_t,   y_0 = h0
// The tangent of the forward walk is one such walk, its adjoint is another (time reversed, W
// transposed, alpha and beta changed for each other), and so are the derivatives of any order of both.
struct LinearProblem : Recurrence {
  Sequence drive;   // r, read only
  Sequence alpha;   // read only; null: ones
  Sequence beta;    // read only; null: ones
  Sequence output;  // y_t, written
};

}  // namespace rnnkernels
