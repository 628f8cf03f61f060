// NADE, the neural autoregressive distribution estimator, as plain data: what the binding fills in and what a
// kernel reads.
//
// Legend, rightmost index fastest: N rows, D visible units, H hidden units.
//
//   a_1 = c             h_i = sigmoid(a_i)            l_i = b_i + V_i . h_i
//   a_{i+1} = a_i + v_i W_i                           p(v_i = 1 | v_<i) = sigmoid(l_i)
//   log p(v) = sum_i v_i l_i - softplus(l_i)
//
// v is binary, so h changes only where v_i = 1: a row is walked in segments that end with its ones, and only
// there are sigmoids made. Backward, of the gradients g of log p and q of l:
//
//   dl_i = g (v_i - sigmoid(l_i)) + q_i = db_i
//   da = 0;  for i = D ... 1:   dW_i += v_i da;   dV_i += dl_i h_i;   da += dl_i V_i * h_i (1 - h_i)
//   dc = da
//
// in which, once dl is known, no hidden unit meets another.
//
// Source: Larochelle and Murray 2011 ("The Neural Autoregressive Distribution Estimator", AISTATS).
// No torch, no allocation, no exceptions. All arrays are dense; each lies in memory of its own.
#pragma once

#include <cstdint>

#include "core/element_type.h"

namespace rnnkernels {

struct Nade {
  ElementType type = ElementType::kFloat32;  // or kFloat64: of all arrays but v
  int64_t rows = 0;                          // N
  int64_t visible = 0;                       // D
  int64_t hidden = 0;                        // H
  const void* hidden_bias = nullptr;         // c [N, H]
  const void* encoder = nullptr;             // W [D, H]
  const void* decoder = nullptr;             // V [D, H]
};

struct NadeForward : Nade {
  const void* visible_bias = nullptr;  // b [N, D]
  const uint8_t* v = nullptr;          // [N, D], 0 or 1; null: it is drawn
  const void* uniform = nullptr;       // [N, D], for what is drawn: v_i = uniform_i < sigmoid(l_i)
  uint8_t* drawn = nullptr;            // [N, D], written
  void* logits = nullptr;              // l [N, D], written
  void* log_prob = nullptr;            // [N], written; null: not wanted
};

struct NadeBackward : Nade {
  const uint8_t* v = nullptr;           // [N, D]
  const void* logits = nullptr;         // l [N, D]
  const void* grad_log_prob = nullptr;  // g [N]; null: zero
  const void* grad_logits = nullptr;    // q [N, D]; null: zero
  void* d_visible_bias = nullptr;       // [N, D], written
  void* d_hidden_bias = nullptr;        // [N, H], written
  void* d_encoder = nullptr;            // [D, H], written; null: neither this one nor its neighbours
  void* d_decoder = nullptr;            // [D, H], written
};

}  // namespace rnnkernels
