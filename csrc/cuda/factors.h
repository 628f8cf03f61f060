// The factors of the product W_hh x, 16 units times 8 rows per warp (the fragments of device.h).
//
//   BFloat16Factors   products of bfloat16, 16 deep: both factors are rounded to bfloat16
//   FloatFactors      products of TF32, 8 deep.
//                     Exact: float32 from three products. With a = a' + a'', where a' has the 11 digits of
//                     TF32 and a'' the rest,
//                       a b = a'' b' + a' b'' + a' b'   to about 2^-21
//                     Not exact: one product, of a and b rounded to the 11 digits of TF32
//
// A row of the operand consists of words of 32 bits, 8 per slice, for either type.
#pragma once

#include "core/elements.h"
#include "cuda/device.h"
#include "cuda/plan.h"

namespace rnnkernels::cuda {

// A word of the operand and its position: the row of the team, and the word within 16 units.
struct OperandWord {
  int row, word;
  uint32_t bits;
};

struct BFloat16Factors {
  static constexpr int kUnitsOfWord = 2;
  static constexpr int kDepth = kUnitsOfWord * static_cast<int>(kSliceWords);
  static constexpr int kWordsOfLane = 2;
  using A = device::BFloat16Fragments::A;

  RNNKERNELS_DEVICE explicit BFloat16Factors(bool /*exact*/) {}

  // `get(i, k)` returns the element of W_hh in row i of the tile, column k of the slice.
  template <class Get>
  static RNNKERNELS_DEVICE A matrix(int lane, const Get& get) {
    A a;
    RNNKERNELS_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i % 2 * 8, column = lane % 4 * 2 + i / 2 * 8;
      a.x[i] = device::rounded_pair(get(row, column), get(row, column + 1));
    }
    return a;
  }
  // The words that contain a lane's four elements (device.h, Sums). A word has two units, so neighbouring
  // lanes in g exchange elements: each gives one row's element and gets the other's.
  static RNNKERNELS_DEVICE void words(int lane, const float (&x)[4], OperandWord (&to)[kWordsOfLane]) {
    const bool odd = lane / 4 % 2;
    RNNKERNELS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float even_row = x[2 * half], odd_row = x[2 * half + 1];
      // Opaque, because otherwise the choice becomes a branch with a shuffle on either side.
      const float got = device::shuffle_xor(device::opaque(odd ? even_row : odd_row), 4);
      const uint32_t bits = device::rounded_pair(odd ? got : even_row, odd ? odd_row : got);
      to[half] = {lane % 4 * 2 + odd, lane / 8 + 4 * half, bits};
    }
  }
  RNNKERNELS_DEVICE void multiply(device::Sums& sums, const A& a, uint32_t above, uint32_t below) const {
    device::multiply_add(sums, a, device::BFloat16Fragments::B{{above, below}});
  }
};

class FloatFactors {
 public:
  static constexpr int kUnitsOfWord = 1;
  static constexpr int kDepth = kUnitsOfWord * static_cast<int>(kSliceWords);
  static constexpr int kWordsOfLane = 4;
  using A = device::TF32Fragments::A;

  RNNKERNELS_DEVICE explicit FloatFactors(bool exact) : exact_(exact) {}

  template <class Get>
  RNNKERNELS_DEVICE A matrix(int lane, const Get& get) const {
    A a;
    RNNKERNELS_UNROLL
    for (int i = 0; i < 4; ++i) a.x[i] = factor(get(lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4));
    return a;
  }
  RNNKERNELS_DEVICE void words(int lane, const float (&x)[4], OperandWord (&to)[kWordsOfLane]) const {
    RNNKERNELS_UNROLL
    for (int i = 0; i < 4; ++i) {
      to[i] = {lane % 4 * 2 + i % 2, lane / 4 + i / 2 * 8, __builtin_bit_cast(uint32_t, factor(x[i]))};
    }
  }
  RNNKERNELS_DEVICE void multiply(device::Sums& sums, const A& a, uint32_t above, uint32_t below) const {
    const B b{{__builtin_bit_cast(float, above), __builtin_bit_cast(float, below)}};
    if (!exact_) return device::multiply_add(sums, a, b);
    // Opaque, because otherwise the matrix is split once for all steps and needs twice the registers.
    A a_upper, a_rest;
    B b_upper, b_rest;
    RNNKERNELS_UNROLL
    for (int i = 0; i < 4; ++i) split(device::opaque(a.x[i]), a_upper.x[i], a_rest.x[i]);
    RNNKERNELS_UNROLL
    for (int i = 0; i < 2; ++i) split(b.x[i], b_upper.x[i], b_rest.x[i]);
    device::multiply_add(sums, a_rest, b_upper);
    device::multiply_add(sums, a_upper, b_rest);
    device::multiply_add(sums, a_upper, b_upper);
  }

 private:
  using B = device::TF32Fragments::B;
  const bool exact_;

  // The product ignores the lower 13 bits, so the factor is rounded to nearest first, as libraries do.
  RNNKERNELS_DEVICE float factor(float x) const {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    return exact_ || x != x ? x : __builtin_bit_cast(float, (bits + 0x1000u) & 0xffffe000u);
  }
  static RNNKERNELS_DEVICE void split(float x, float& upper, float& rest) {
    upper = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, x) & 0xffffe000u);
    // Infinity and NaN remain in `upper`.
    rest = x - upper == x - upper ? x - upper : 0.0f;
  }
};

}  // namespace rnnkernels::cuda
