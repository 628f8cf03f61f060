// The register tile: a few batch rows times a few blocks of columns of the product
//
//   out[r][c] = sum_k operand[r][k] * M[c][k]
//
// with M packed so that the tile streams through it, and the operand read where it lies, one number at a
// time. Each sum is one chain of multiply-adds over ascending k whatever the tile's size: how rows and
// columns are shared out never changes a result.
#pragma once

#include <utility>

#include "cpu/simd.h"

namespace rnnkernels {
namespace {

// One block of M whose columns lie along k: `valid` of them, k numbers each.
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

// Packs M (n x k elements, any strides) as [ceil(n / 16)][k][16]: column c of the product lies in
// block c / 16, lane c % 16. Lanes past n are zero.
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

// Accumulators leave room for the operands of one step of k.
constexpr int kAccumulators = kVectorRegisters == 32 ? 24 : 12;
constexpr int kMostRows = 6;
constexpr int kMostBlocks = 8;

template <class T>
constexpr int kTileRows =
    kAccumulators / kVectorsPerBlock<T> < kMostRows ? kAccumulators / kVectorsPerBlock<T> : kMostRows;

// How many blocks a tile of this many rows takes at once.
template <class T>
constexpr int tile_blocks(int rows) {
  const int blocks = kAccumulators / (rows * kVectorsPerBlock<T>);
  return blocks < 1 ? 1 : blocks > kMostBlocks ? kMostBlocks : blocks;
}

// Element (r, k) of the operand lies at r * row_stride + k * k_stride. out is [kRows][kBlocks * 16].
template <class T, int kRows, int kBlocks>
void tile(const T* operand, int64_t row_stride, int64_t k_stride, const T* packed, int64_t k, T* out) {
  constexpr int kPerBlock = kVectorsPerBlock<T>;
  Vec<T> sum[kRows][kBlocks * kPerBlock] = {};
  for (int64_t i = 0; i < k; ++i, operand += k_stride) {
    Vec<T> column[kBlocks * kPerBlock];
    RNNKERNELS_UNROLL
    for (int v = 0; v < kBlocks * kPerBlock; ++v) {
      column[v] = load(packed + (v / kPerBlock) * k * kBlock + i * kBlock + (v % kPerBlock) * kLanes<T>);
    }
    RNNKERNELS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const T x = operand[r * row_stride];
      RNNKERNELS_UNROLL
      for (int v = 0; v < kBlocks * kPerBlock; ++v) sum[r][v] += x * column[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kBlocks * kPerBlock; ++v) {
      store(out + (r * kBlocks * kPerBlock + v) * kLanes<T>, sum[r][v]);
    }
  }
}

template <class T>
using Tile = void (*)(const T* operand, int64_t row_stride, int64_t k_stride, const T* packed, int64_t k,
                      T* out);

template <class T, int kRows, int kBlocks>
constexpr Tile<T> tile_or_null() {
  if constexpr (kRows <= kTileRows<T> && kBlocks <= tile_blocks<T>(kRows)) {
    return &tile<T, kRows, kBlocks>;
  } else {
    return nullptr;
  }
}

template <class T>
struct TileTable {
  Tile<T> tiles[kMostRows * kMostBlocks];
  constexpr Tile<T> at(int64_t rows, int64_t blocks) const {
    return tiles[(rows - 1) * kMostBlocks + (blocks - 1)];
  }
};

template <class T, int... kIndex>
constexpr TileTable<T> make_tiles(std::integer_sequence<int, kIndex...>) {
  return {{tile_or_null<T, kIndex / kMostBlocks + 1, kIndex % kMostBlocks + 1>()...}};
}

// kTiles<T>.at(rows, blocks), for rows <= kTileRows<T> and blocks <= tile_blocks<T>(rows).
template <class T>
constexpr TileTable<T> kTiles = make_tiles<T>(std::make_integer_sequence<int, kMostRows * kMostBlocks>{});

}  // namespace
}  // namespace rnnkernels
