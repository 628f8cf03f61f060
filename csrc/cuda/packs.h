// Runs of elements that a block shares out and reads and writes a few at a time. Their alignment changes how
// they are read, and not which thread has them.
#pragma once

#include "core/elements.h"
#include "cuda/device.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kPack = 4;  // elements that a thread has side by side

template <class E>
struct alignas(kPack * sizeof(E)) Pack {
  E x[kPack];
};
template <class E>
RNNKERNELS_DEVICE bool is_aligned(const E* array) {
  return reinterpret_cast<uintptr_t>(array) % sizeof(Pack<E>) == 0;
}

// The first `count` of a pack as numbers; `whole`: all of them, at an address that suits.
template <class E, class T>
RNNKERNELS_DEVICE void load(const E* from, int count, bool whole, T (&to)[kPack]) {
  Pack<E> pack{};
  if (whole) {
    pack = *reinterpret_cast<const Pack<E>*>(from);
  } else {
    RNNKERNELS_UNROLL
    for (int k = 0; k < kPack; ++k) {
      if (k < count) pack.x[k] = from[k];
    }
  }
  RNNKERNELS_UNROLL
  for (int k = 0; k < kPack; ++k) to[k] = static_cast<T>(number(pack.x[k]));
}

template <class E, class T>
RNNKERNELS_DEVICE void store(E* to, int count, bool whole, const T (&from)[kPack]) {
  Pack<E> pack;
  RNNKERNELS_UNROLL
  for (int k = 0; k < kPack; ++k) assign(pack.x + k, from[k]);
  if (whole) {
    *reinterpret_cast<Pack<E>*>(to) = pack;
    return;
  }
  RNNKERNELS_UNROLL
  for (int k = 0; k < kPack; ++k) {
    if (k < count) to[k] = pack.x[k];
  }
}

// The packs of this thread among the elements begin .. end-1: calls visit(first, count).
template <class Visit>
RNNKERNELS_DEVICE void for_packs(int64_t begin, int64_t end, const Visit& visit) {
  const device::Place me = device::place();
  for (int64_t i = begin + kPack * me.thread; i < end; i += kPack * me.threads) {
    visit(i, end - i < kPack ? static_cast<int>(end - i) : kPack);
  }
}

}  // namespace
}  // namespace rnnkernels::cuda
