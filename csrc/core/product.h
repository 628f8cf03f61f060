// A matrix product as plain data: the sums over whole sequences before and after the recurrence.
//
//   out[m][n] = sum_k left[m][k] right[k][n]  (+ bias[n])  (+ addend[m][n])
//
// for each of G networks. The input projection is such a product (m: rows of all steps, k: inputs, n: units),
// and so are its two gradients and the gradient of W_hh.
#pragma once

#include "core/problem.h"

namespace rnnkernels {

struct Product {
  ElementType type = ElementType::kFloat32;  // or kFloat64
  int64_t networks = 1;                      // G
  int64_t rows = 0;                          // m
  int64_t depth = 0;                         // k
  int64_t columns = 0;                       // n
  Matrix left;                               // [G, m, k], any strides, read
  Matrix right;                              // [G, k, n], any strides, read
  Rows bias;                                 // [G, 1, n], read; null: none
  Rows addend;                               // [G, m, n], read; null: none; may be `out`, to add to it
  Rows out;                                  // [G, m, n], written; its rows must not overlap
};

}  // namespace rnnkernels
