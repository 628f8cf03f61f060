// Vectors of the instruction set that this file is compiled for: the compiler's vector extensions, and
// intrinsics for AVX-512's masks and its products of bfloat16, which no other file has. Everything is in an
// anonymous namespace, because the same source is compiled once per instruction set and the linker must not
// merge the copies.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/config.h"
#include "core/elements.h"

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

// Columns are divided into blocks of 16 for every width of vectors: for packing, for tails, among threads,
// and for the saved bits (half a word per block).
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

template <class T>
RNNKERNELS_INLINE void multiply_add(Vec<T>& sum, T x, Vec<T> y) {
  sum += x * y;
}

// Two neighbouring bfloat16, the first one in the lower half. The product of two pairs adds both products to
// one float32. It is an integer type, so that Vec works for it as for any other type.
using BFloat16Pair = uint32_t;
#if defined(__AVX512BF16__)
RNNKERNELS_INLINE void multiply_add(Vec<float>& sum, BFloat16Pair x, Vec<BFloat16Pair> y) {
  const __m512i pairs = _mm512_set1_epi32(static_cast<int>(x));
  sum = reinterpret_cast<Vec<float>>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(y)));
}
// Lane i of the result is the pair of a[i] and b[i].
RNNKERNELS_INLINE Vec<BFloat16Pair> pair_lanes(Vec<float> a, Vec<float> b) {
  return rounded<Vec<uint32_t>>(BFloat16{}, a) | rounded<Vec<uint32_t>>(BFloat16{}, b) << 16;
}
// Writes 16 neighbouring values as 8 pairs.
RNNKERNELS_INLINE void store_pairs(BFloat16Pair* to, Vec<float> x) {
  const __m256bh pairs = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(x));
  std::memcpy(to, &pairs, sizeof(pairs));
}
#endif

// For an element E of a product's factors: how many values it holds, and the type of the sums. FactorOf<S> is
// the E for elements that are stored as S.
template <class E>
constexpr int kValuesOf = 1;
template <>
inline constexpr int kValuesOf<BFloat16Pair> = 2;
template <class E>
struct SumOf {
  using type = E;
};
template <>
struct SumOf<BFloat16Pair> {
  using type = float;
};
template <class S>
struct FactorOf {
  using type = ComputeType<S>;
};
#if defined(__AVX512BF16__)
template <>
struct FactorOf<BFloat16> {
  using type = BFloat16Pair;
};
#endif

// 16 values in registers.
template <class T>
struct Block {
  Vec<T> vectors[kVectorsPerBlock<T>];
  // The vector that begins at column v of the block.
  RNNKERNELS_INLINE Vec<T>& operator[](int v) { return vectors[v / kLanes<T>]; }
  RNNKERNELS_INLINE const Vec<T>& operator[](int v) const { return vectors[v / kLanes<T>]; }
};
template <class T>
RNNKERNELS_INLINE Block<T> load_block(const T* from) {
  Block<T> block;
  for (int v = 0; v < kBlock; v += kLanes<T>) block[v] = load(from + v);
  return block;
}
template <class T>
RNNKERNELS_INLINE void store_block(T* to, const Block<T>& block) {
  for (int v = 0; v < kBlock; v += kLanes<T>) store(to + v, block[v]);
}

// Halves in memory, floats in registers.
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

// Reads or writes the first `valid` lanes, at least one, of elements stored as S. The other lanes are zero
// when read and left unchanged in memory when written.
template <class S>
RNNKERNELS_INLINE Vec<ComputeType<S>> load_first(const S* from, int64_t valid) {
  using T = ComputeType<S>;
  if constexpr (sizeof(S) == 2) {
    Halves halves{};
    if (valid >= kLanes<T>) {
      std::memcpy(&halves, from, sizeof(halves));
    } else {
#if defined(__AVX512F__)
      halves =
          reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << valid) - 1), from));
#else
      for (int64_t i = 0; i < valid; ++i) halves[i] = from[i].bits;
#endif
    }
    return widened<Vec<T>>(S{}, __builtin_convertvector(halves, Vec<uint32_t>));
  } else {
    if (valid >= kLanes<T>) return load(from);
    Vec<T> v{};
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      v = reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << valid) - 1), from));
    } else {
      v = reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << valid) - 1), from));
    }
#else
    for (int64_t i = 0; i < valid; ++i) v[i] = from[i];
#endif
    return v;
  }
}
template <class S>
RNNKERNELS_INLINE void store_first(S* to, Vec<ComputeType<S>> v, int64_t valid) {
  using T = ComputeType<S>;
  if constexpr (sizeof(S) == 2) {
    const Halves halves = __builtin_convertvector(rounded<Vec<uint32_t>>(S{}, v), Halves);
    if (valid >= kLanes<T>) {
      std::memcpy(to, &halves, sizeof(halves));
      return;
    }
#if defined(__AVX512F__)
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << valid) - 1),
                             reinterpret_cast<__m256i>(halves));
#else
    for (int64_t i = 0; i < valid; ++i) to[i].bits = halves[i];
