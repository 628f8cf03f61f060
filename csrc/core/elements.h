// The elements of tensors, and their conversion from and to the type that kernels compute in: float64 for
// float64, else float32. Half precision is converted with integer arithmetic, so that it needs no special
// instructions and works on vectors, too.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/element_type.h"

namespace rnnkernels {
namespace {

struct BFloat16 {
  using ComputeType = float;
  uint16_t bits;
};
struct Float16 {
  using ComputeType = float;
  uint16_t bits;
};

// ComputeType<E> is the type that elements of type E are computed in.
template <class E>
struct ComputeTypeOf {
  using type = typename E::ComputeType;
};
template <>
struct ComputeTypeOf<float> {
  using type = float;
};
template <>
struct ComputeTypeOf<double> {
  using type = double;
};

template <class E>
using ComputeType = typename ComputeTypeOf<E>::type;

template <class E>
constexpr bool kIsHalf = sizeof(E) == 2;

// The value of a half as a float, from its 16 bits in an integer of 32. F is float and U uint32_t, or both
// are vectors of them.
template <class F, class U>
RNNKERNELS_INLINE F widened(BFloat16, U bits) {
  return __builtin_bit_cast(F, bits << 16);
}
// A multiplication raises the exponent by 112, which also makes subnormal values normal.
template <class F, class U>
RNNKERNELS_INLINE F widened(Float16, U bits) {
  const F magnitude = __builtin_bit_cast(F, (bits & 0x7fff) << 13) * 0x1p112f;
  const U special = magnitude >= 65536.0f ? U{} + 0x7f800000u : U{};  // infinity and NaN
  return __builtin_bit_cast(F, __builtin_bit_cast(U, magnitude) | special | (bits & 0x8000) << 16);
}

// The bits of a float rounded to a half: to nearest, ties to even.
template <class U, class F>
RNNKERNELS_INLINE U rounded(BFloat16, F x) {
  const U bits = __builtin_bit_cast(U, x);
  return x != x ? U{} + 0x7fc0u : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
// The sum with a power of two rounds, because its last place is that of the half: 2^13 times the power of two
// in x, or 0.5 where the half is subnormal.
template <class U, class F>
RNNKERNELS_INLINE U rounded(Float16, F x) {
  const U bits = __builtin_bit_cast(U, x);
  const U sign = bits & 0x80000000u, magnitude = bits ^ sign;
  const U limited = magnitude > 0x47800000u ? U{} + 0x47800000u : magnitude;  // 65536 is infinity below
  const U scaled = (limited & 0x7f800000u) + 0x06800000u;
  const U power = scaled > 0x3f000000u ? scaled : U{} + 0x3f000000u;
  const U sum = __builtin_bit_cast(U, __builtin_bit_cast(F, limited) + __builtin_bit_cast(F, power));
  // The fraction of a normal half includes its leading 1 here, so the exponent is less by 1.
  const U fraction = sum - power, exponent = (power - 0x3f000000u) >> 13;
  const U half = magnitude > 0x7f800000u ? U{} + 0x7e00u : fraction + exponent;
  return half | sign >> 16;
}

// An element as the value to compute with.
RNNKERNELS_INLINE float widen(float x) { return x; }
RNNKERNELS_INLINE double widen(double x) { return x; }
template <class E>
RNNKERNELS_INLINE float widen(E x) {
  return widened<float>(E{}, uint32_t{x.bits});
}

// Writes a computed value to an element.
RNNKERNELS_INLINE void assign(float* to, float x) { *to = x; }
RNNKERNELS_INLINE void assign(double* to, double x) { *to = x; }
template <class E>
RNNKERNELS_INLINE void assign(E* to, float x) {
  to->bits = static_cast<uint16_t>(rounded<uint32_t>(E{}, x));
}

// Whether an element has the bits that `assign` writes for this value.
RNNKERNELS_INLINE bool is_rounded(float element, float x) {
  return __builtin_bit_cast(uint32_t, element) == __builtin_bit_cast(uint32_t, x);
}
RNNKERNELS_INLINE bool is_rounded(double element, double x) {
  return __builtin_bit_cast(uint64_t, element) == __builtin_bit_cast(uint64_t, x);
}
template <class E>
RNNKERNELS_INLINE bool is_rounded(E element, float x) {
  return rounded<uint32_t>(E{}, x) == element.bits;
}

// Calls fn(element) with an element of this type.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // a caller on the host passes a function of the host
#endif
template <class Fn>
RNNKERNELS_INLINE void with_element(ElementType type, Fn&& fn) {
  switch (type) {
    case ElementType::kFloat32:
      return fn(float{});
    case ElementType::kFloat64:
      return fn(double{});
    case ElementType::kBFloat16:
      return fn(BFloat16{});
    case ElementType::kFloat16:
      return fn(Float16{});
  }
}

}  // namespace
}  // namespace rnnkernels
