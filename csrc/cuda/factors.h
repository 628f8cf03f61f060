// What W_hh is multiplied with and as what, for 16 units times 8 rows of a warp (the fragments of device.h).
//
//   BFloat16Factors   products of bfloat16, 16 deep: both factors are rounded to it
//   FloatFactors      float32 out of three products of TF32, 8 deep: with a = a' + a'', of which the product
//   sees
//                     a' whole and of a'' the upper digits,  a b = a'' b' + a' b'' + a' b'  to about 2^-21
#pragma once

#include "core/elements.h"
#include "cuda/device.h"

#if defined(__CUDACC__)
#define RNNKERNELS_DEVICE __device__ __forceinline__
#else
#define RNNKERNELS_DEVICE inline
#endif

namespace rnnkernels::cuda {

struct BFloat16Factors {
  static constexpr int kDepth = 16;
  static constexpr int kPadding = 8;  // elements between rows of the operand, against bank conflicts
  using Element = uint16_t;
  using Fragments = device::BFloat16Fragments;

  static RNNKERNELS_DEVICE Element element(float x) {
    return static_cast<Element>(rounded<uint32_t>(BFloat16{}, x));
  }
  // `get(i, k)` is the matrix, row i of the tile, column k of the slice.
  template <class Get>
  static RNNKERNELS_DEVICE Fragments::A matrix(int lane, const Get& get) {
    Fragments::A a;
    RNNKERNELS_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i % 2 * 8, column = lane % 4 * 2 + i / 2 * 8;
      a.x[i] = element(get(row, column)) | static_cast<uint32_t>(element(get(row, column + 1))) << 16;
    }
    return a;
  }
  // The operand [8][stride] of a slice that begins at `depth`.
  static RNNKERNELS_DEVICE Fragments::B operand(int lane, const device::Shared<Element>& x, int64_t stride,
                                                int64_t depth) {
    const int64_t at = lane / 4 * stride + depth + lane % 4 * 2;
    return {{x.template load<uint32_t>(at), x.template load<uint32_t>(at + 8)}};
  }
  static RNNKERNELS_DEVICE void multiply(device::Sums& sums, const Fragments::A& a, const Fragments::B& b) {
    device::multiply_add(sums, a, b);
  }
};

struct FloatFactors {
  static constexpr int kDepth = 8;
  static constexpr int kPadding = 4;
  using Element = float;
  using Fragments = device::TF32Fragments;

  static RNNKERNELS_DEVICE Element element(float x) { return x; }
  template <class Get>
  static RNNKERNELS_DEVICE Fragments::A matrix(int lane, const Get& get) {
    Fragments::A a;
    RNNKERNELS_UNROLL
    for (int i = 0; i < 4; ++i) a.x[i] = get(lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4);
    return a;
  }
  static RNNKERNELS_DEVICE Fragments::B operand(int lane, const device::Shared<Element>& x, int64_t stride,
                                                int64_t depth) {
    const int64_t at = lane / 4 * stride + depth + lane % 4;
    return {{x[at], x[at + 4]}};
  }
  static RNNKERNELS_DEVICE void multiply(device::Sums& sums, const Fragments::A& a, const Fragments::B& b) {
    Fragments::A above, below;
    Fragments::B upper, lower;
    RNNKERNELS_UNROLL
    for (int i = 0; i < 4; ++i) split(a.x[i], above.x[i], below.x[i]);
    RNNKERNELS_UNROLL
    for (int i = 0; i < 2; ++i) split(b.x[i], upper.x[i], lower.x[i]);
    device::multiply_add(sums, below, upper);
    device::multiply_add(sums, above, lower);
    device::multiply_add(sums, above, upper);
  }

 private:
  static RNNKERNELS_DEVICE void split(float x, float& above, float& below) {
    above = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, x) & 0xffffe000u);
    // What is infinite or not a number stays so in one of the parts.
    below = x - above == x - above ? x - above : 0.0f;
  }
};

}  // namespace rnnkernels::cuda
