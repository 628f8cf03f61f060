// Reductions over the lanes of a warp. All lanes must call them.
#pragma once

#include "cuda/device.h"

namespace rnnkernels::cuda {
namespace {

// The word whose bit i is the bit of lane i, in every lane.
RNNKERNELS_DEVICE uint32_t word_of_lanes(bool bit) {
  uint32_t word = static_cast<uint32_t>(bit) << device::place().thread % device::kWarpLanes;
  for (int mask = 1; mask < device::kWarpLanes; mask *= 2) word |= device::shuffle_xor(word, mask);
  return word;
}

// The sums over all lanes of each of kCount values; kCount is a power of two. Lane i returns the sum of value
// i / (32 / kCount). Each shuffle halves the number of values, so that 8 values need 9 shuffles.
template <int kCount, class T>
RNNKERNELS_DEVICE T sums_of_lanes(T (&x)[kCount]) {
  const int lane = device::place().thread % device::kWarpLanes;
  int mask = device::kWarpLanes / 2;
  RNNKERNELS_UNROLL
  for (int half = kCount / 2; half > 0; half /= 2, mask /= 2) {
    const bool upper = lane & mask;
    RNNKERNELS_UNROLL
    for (int i = 0; i < half; ++i) {
      const T kept = upper ? x[i + half] : x[i], given = upper ? x[i] : x[i + half];
      x[i] = kept + device::shuffle_xor(given, mask);
    }
  }
  T sum = x[0];
  for (; mask > 0; mask /= 2) sum += device::shuffle_xor(sum, mask);
  return sum;
}

}  // namespace
}  // namespace rnnkernels::cuda
