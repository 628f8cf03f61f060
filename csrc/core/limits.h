// The limit of the sizes of a call. An expanded tensor has any size without memory behind it, so sizes are
// checked before they are multiplied. Below the limit no number of elements, padded to whole blocks and times
// the bytes of an element or the number of threads, exceeds 63 bits.
#pragma once

#include <cstdint>

namespace rnnkernels {

// The most elements of a tensor; an empty dimension counts as 1. No memory holds so many.
constexpr int64_t kMostElements = int64_t{1} << 48;

// The product of two positive numbers of elements; more than kMostElements if it does not fit the limit.
constexpr int64_t limited_product(int64_t a, int64_t b) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product) || product > kMostElements) return kMostElements + 1;
  return product;
}

}  // namespace rnnkernels
