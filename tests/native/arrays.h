// Arrays of every element type for the native tests, whose values are converted by the definition of the
// type. The kernels convert them in another way (core/elements.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core/element_type.h"

using namespace rnnkernels;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Format {
  ElementType type;
  const char* name;
  int bytes, fraction_bits, least_exponent;  // of a normal number
};
constexpr Format kFormats[] = {{ElementType::kFloat32, "float32", 4, 23, -126},
                               {ElementType::kFloat64, "float64", 8, 52, -1022},
                               {ElementType::kBFloat16, "bfloat16", 2, 7, -126},
                               {ElementType::kFloat16, "float16", 2, 10, -14}};
const Format& format_of(ElementType type) { return kFormats[static_cast<int>(type)]; }
bool is_half(ElementType type) { return format_of(type).bytes == 2; }

// Rounds to nearest, ties to even; beyond the largest number to infinity.
uint16_t half_bits(ElementType type, double x) {
  const Format& f = format_of(type);
  const int width = 15 - f.fraction_bits, infinity = ((1 << width) - 1) << f.fraction_bits;
  const int sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return static_cast<uint16_t>(infinity | 1 << (f.fraction_bits - 1));
  if (x == 0) return static_cast<uint16_t>(sign);
  int exponent = 0;
  std::frexp(x, &exponent);
  exponent = std::max(exponent - 1, f.least_exponent);
  // An infinite x needs no case of its own: it is beyond the largest number.
  const double steps =
      std::isinf(x) ? 1e9 : std::nearbyint(std::ldexp(std::abs(x), f.fraction_bits - exponent));
  const double place = std::ldexp(double(exponent - f.least_exponent), f.fraction_bits) + steps;
  return static_cast<uint16_t>(sign | int(std::min(place, double(infinity))));
}

double half_value(ElementType type, uint16_t bits) {
  const Format& f = format_of(type);
  const int fraction = bits & ((1 << f.fraction_bits) - 1), place = (bits & 0x7fff) >> f.fraction_bits;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (place == (1 << (15 - f.fraction_bits)) - 1) return fraction ? kNaN : sign * kInf;
  const int whole = place == 0 ? 0 : 1 << f.fraction_bits;
  return sign *
         std::ldexp(double(whole + fraction), std::max(place, 1) - 1 + f.least_exponent - f.fraction_bits);
}

// An array of any element type in memory of its own. `moved` returns a copy that begins some elements later
// in its memory, so that it is aligned differently.
class Array {
 public:
  Array() = default;
  Array(ElementType type, int64_t size) : type_(type), bytes_(size * format_of(type).bytes) {}
  void* data() { return bytes_.data() + skipped_; }
  Array moved(int64_t elements) const {
    Array copy = *this;
    copy.skipped_ = elements * format_of(type_).bytes;
    copy.bytes_.insert(copy.bytes_.begin(), copy.skipped_, 0);
    return copy;
  }
  double get(int64_t i) const {
    if (type_ == ElementType::kFloat32) return at<float>(i);
    return type_ == ElementType::kFloat64 ? at<double>(i) : half_value(type_, at<uint16_t>(i));
  }
  void set(int64_t i, double x) {
    if (type_ == ElementType::kFloat32) return put(i, static_cast<float>(x));
    if (type_ == ElementType::kFloat64) return put(i, x);
    put(i, half_bits(type_, x));
  }
  bool operator==(const Array& other) const {
    return std::equal(bytes_.begin() + skipped_, bytes_.end(), other.bytes_.begin() + other.skipped_,
                      other.bytes_.end());
  }

 private:
  template <class T>
  T at(int64_t i) const {
    T x;
    std::memcpy(&x, bytes_.data() + skipped_ + i * sizeof(T), sizeof(T));
    return x;
  }
  template <class T>
  void put(int64_t i, T x) {
    std::memcpy(bytes_.data() + skipped_ + i * sizeof(T), &x, sizeof(T));
  }
  ElementType type_ = ElementType::kFloat32;
  std::vector<unsigned char> bytes_;
  int64_t skipped_ = 0;
};

}  // namespace
