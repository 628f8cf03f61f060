// NADE, the neural autoregressive distribution estimator, as plain data: the binding fills it in, and a
// kernel reads it.
//
// Legend, rightmost index fastest: N rows, D visible units, H hidden units.
//
//   a_1 = c             h_i = sigmoid(a_i)            l_i = b_i + V_i . h_i
//   a_{i+1} = a_i + v_i W_i                           p(v_i = 1 | v_<i) = sigmoid(l_i)
//   log p(v) = sum_i v_i l_i - softplus(l_i)
//
// v is binary, so h changes only behind a unit with v_i = 1. A row is therefore divided into segments that
// end with its ones, and sigmoids are computed once per segment. Backward, with the gradients g of log p and
// q of l:
//
//   dl_i = g (v_i - sigmoid(l_i)) + q_i = db_i
//   da = 0;  for i = D ... 1:   dW_i += v_i da;   dV_i += dl_i h_i;   da += dl_i V_i * h_i (1 - h_i)
//   dc = da
//
// Once dl is known, hidden units do not depend on each other.
//
// Source: Larochelle and Murray 2011 ("The Neural Autoregressive Distribution Estimator", AISTATS).
// No torch, no allocation, no exceptions. All arrays are contiguous, and none overlaps another.
#pragma once

#include <cstdint>

#include "core/element_type.h"

namespace rnnkernels {

struct Nade {
  ElementType type = ElementType::kFloat32;  // or kFloat64: of all arrays but v and drawn
  int64_t rows = 0;                          // N
  int64_t visible = 0;                       // D
  int64_t hidden = 0;                        // H
  const void* hidden_bias = nullptr;         // c [N, H], read
  const void* encoder = nullptr;             // W [D, H], read
  const void* decoder = nullptr;             // V [D, H], read
};

struct NadeForward : Nade {
  const void* visible_bias = nullptr;  // b [N, D], read
  const uint8_t* v = nullptr;          // [N, D], 0 or 1, read; null: sample instead
  const void* uniform = nullptr;       // [N, D], read when sampling: v_i = uniform_i < sigmoid(l_i)
  uint8_t* drawn = nullptr;            // the sampled v [N, D], written when sampling
  void* logits = nullptr;              // l [N, D], written
  void* log_prob = nullptr;            // [N], written; null: not wanted
};

struct NadeBackward : Nade {
  const uint8_t* v = nullptr;           // [N, D], 0 or 1, read
  const void* logits = nullptr;         // l [N, D] of the forward pass, read
  const void* grad_log_prob = nullptr;  // g [N], read; null: zero
  const void* grad_logits = nullptr;    // q [N, D], read; null: zero
  void* d_visible_bias = nullptr;       // [N, D], written
  // The other gradients: all of them written, or all null where none is wanted.
  void* d_hidden_bias = nullptr;  // [N, H]
  void* d_encoder = nullptr;      // [D, H]
  void* d_decoder = nullptr;      // [D, H]
};

}  // namespace rnnkernels