#endif
  } else {
    if (valid >= kLanes<T>) return store(to, v);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << valid) - 1), reinterpret_cast<__m512>(v));
    } else {
      _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << valid) - 1), reinterpret_cast<__m512d>(v));
    }
#else
    for (int64_t i = 0; i < valid; ++i) to[i] = v[i];
#endif
  }
}

// Bit i of the result says whether lane i of a comparison holds.
template <class T, class Mask>
RNNKERNELS_INLINE uint32_t bits_of(Mask mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
  } else {
    return _mm512_movepi64_mask(reinterpret_cast<__m512i>(mask));
  }
#else
  typedef int8_t Bytes __attribute__((vector_size(kLanes<T>)));
  // One byte per lane, 0 or 1. The multiplication gathers eight of them in the top byte.
  const Bytes bytes = __builtin_convertvector(mask, Bytes) & 1;
  uint64_t words[(kLanes<T> + 7) / 8] = {};
  std::memcpy(words, &bytes, sizeof(bytes));
  uint32_t bits = 0;
  for (int i = 0; i < (kLanes<T> + 7) / 8; ++i) {
    bits |= static_cast<uint32_t>((words[i] * 0x0102040810204080) >> 56) << (8 * i);
  }
  return bits;
#endif
}

// The inverse: lane i is 1 where bit i is set, else 0.
template <class T>
RNNKERNELS_INLINE Vec<T> from_bits(uint32_t bits) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<Vec<T>>(_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), _mm512_set1_ps(1)));
  } else {
    return reinterpret_cast<Vec<T>>(_mm512_maskz_mov_pd(static_cast<__mmask8>(bits), _mm512_set1_pd(1)));
  }
#else
  using Mask = decltype(Vec<T>{} < Vec<T>{});
  Mask lane{};
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = int64_t{1} << i;
  const Mask set = (Mask{} + static_cast<int32_t>(bits)) & lane;
  return set != Mask{} ? Vec<T>{} + 1 : Vec<T>{};
#endif
}

// Lane i of the result is lane from[i] of a and b, counted through both.
template <class T, class Mask>
RNNKERNELS_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, Mask from) {
#if defined(__clang__)
  Vec<T> result;
  for (int i = 0; i < kLanes<T>; ++i) result[i] = from[i] < kLanes<T> ? a[from[i]] : b[from[i] - kLanes<T>];
  return result;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// a[0], b[0], a[1], b[1], ... of the lower or upper halves.
template <bool kUpper, class T>
RNNKERNELS_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b) {
  decltype(a < b) from{};
  RNNKERNELS_UNROLL
  for (int i = 0; i < kLanes<T>; ++i) from[i] = i % 2 * kLanes<T> + i / 2 + (kUpper ? kLanes<T> / 2 : 0);
  return shuffle<T>(a, b, from);
}

// Adds to x its rotations by kBy, kBy / 2, ... kCount lanes one after another: lane i becomes the sum of all
// lanes i + n kCount.
template <class T, int kCount, int kBy>
RNNKERNELS_INLINE Vec<T> sum_of_rotations(Vec<T> x) {
  if constexpr (kBy < kCount) {
    return x;
  } else {
    decltype(x < x) from{};
    RNNKERNELS_UNROLL
    for (int i = 0; i < kLanes<T>; ++i) from[i] = (i + kBy) % kLanes<T>;
    return sum_of_rotations<T, kCount, kBy / 2>(x + shuffle<T>(x, x, from));
  }
}

// Lane i of the result is the sum of the lanes of vector i. kCount is a power of two, at most the number of
// lanes.
template <class T, int kCount, int kLeft = kCount>
RNNKERNELS_INLINE Vec<T> sums_of_lanes(Vec<T> (&x)[kCount]) {
  if constexpr (kLeft > 1) {
    // Lane j of a sum belongs to vector j % kLeft of the kLeft sums that are left.
    RNNKERNELS_UNROLL
    for (int i = 0; i < kLeft / 2; ++i) {
      const Vec<T> a = x[i], b = x[i + kLeft / 2];
      x[i] = interleave<false, T>(a, b) + interleave<true, T>(a, b);
    }
    return sums_of_lanes<T, kCount, kLeft / 2>(x);
  } else {
    return sum_of_rotations<T, kCount, kLanes<T> / 2>(x[0]);
  }
}

// Exchanges lane j of vector i with lane i of vector j, for as many vectors as lanes.
template <class T>
RNNKERNELS_INLINE void transpose(Vec<T> (&x)[kLanes<T>]) {
  constexpr int kHalf = kLanes<T> / 2;
  for (int distance = 1; distance < kLanes<T>; distance *= 2) {
    Vec<T> y[kLanes<T>];
    RNNKERNELS_UNROLL
    for (int i = 0; i < kHalf; ++i) {
      y[2 * i] = interleave<false, T>(x[i], x[i + kHalf]);
      y[2 * i + 1] = interleave<true, T>(x[i], x[i + kHalf]);
    }
    RNNKERNELS_UNROLL
    for (int i = 0; i < kLanes<T>; ++i) x[i] = y[i];
  }
}

}  // namespace
}  // namespace rnnkernels
