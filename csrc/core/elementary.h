// Elementary functions for one number or a vector of them, within 3 ulp and without branches.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace rnnkernels {

namespace elementary {

// The integers that lie over the bits of V, and the constants of V's format.
template <class V>
struct Format {  // a vector: its comparisons yield the integer vector of the same width
  using Bits = decltype(V{} < V{});
  using Element = __typeof__(V{}[0] + V{}[0]);
};
template <>
struct Format<float> {
  using Bits = int32_t;
  using Element = float;
};
template <>
struct Format<double> {
  using Bits = int64_t;
  using Element = double;
};

template <class Element>
struct Constants;
template <>
struct Constants<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr int32_t kOne = 0x3f800000;
  static constexpr int32_t kSign = INT32_MIN;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves the rounded integer in the low bits
  static constexpr float kLog2E = 0x1.715476p0f;
  static constexpr float kLn2High = 0x1.62e4p-1f;  // few bits: times a small integer it is exact
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr int kTerms = 8;          // of the series of e^r - 1, |r| <= ln(2) / 2
  static constexpr float kTanhOne = 10.0f;  // from here on tanh rounds to 1
};
template <>
struct Constants<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr int64_t kOne = 0x3ff0000000000000;
  static constexpr int64_t kSign = INT64_MIN;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLog2E = 0x1.71547652b82fep0;
  static constexpr double kLn2High = 0x1.62e42fee0p-1;
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr int kTerms = 14;
  static constexpr double kTanhOne = 20.0;
};

}  // namespace elementary

// tanh(x) = E / (E + 2) with E = e^{2|x|} - 1, and the sign of x. E comes from 2|x| = n ln 2 + r as
// 2^n (e^r - 1) + (2^n - 1): no term cancels, so small x keep their relative accuracy.
template <class V>
RNNKERNELS_INLINE V tanh_of(V x) {
  using Bits = typename elementary::Format<V>::Bits;
  using C = elementary::Constants<typename elementary::Format<V>::Element>;
  const Bits sign = __builtin_bit_cast(Bits, x) & C::kSign;
  const V magnitude = __builtin_bit_cast(V, __builtin_bit_cast(Bits, x) ^ sign);
  const V y = 2 * (magnitude > C::kTanhOne ? V{} + C::kTanhOne : magnitude);

  const V shifted = y * C::kLog2E + C::kRound;
  const V n = shifted - C::kRound;
  const V power = __builtin_bit_cast(V, (__builtin_bit_cast(Bits, shifted) << C::kMantissaBits) + C::kOne);
  const V r = (y - n * C::kLn2High) - n * C::kLn2Low;

  // e^r - 1 = r + r^2/2! + r^3/3! + ... in Horner's form from the last term on.
  V series = V{} + 1;
  RNNKERNELS_UNROLL
  for (int i = C::kTerms; i > 1; --i) {
    series = 1 + series * r * (typename elementary::Format<V>::Element(1) / i);
  }
  const V expm1 = power * (series * r) + (power - 1);
  const V result = expm1 / (expm1 + 2);
  return __builtin_bit_cast(V, __builtin_bit_cast(Bits, result) | sign);
}

}  // namespace rnnkernels
