// A matrix product as plain data: the sums over whole sequences that surround the recurrence.
//
//   out[m][n] = sum_k left[m][k] right[k][n]  (+ bias[n])  (+ addend[m][n])
//
// for each of G networks. The input projection is one (m: rows of all steps, k: inputs, n: units), and
// so are its two gradients and that of W_hh.
#pragma once

#include "core/problem.h"

namespace rnnkernels {

struct Product {
  ElementType type = ElementType::kFloat32;  // or kFloat64
  int64_t networks = 1;                      // G
  int64_t rows = 0;                          // m
  int64_t depth = 0;                         // k
  int64_t columns = 0;                       // n
  Matrix left;                               // [G, m, k], any strides
  Matrix right;                              // [G, k, n], any strides
  Rows bias;                                 // [G, 1, n]; null: none
  Rows addend;                               // [G, m, n]; null: none; out itself, to add to what is there
  Rows out;                                  // [G, m, n], written; the rows must not overlap
};

}  // namespace rnnkernels
