// The product of two matrices on the register tile of the recurrence:
//
//   out[m][n] = sum_k left[m][k] right[k][n]  (+ bias[n])  (+ addend[m][n])
//
// Each thread has some rectangles of the result. For each it packs panels of `right`, some columns times a
// part of the depth, that are small enough to stay in L2, and multiplies all its rows of `left` with a panel:
//
//   for each panel of columns, for each part of the depth:
//     pack right -> [blocks][k][16]
//     for each few rows, for each group of blocks:  register tile -> product;  out += product
//
// Each part of the depth is a chain of multiply-adds of its own, and the parts are added in order. The parts
// depend on the depth alone, so results do not depend on the number of threads.
#pragma once

#include "core/product.h"
#include "cpu/split.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace rnnkernels {
namespace {

constexpr int64_t kMostDepth = 256;          // of one part, so that no chain of additions is longer
constexpr int64_t kPanelBytes = 256 * 1024;  // at most, about

template <class T>
class ProductRun {
 public:
  ProductRun(const Product& product, const cpu::ProductPlan& plan, void* workspace)
      : product_(product), plan_(plan), workspace_(static_cast<T*>(workspace)) {
    blocks_ = (product.columns + kBlock - 1) / kBlock;
    depth_parts_ = product.depth > kMostDepth ? (product.depth + kMostDepth - 1) / kMostDepth : 1;
    const int64_t deepest = (product.depth + depth_parts_ - 1) / depth_parts_;
    const int64_t fit = kPanelBytes / (kMostDepth * kBlock * static_cast<int64_t>(sizeof(T)));
    panel_blocks_ = least((blocks_ + plan.column_parts - 1) / plan.column_parts, fit);
    panel_size_ = panel_blocks_ * deepest * kBlock;
  }

  int64_t workspace_bytes() const { return plan_.slices * panel_size_ * static_cast<int64_t>(sizeof(T)); }

  void run(const cpu::Threads& threads) { run_slices(threads, plan_.slices, this, &ProductRun::work); }

 private:
  const Product& product_;
  const cpu::ProductPlan& plan_;
  T* workspace_;
  int64_t blocks_, depth_parts_, panel_blocks_, panel_size_;

  struct Rectangle {
    int64_t network;
    Range rows, blocks;
  };

  void work(int64_t first_slice, int64_t last_slice) {
    const int64_t grid = plan_.row_parts * plan_.column_parts;
    const Range jobs = parts_of(product_.networks * grid, first_slice, last_slice, plan_.slices);
    for (int64_t job = jobs.first; job < jobs.last; ++job) {
      const int64_t row_part = job % grid / plan_.column_parts, column_part = job % plan_.column_parts;
      multiply({job / grid, part_of(product_.rows, row_part, plan_.row_parts),
                part_of(blocks_, column_part, plan_.column_parts)},
               workspace_ + first_slice * panel_size_);
    }
  }

  // One rectangle of the result, with memory for a panel.
  void multiply(const Rectangle& r, T* panel) const {
    for (int64_t block = r.blocks.first; block < r.blocks.last; block += panel_blocks_) {
      const Range blocks{block, least(block + panel_blocks_, r.blocks.last)};
      for (int64_t i = 0; i < depth_parts_; ++i) {
        const Range depth = part_of(product_.depth, i, depth_parts_);
        const Matrix& right = product_.right;
        const T* from = static_cast<const T*>(right.data) + r.network * right.network_stride +
                        depth.first * right.row_stride + block * kBlock * right.column_stride;
        pack_blocks(from, product_.columns - block * kBlock, depth.last - depth.first, right.column_stride,
                    right.row_stride, 0, blocks.last - block, panel);
        stream({r.network, r.rows, blocks}, depth, panel);
      }
    }
  }

  // Multiplies all rows of the rectangle with one panel.
  void stream(const Rectangle& r, const Range& depth, const T* panel) const {
    const int64_t rows = r.rows.last - r.rows.first, blocks = r.blocks.last - r.blocks.first;
    const int64_t row_tiles = (rows + kTileRows<T> - 1) / kTileRows<T>;
    for (int64_t tile = 0; tile < row_tiles; ++tile) {
      const Range tile_rows = part_of(rows, tile, row_tiles);
      const int64_t most_blocks = tile_blocks<T>(static_cast<int>(tile_rows.last - tile_rows.first));
      const int64_t groups = (blocks + most_blocks - 1) / most_blocks;
      for (int64_t group = 0; group < groups; ++group) {
        const Range columns = part_of(blocks, group, groups);
        finish_tile({r.network,
                     {r.rows.first + tile_rows.first, r.rows.first + tile_rows.last},
                     {r.blocks.first + columns.first, r.blocks.first + columns.last}},
                    depth, panel + columns.first * (depth.last - depth.first) * kBlock);
      }
    }
  }

  static T* row_of(const Rows& rows, int64_t network, int64_t row) {
    return static_cast<T*>(rows.data) + network * rows.network_stride + row * rows.row_stride;
  }

  // One register tile, and the addition of its sums to the result. The first part of the depth adds the bias
  // and the addend, each later one the result so far.
  void finish_tile(const Rectangle& r, const Range& depth, const T* panel) const {
    alignas(64) T sums[kMostRows * kMostBlocks * kBlock];
    const Matrix& left = product_.left;
    const int64_t blocks = r.blocks.last - r.blocks.first;
    const T* operand = static_cast<const T*>(left.data) + r.network * left.network_stride +
                       r.rows.first * left.row_stride + depth.first * left.column_stride;
    kTiles<T>.at(r.rows.last - r.rows.first, blocks)(operand, left.row_stride, left.column_stride, panel,
                                                     depth.last - depth.first, sums);
    const Rows& added = depth.first > 0 ? product_.out : product_.addend;
    const T* bias = depth.first == 0 && product_.bias.data
                        ? static_cast<const T*>(product_.bias.data) + r.network * product_.bias.network_stride
                        : nullptr;
    for (int64_t row = r.rows.first; row < r.rows.last; ++row) {
      T* out = row_of(product_.out, r.network, row);
      const T* addend = added.data ? row_of(added, r.network, row) : nullptr;
      const T* sum = sums + (row - r.rows.first) * blocks * kBlock;
      for (int64_t v = 0; v < blocks * kBlock; v += kLanes<T>) {
        const int64_t column = r.blocks.first * kBlock + v, valid = product_.columns - column;
        if (valid <= 0) break;
        Vec<T> x = load(sum + v);
        if (bias) x += load_first(bias + column, valid);
        if (addend) x += load_first(addend + column, valid);
        store_first(out + column, x, valid);
      }
    }
  }
};

}  // namespace
}  // namespace rnnkernels
