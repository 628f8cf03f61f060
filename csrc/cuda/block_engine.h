// The engine for a team of one block: it has all of W_hh in its registers, for the whole sequence, and walks
// 8 rows of one network.
//
//   a warp owns kTiles tiles of 16 units:  its part of W as fragments, the state and the sums of its units
//   shared memory holds the operand of all units, [2][8][H + padding]: of this step, and of the next
//
//   for each step:  sums = W x;  sweep.update;  sweep.operand into the other buffer;  sync_block
//
// A lane has 4 numbers of a tile: units g and g + 8, rows 2q and 2q + 1 (device.h). Rows that do not belong
// to a step have a zero operand.
#pragma once

#include "cuda/factors.h"
#include "cuda/sweeps.h"

namespace rnnkernels::cuda {

constexpr int kTileUnits = 16;
constexpr int kTeamRows = 8;

template <class Factors>
RNNKERNELS_INLINE int64_t operand_stride(int64_t hidden) {
  return (hidden + kTileUnits - 1) / kTileUnits * kTileUnits + Factors::kPadding;
}
template <class Factors>
RNNKERNELS_INLINE int64_t shared_bytes(int64_t hidden) {
  return 2 * kTeamRows * operand_stride<Factors>(hidden) *
         static_cast<int64_t>(sizeof(typename Factors::Element));
}

// For H of at most kSlices * Factors::kDepth; a block of ceil(H / 16 / kTiles) warps.
template <class Sweep, class Factors, int kTiles, int kSlices>
class BlockEngine {
 public:
  RNNKERNELS_DEVICE BlockEngine(const Sweep& sweep, int64_t first_row)
      : sweep_(sweep),
        hidden_(sweep.problem.hidden),
        first_row_(first_row),
        lane_(device::place().thread % device::kWarpLanes),
        first_tile_(device::place().thread / device::kWarpLanes * kTiles),
        stride_(operand_stride<Factors>(hidden_)),
        operand_(device::shared_memory<typename Factors::Element>(0, 2 * kTeamRows * stride_)) {}

  RNNKERNELS_DEVICE void run() {
    load_matrix();
    const Layout& layout = sweep_.problem.layout;
    const bool down = layout.reverse != Sweep::kBackward;
    const auto step_at = [&](int64_t s) {
      return s < layout.steps ? sweep_.at_step(down ? layout.steps - 1 - s : s) : Step{};
    };
    for_units([&](int tile, int i, int64_t row, int64_t unit) { state_[tile][i] = sweep_.begin(row, unit); });
    Step next = step_at(0);
    form_operand(next, 0);
    device::sync_block();
    for (int64_t s = 0; s < layout.steps; ++s) {
      const Step step = next;
      next = step_at(s + 1);
      if (s + 1 == layout.steps && !sweep_.wants_last_update()) break;
      multiply(s % 2);
      update(step);
      form_operand(next, (s + 1) % 2);
      device::sync_block();
    }
    for_units([&](int tile, int i, int64_t row, int64_t unit) { sweep_.end(row, unit, state_[tile][i]); });
  }

 private:
  const Sweep& sweep_;
  const int64_t hidden_, first_row_;
  const int lane_, first_tile_;
  const int64_t stride_;
  const device::Shared<typename Factors::Element> operand_;
  typename Factors::Fragments::A matrix_[kTiles][kSlices];
  device::Sums sums_[kTiles];
  float state_[kTiles][4];

  RNNKERNELS_DEVICE int64_t unit_of(int tile, int i) const {
    return static_cast<int64_t>(first_tile_ + tile) * kTileUnits + lane_ / 4 + i / 2 * 8;
  }
  RNNKERNELS_DEVICE int row_of(int i) const { return lane_ % 4 * 2 + i % 2; }

