// Elementary functions of a float, a double or a vector of them, within 3 ulp and without branches.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace rnnkernels {

namespace elementary {

// For a type V: the integers with the same bits, and the type of its elements.
template <class V>
struct Format {  // for a vector, whose comparisons give the integer vector of the same width
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
  static constexpr int kTerms = 7;          // of the series of e^r - 1, |r| <= ln(2) / 2
  static constexpr int kLogTerms = 8;       // of the series of atanh(s), 0 <= s <= 1 / 3
  static constexpr float kTanhOne = 10.0f;  // from here on tanh rounds to 1
  static constexpr float kExpMost = 87.0f;  // up to here e^x and e^-x are normal numbers
  static constexpr float kExpPast = 89.0f;  // here the power 2^n of e^x is infinite
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
  static constexpr int kTerms = 13;
  static constexpr int kLogTerms = 17;
  static constexpr double kTanhOne = 20.0;
  static constexpr double kExpMost = 708.0;
  static constexpr double kExpPast = 710.0;
};

template <class V>
using ConstantsOf = Constants<typename Format<V>::Element>;

template <class V>
RNNKERNELS_INLINE V magnitude(V x) {
  return __builtin_bit_cast(V, __builtin_bit_cast(typename Format<V>::Bits, x) & ~ConstantsOf<V>::kSign);
}

template <class Element>
RNNKERNELS_INLINE constexpr Element inverse_factorial(int n) {
  double product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return static_cast<Element>(1 / product);
}

// e^y = power (1 + rest) with power = 2^n and y = n ln 2 + r, for |y| <= kExpMost, or beyond where a member
// says so. NaN stays NaN.
template <class V>
struct Exponential {
  V power, rest;

  RNNKERNELS_INLINE explicit Exponential(V y) {
    using C = ConstantsOf<V>;
    using Bits = typename Format<V>::Bits;
    using Element = typename Format<V>::Element;
    const V shifted = y * C::kLog2E + C::kRound;
    const V n = shifted - C::kRound;
    power = __builtin_bit_cast(V, (__builtin_bit_cast(Bits, shifted) << C::kMantissaBits) + C::kOne);
    const V r = (y - n * C::kLn2High) - n * C::kLn2Low;
    // e^r - 1 = r + r^2/2! + r^3/3! + ... by Horner's rule.
    V series = V{} + inverse_factorial<Element>(C::kTerms);
    RNNKERNELS_UNROLL
    for (int i = C::kTerms - 1; i > 0; --i) series = inverse_factorial<Element>(i) + series * r;
    rest = series * r;
  }
  RNNKERNELS_INLINE V exp() const { return power + power * rest; }
  // 1 + e^y, for y up to kExpPast, where it is infinite.
  RNNKERNELS_INLINE V one_plus_exp() const { return 1 + power * (1 + rest); }
  // e^y - 1. Nothing cancels, so the relative error is small for small y, too.
  RNNKERNELS_INLINE V expm1() const { return power * rest + (power - 1); }
};

}  // namespace elementary

// tanh(x) = sign(x) E / (E + 2) with E = e^{2|x|} - 1.
template <class V>
RNNKERNELS_INLINE V tanh_of(V x) {
  using Bits = typename elementary::Format<V>::Bits;
  using C = elementary::ConstantsOf<V>;
  const Bits sign = __builtin_bit_cast(Bits, x) & C::kSign;
  const V size = elementary::magnitude(x);
  const V e = elementary::Exponential<V>(2 * (size > C::kTanhOne ? V{} + C::kTanhOne : size)).expm1();
  return __builtin_bit_cast(V, __builtin_bit_cast(Bits, e / (e + 2)) | sign);
}

// e^{-y} for y >= 0, and exactly 0 where that is subnormal.
template <class V>
RNNKERNELS_INLINE V exp_minus(V y) {
  using C = elementary::ConstantsOf<V>;
  const V bounded = y > C::kExpMost ? V{} + C::kExpMost : y;
  return y > C::kExpMost ? V{} : elementary::Exponential<V>(-bounded).exp();
}

// 1 - e^{-y} for y >= 0.
template <class V>
RNNKERNELS_INLINE V one_minus_exp_minus(V y) {
  using C = elementary::ConstantsOf<V>;
  return -elementary::Exponential<V>(-(y > C::kExpMost ? V{} + C::kExpMost : y)).expm1();
}

// log(1 + w) = 2 atanh(w / (2 + w)) for 0 <= w <= 1.
template <class V>
RNNKERNELS_INLINE V log_one_plus(V w) {
  using C = elementary::ConstantsOf<V>;
  using Element = typename elementary::Format<V>::Element;
  const V s = w / (2 + w), square = s * s;
  V series = V{} + Element(1) / (2 * C::kLogTerms + 1);
  RNNKERNELS_UNROLL
  for (int i = C::kLogTerms - 1; i >= 0; --i) series = Element(1) / (2 * i + 1) + series * square;
  return 2 * s * series;
}

}  // namespace rnnkernels
