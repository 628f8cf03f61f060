// sum (|g| / unit)^p, or max |g|, over one chunk of a gradient, in float64.
//
// The square of a float32 has at most 48 bits and can neither overflow nor underflow in float64, so the only
// roundings are those of the additions, at most a thousand per lane.
#pragma once

#include <cstdint>

#include "core/elements.h"
#include "cpu/simd.h"

namespace rnnkernels {
namespace {

constexpr int kWide = kLanes<double>;
constexpr int kSums = 8;  // independent chains of additions, enough to hide the latency of one

template <class E>
RNNKERNELS_INLINE Vec<double> load_wide(const E* from) {
  Vec<double> v{};
  for (int i = 0; i < kWide; ++i) v[i] = widen(from[i]);
  return v;
}
template <>
RNNKERNELS_INLINE Vec<double> load_wide<float>(const float* from) {
  typedef float Narrow __attribute__((vector_size(kVectorBytes / 2)));
  Narrow v;
  std::memcpy(&v, from, sizeof(v));
  return __builtin_convertvector(v, Vec<double>);
}
template <>
RNNKERNELS_INLINE Vec<double> load_wide<double>(const double* from) {
  return load(from);
}

struct Square {
  static RNNKERNELS_INLINE Vec<double> add(Vec<double> sum, Vec<double> x) { return sum + x * x; }
  static RNNKERNELS_INLINE double add(double sum, double x) { return sum + x * x; }
  static RNNKERNELS_INLINE double join(double a, double b) { return a + b; }
};
struct Magnitude {
  static RNNKERNELS_INLINE Vec<double> add(Vec<double> sum, Vec<double> x) { return sum + (x < 0 ? -x : x); }
  static RNNKERNELS_INLINE double add(double sum, double x) { return sum + __builtin_fabs(x); }
  static RNNKERNELS_INLINE double join(double a, double b) { return a + b; }
};
// A maximum that stays NaN once it has met one.
struct Largest {
  static RNNKERNELS_INLINE Vec<double> add(Vec<double> most, Vec<double> x) {
    const Vec<double> a = x < 0 ? -x : x;
    return ((a > most) | (a != a)) ? a : most;
  }
  static RNNKERNELS_INLINE double add(double most, double x) { return join(most, __builtin_fabs(x)); }
  static RNNKERNELS_INLINE double join(double a, double b) { return b > a || b != b ? b : a; }
};

template <class Op, class E>
double reduce(const E* from, int64_t n) {
  Vec<double> sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kWide <= n; i += kSums * kWide) {
    RNNKERNELS_UNROLL
    for (int k = 0; k < kSums; ++k) sums[k] = Op::add(sums[k], load_wide(from + i + k * kWide));
  }
  double result = 0;
  for (; i < n; ++i) result = Op::add(result, double(widen(from[i])));
  for (int k = 0; k < kSums; ++k) {
    for (int lane = 0; lane < kWide; ++lane) result = Op::join(result, sums[k][lane]);
  }
  return result;
}

// sum (|g| / unit)^p for any p; a unit other than 1 keeps the powers in float64's range.
template <class E>
double reduce_powers(const E* from, int64_t n, double p, double unit) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += __builtin_pow(__builtin_fabs(widen(from[i])) / unit, p);
  return sum;
}

template <class E>
double chunk_power_sum(const E* from, int64_t n, double p, double unit) {
  if (p == __builtin_inf()) return reduce<Largest>(from, n);
  if (unit != 1) return reduce_powers(from, n, p, unit);
  if (p == 2) return reduce<Square>(from, n);
  if (p == 1) return reduce<Magnitude>(from, n);
  return reduce_powers(from, n, p, 1.0);
}

}  // namespace
}  // namespace rnnkernels
