// Elements of every type that a parameter may have, read and written as numbers to compute with.
// Integer arithmetic only, so that loops over half precision become vectors on every instruction set.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/optimizer.h"

namespace rnnkernels {
namespace {

struct BFloat16 {
  using Number = float;
  uint16_t bits;
};
struct Float16 {
  using Number = float;
  uint16_t bits;
};

template <class E>
struct NumberOf {
  using type = typename E::Number;
};
template <>
struct NumberOf<float> {
  using type = float;
};
template <>
struct NumberOf<double> {
  using type = double;
};

RNNKERNELS_INLINE float number(float x) { return x; }
RNNKERNELS_INLINE double number(double x) { return x; }
RNNKERNELS_INLINE float number(BFloat16 x) { return __builtin_bit_cast(float, uint32_t{x.bits} << 16); }
// The exponent moves up by 112, by a multiplication, which also makes subnormal numbers normal.
RNNKERNELS_INLINE float number(Float16 x) {
  const float magnitude = __builtin_bit_cast(float, uint32_t(x.bits & 0x7fff) << 13) * 0x1p112f;
  uint32_t bits = __builtin_bit_cast(uint32_t, magnitude);
  bits |= magnitude >= 65536.0f ? 0x7f800000u : 0u;  // infinity and NaN
  return __builtin_bit_cast(float, bits | uint32_t(x.bits & 0x8000) << 16);
}

RNNKERNELS_INLINE void assign(float* to, float x) { *to = x; }
RNNKERNELS_INLINE void assign(double* to, double x) { *to = x; }
// To the nearest, ties to even.
RNNKERNELS_INLINE void assign(BFloat16* to, float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}
RNNKERNELS_INLINE void assign(Float16* to, float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t sign = bits & 0x80000000u, magnitude = bits ^ sign;
  // Adding 0.5 lets the processor round a subnormal result to the half type's last place.
  const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
  const uint32_t subnormal = __builtin_bit_cast(uint32_t, shifted) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? special : half;
  to->bits = static_cast<uint16_t>(half | sign >> 16);
}

template <class Fn>
void with_element(ElementType type, Fn&& fn) {
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