  // Calls fn(tile, i, row, unit) for the numbers of this lane that there are.
  template <class Fn>
  RNNKERNELS_DEVICE void for_units(const Fn& fn) {
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      RNNKERNELS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int64_t unit = unit_of(tile, i), row = first_row_ + row_of(i);
        if (unit < hidden_ && row < sweep_.problem.layout.batch) fn(tile, i, row, unit);
      }
    }
  }

  // Transposed for the backward walk.
  RNNKERNELS_DEVICE void load_matrix() {
    const Matrix& w = sweep_.problem.weight;
    const float* data = static_cast<const float*>(w.data) + sweep_.network * w.network_stride;
    const int64_t row_stride = Sweep::kBackward ? w.column_stride : w.row_stride;
    const int64_t column_stride = Sweep::kBackward ? w.row_stride : w.column_stride;
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      RNNKERNELS_UNROLL
      for (int slice = 0; slice < kSlices; ++slice) {
        matrix_[tile][slice] = Factors::matrix(lane_, [&](int i, int k) {
          const int64_t row = static_cast<int64_t>(first_tile_ + tile) * kTileUnits + i;
          const int64_t column = static_cast<int64_t>(slice) * Factors::kDepth + k;
          return row < hidden_ && column < hidden_ ? data[row * row_stride + column * column_stride] : 0.0f;
        });
      }
    }
  }

  RNNKERNELS_DEVICE void multiply(int buffer) {
    const auto x = operand_.slice(buffer * kTeamRows * stride_, kTeamRows * stride_);
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) sums_[tile] = device::Sums{};
    RNNKERNELS_UNROLL
    for (int slice = 0; slice < kSlices; ++slice) {
      if (static_cast<int64_t>(slice) * Factors::kDepth >= hidden_) break;
      const auto b = Factors::operand(lane_, x, stride_, static_cast<int64_t>(slice) * Factors::kDepth);
      RNNKERNELS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) Factors::multiply(sums_[tile], matrix_[tile][slice], b);
    }
  }

  RNNKERNELS_DEVICE void update(const Step& step) {
    uint32_t bits[kTiles] = {};
    for_units([&](int tile, int i, int64_t row, int64_t unit) {
      if (row >= step.rows) return;
      const bool bit = sweep_.update(step, row, unit, sums_[tile].x[i], state_[tile][i]);
      bits[tile] |= static_cast<uint32_t>(bit) << (i % 2 * 16 + i / 2 * 8 + lane_ / 4);
    });
    if constexpr (Sweep::kKeepsBits) keep_bits(step, bits);
  }

  // The bits of a tile's two rows in this column of lanes, half a word each. The half that nobody owns is
  // cleared along with the last tile.
  RNNKERNELS_DEVICE void keep_bits(const Step& step, const uint32_t (&bits)[kTiles]) {
    const int64_t tiles = (hidden_ + kTileUnits - 1) / kTileUnits;
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t both = bits[tile];
      for (int mask = 4; mask < device::kWarpLanes; mask *= 2) both |= device::shuffle_xor(both, mask);
      const int64_t place = first_tile_ + tile;
      for (int i = 0; lane_ / 4 == 0 && i < 2; ++i) {
        const int64_t row = first_row_ + row_of(i);
        uint32_t* words = row < step.rows && place < tiles ? sweep_.words(step, row) : nullptr;
        if (!words) continue;
        const uint16_t half = static_cast<uint16_t>(both >> (16 * i));
        if (place % 2 == 0 && place + 1 == tiles) {
          words[place / 2] = half;
        } else {
          reinterpret_cast<uint16_t*>(words)[place] = half;  // GPUs are little-endian
        }
      }
    }
  }

  RNNKERNELS_DEVICE void form_operand(const Step& step, int buffer) {
    const int64_t padded = stride_ - Factors::kPadding;
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      RNNKERNELS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int64_t unit = unit_of(tile, i), row = first_row_ + row_of(i);
        if (unit >= padded) continue;
        float x = 0;
        if (unit < hidden_ && row < step.rows) x = sweep_.operand(step, row, unit, state_[tile][i]);
        operand_.set((buffer * kTeamRows + row_of(i)) * stride_ + unit, Factors::element(x));
      }
    }
  }
};

}  // namespace rnnkernels::cuda
