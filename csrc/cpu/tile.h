// The register tile: a few batch rows times a few blocks of 16 columns of the product
//
//   out[r][c] = sum_k operand[r][k] * M[c][k]
//
// M is packed so that the tile reads it in order. The operand is read in place, one value per row and k. Each
// sum is one chain of multiply-adds over ascending k for every size of the tile, so the results do not depend
// on how rows and columns are divided among tiles and threads. Where the processor multiplies pairs of
// bfloat16, an element of both factors may be such a pair, two consecutive k, and the sums are float32.
#pragma once

#include <utility>

#include "cpu/simd.h"
#include "cpu/split.h"

namespace rnnkernels {
namespace {

// Packs one block of M from `valid` columns of k contiguous values each.
template <class T>
void pack_transposed(const T* columns, int64_t valid, int64_t k, int64_t n_stride, T* packed) {
  int64_t i = 0;
  for (; i + kLanes<T> <= k; i += kLanes<T>) {
    for (int64_t first = 0; first < kBlock; first += kLanes<T>) {
      Vec<T> square[kLanes<T>];
      for (int64_t c = 0; c < kLanes<T>; ++c) {
        square[c] = first + c < valid ? load(columns + (first + c) * n_stride + i) : Vec<T>{};
      }
      transpose<T>(square);
      for (int64_t j = 0; j < kLanes<T>; ++j) store(packed + (i + j) * kBlock + first, square[j]);
    }
  }
  for (; i < k; ++i) {
    for (int64_t c = 0; c < kBlock; ++c)
      packed[i * kBlock + c] = c < valid ? columns[c * n_stride + i] : T(0);
  }
}

// Packs M (n x k elements, any strides) as [ceil(n / 16)][k][16]: column c of the product is lane c % 16 of
// block c / 16. Lanes from n on are zero.
template <class T>
void pack_blocks(const T* matrix, int64_t n, int64_t k, int64_t n_stride, int64_t k_stride,
                 int64_t first_block, int64_t last_block, T* packed) {
  for (int64_t block = first_block; block < last_block; ++block) {
    const T* from = matrix + block * kBlock * n_stride;
    T* to = packed + block * k * kBlock;
    const int64_t valid = n - block * kBlock < kBlock ? n - block * kBlock : kBlock;
    if (k_stride == 1) {
      pack_transposed(from, valid, k, n_stride, to);
      continue;
    }
    for (int64_t i = 0; i < k; ++i, to += kBlock) {
      if (n_stride == 1) {
        for (int v = 0; v < kBlock; v += kLanes<T>) {
          store(to + v, valid > v ? load_first(from + i * k_stride + v, valid - v) : Vec<T>{});
        }
      } else {
        for (int64_t c = 0; c < kBlock; ++c) to[c] = c < valid ? from[c * n_stride + i * k_stride] : T(0);
      }
    }
  }
}

#if defined(__AVX512BF16__)
// The same with two k per element: [ceil(n / 16)][ceil(k / 2)][16]. An odd k is padded with zero.
void pack_blocks(const float* matrix, int64_t n, int64_t k, int64_t n_stride, int64_t k_stride,
                 int64_t first_block, int64_t last_block, BFloat16Pair* packed) {
  constexpr int64_t kDepth = 64;
  alignas(64) float values[kDepth * kBlock];
  const int64_t pairs = (k + 1) / 2;
  for (int64_t block = first_block; block < last_block; ++block) {
    for (int64_t i = 0; i < k; i += kDepth) {
      const int64_t depth = least(kDepth, k - i);
      pack_blocks(matrix + block * kBlock * n_stride + i * k_stride, n - block * kBlock, depth, n_stride,
                  k_stride, 0, 1, values);
      if (depth % 2 != 0) store(values + depth * kBlock, Vec<float>{});
      BFloat16Pair* to = packed + (block * pairs + i / 2) * kBlock;
      for (int64_t j = 0; j < depth; j += 2, to += kBlock) {
        store(to, pair_lanes(load(values + j * kBlock), load(values + (j + 1) * kBlock)));
      }
    }
  }
}
#endif

// Registers for sums; the others hold the factors of one k.
constexpr int kAccumulators = kVectorRegisters == 32 ? 24 : 12;
constexpr int kMostRows = 6;
constexpr int kMostBlocks = 8;

template <class T>
constexpr int kTileRows =
    kAccumulators / kVectorsPerBlock<T> < kMostRows ? kAccumulators / kVectorsPerBlock<T> : kMostRows;

// How many blocks a tile of this many rows has at most.
template <class T>
constexpr int tile_blocks(int rows) {
  const int blocks = kAccumulators / (rows * kVectorsPerBlock<T>);
  return blocks < 1 ? 1 : blocks > kMostBlocks ? kMostBlocks : blocks;
}

// Element (r, k) of the operand is at r * row_stride + k * k_stride; out is [kRows][kBlocks * 16].
template <class E, int kRows, int kBlocks>
void tile(const E* operand, int64_t row_stride, int64_t k_stride, const E* packed, int64_t k,
          typename SumOf<E>::type* out) {
  constexpr int kPerBlock = kVectorsPerBlock<E>;
  Vec<typename SumOf<E>::type> sum[kRows][kBlocks * kPerBlock] = {};
  for (int64_t i = 0; i < k; ++i, operand += k_stride) {
    Vec<E> column[kBlocks * kPerBlock];
    RNNKERNELS_UNROLL
    for (int v = 0; v < kBlocks * kPerBlock; ++v) {
      column[v] = load(packed + (v / kPerBlock) * k * kBlock + i * kBlock + (v % kPerBlock) * kLanes<E>);
    }
    RNNKERNELS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const E x = operand[r * row_stride];
      RNNKERNELS_UNROLL
      for (int v = 0; v < kBlocks * kPerBlock; ++v) multiply_add(sum[r][v], x, column[v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kBlocks * kPerBlock; ++v) {
      store(out + (r * kBlocks * kPerBlock + v) * kLanes<E>, sum[r][v]);
    }
  }
}

template <class E>
using Tile = void (*)(const E* operand, int64_t row_stride, int64_t k_stride, const E* packed, int64_t k,
                      typename SumOf<E>::type* out);

template <class E, int kRows, int kBlocks>
constexpr Tile<E> tile_or_null() {
  if constexpr (kRows <= kTileRows<E> && kBlocks <= tile_blocks<E>(kRows)) {
    return &tile<E, kRows, kBlocks>;
  } else {
    return nullptr;
  }
}

template <class E>
struct TileTable {
  Tile<E> tiles[kMostRows * kMostBlocks];
  constexpr Tile<E> at(int64_t rows, int64_t blocks) const {
    return tiles[(rows - 1) * kMostBlocks + (blocks - 1)];
  }
};

template <class E, int... kIndex>
constexpr TileTable<E> make_tiles(std::integer_sequence<int, kIndex...>) {
  return {{tile_or_null<E, kIndex / kMostBlocks + 1, kIndex % kMostBlocks + 1>()...}};
}

// kTiles<E>.at(rows, blocks) is the tile of this size, for rows <= kTileRows<E> and blocks <=
// tile_blocks<E>(rows).
template <class E>
constexpr TileTable<E> kTiles = make_tiles<E>(std::make_integer_sequence<int, kMostRows * kMostBlocks>{});

}  // namespace
}  // namespace rnnkernels
