// Arrays that a block processes in packs of a few adjacent elements per thread. The alignment of an array
// decides how a pack is accessed, but not which thread processes it.
#pragma once

#include "core/elements.h"
#include "cuda/device.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kPack = 4;  // elements

template <class E>
struct alignas(kPack * sizeof(E)) Pack {
  E x[kPack];
};
template <class E>
RNNKERNELS_DEVICE bool is_aligned(const E* array) {
  return reinterpret_cast<uintptr_t>(array) % sizeof(Pack<E>) == 0;
}

// Loads the first `count` elements of a pack; the others become 0. `whole`: all of them, at an aligned address,
// in one access.
template <class E>
RNNKERNELS_DEVICE Pack<E> load(const E* from, int count, bool whole) {
  if (whole) return *reinterpret_cast<const Pack<E>*>(from);
  Pack<E> pack{};
  RNNKERNELS_UNROLL
  for (int k = 0; k < kPack; ++k) {
    if (k < count) pack.x[k] = from[k];
  }
  return pack;
}

// Loads a pack and converts it.
template <class E, class T>
RNNKERNELS_DEVICE void load(const E* from, int count, bool whole, T (&to)[kPack]) {
  const Pack<E> pack = load(from, count, whole);
  RNNKERNELS_UNROLL
  for (int k = 0; k < kPack; ++k) to[k] = static_cast<T>(widen(pack.x[k]));
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

// Calls visit(first, count) for each of this thread's packs of the elements begin .. end-1.
template <class Visit>
RNNKERNELS_DEVICE void for_packs(int64_t begin, int64_t end, const Visit& visit) {
  const device::Place me = device::place();
  for (int64_t i = begin + kPack * me.thread; i < end; i += kPack * me.threads) {
    visit(i, end - i < kPack ? static_cast<int>(end - i) : kPack);
  }
}

}  // namespace
}  // namespace rnnkernels::cuda
