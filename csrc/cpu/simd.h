// The vectors of the instruction set that this file is being compiled for, by the compiler's vector
// extensions alone. Everything lies in an anonymous namespace: the same source is compiled once for
// each instruction set, and no copy may stand in for another.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/config.h"

namespace rnnkernels {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

// Columns come in blocks of 16, whatever the vector's width: the unit of packing, of tails, of the
// split among threads, and of the saved bits (half a word).
constexpr int kBlock = 16;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T>
constexpr int kVectorsPerBlock = kBlock / kLanes<T>;

template <class T>
RNNKERNELS_INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
template <class T>
RNNKERNELS_INLINE void store(T* to, Vec<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

// The first `valid` lanes; the others are zero, or left alone in memory.
template <class T>
RNNKERNELS_INLINE Vec<T> load_first(const T* from, int64_t valid) {
  if (valid >= kLanes<T>) return load(from);
  Vec<T> v{};
  for (int64_t i = 0; i < valid; ++i) v[i] = from[i];
  return v;
}
template <class T>
RNNKERNELS_INLINE void store_first(T* to, Vec<T> v, int64_t valid) {
  if (valid >= kLanes<T>) return store(to, v);
  for (int64_t i = 0; i < valid; ++i) to[i] = v[i];
}

// Bit i of the result says whether lane i of a comparison holds.
template <class T, class Mask>
RNNKERNELS_INLINE uint32_t bits_of(Mask mask) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes<T>)));
  // One byte a lane, 0 or 1; then a multiplication gathers eight of them into the top byte.
  const Bytes bytes = __builtin_convertvector(mask, Bytes) & 1;
  uint64_t words[(kLanes<T> + 7) / 8] = {};
  std::memcpy(words, &bytes, sizeof(bytes));
  uint32_t bits = 0;
  for (int i = 0; i < (kLanes<T> + 7) / 8; ++i) {
    bits |= static_cast<uint32_t>((words[i] * 0x0102040810204080) >> 56) << (8 * i);
  }
  return bits;
}

// The inverse: lane i is 1 where bit i is set, else 0.
template <class T>
RNNKERNELS_INLINE Vec<T> from_bits(uint32_t bits) {
  using Mask = decltype(Vec<T>{} < Vec<T>{});
  Mask lane{};
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = int64_t{1} << i;
  const Mask set = (Mask{} + static_cast<int32_t>(bits)) & lane;
  return set != Mask{} ? Vec<T>{} + 1 : Vec<T>{};
}

}  // namespace
}  // namespace rnnkernels
