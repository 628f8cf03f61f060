// The engine: a team of blocks holds all of W_hh on chip for the whole sequence, and runs the time loop of 8
// rows of one network at once.
//
//   A block holds the rows of W_hh of plan.tiles tiles of 16 units. Each of its warps multiplies a column of
//   kTiles tiles, over one of plan.parts parts of the depth.
//   Shared memory holds the operand x of all units twice: of this step, and of the next one (teams.h).
//
//   per step:  fetch the inputs of the next step;  await x;  sums = W x;  join the sums of the parts;
//              pass.update;  pass.operand, which is put into the x of the next step
//
// A lane has 4 elements of a tile: units g and g + 8, rows 2q and 2q + 1 (device.h). The first part of a
// column owns the states. Rows that do not belong to a step have a zero operand.
#pragma once

#include "cuda/passes.h"
#include "cuda/teams.h"

namespace rnnkernels::cuda {

template <class Pass, class Factors, class TeamType, int kTiles, int kRegisterSlices>
class Engine {
 public:
  RNNKERNELS_DEVICE Engine(const typename Pass::Problem& problem, const LaunchPlan& plan, bool exact,
                           void* workspace)
      : problem_(problem),
        plan_(plan),
        factors_(exact),
        team_(plan, device::place(), workspace),
        hidden_(static_cast<int>(problem.hidden)),
        lane_(device::place().thread % device::kWarpLanes),
        warp_(device::place().thread / device::kWarpLanes) {
    const int column = warp_ % plan.columns;
    part_ = warp_ / plan.columns;
    first_tile_ = team_.rank() * plan.tiles + column * kTiles;
    last_tile_ = min(min(team_.rank() * plan.tiles + plan.tiles, (hidden_ + kTileUnits - 1) / kTileUnits),
                     first_tile_ + kTiles);
    last_unit_ = min(last_tile_ * kTileUnits, hidden_);
    first_slice_ = part_ * plan.part_slices;
  }

  // The scans of 8 rows each of one network, distributed over its teams in turn.
  RNNKERNELS_DEVICE void run(int64_t first_network) {
    const int64_t network = first_network + team_.team() / plan_.teams;
    load_matrix(network);
    for (int64_t row = int64_t{team_.team() % plan_.teams} * kTeamRows; row < problem_.layout.batch;
         row += int64_t{plan_.teams} * kTeamRows) {
      rows_ = static_cast<int>(min(problem_.layout.batch - row, int64_t{kTeamRows}));
      run(Pass(problem_, Scan{network, row}, rows_));
    }
    team_.end();
  }

 private:
  using State = typename Pass::State;
  using Incoming = typename Pass::Incoming;
  using A = typename Factors::A;

  const typename Pass::Problem& problem_;
  const LaunchPlan& plan_;
  const Factors factors_;
  TeamType team_;
  const int hidden_, lane_, warp_;
  int part_, first_tile_, last_tile_, last_unit_, first_slice_, rows_ = 0;
  unsigned operands_ = 0;  // put so far
  A matrix_[kTiles][kRegisterSlices];
  device::Sums sums_[kTiles];
  State state_[kTiles][4];
  float decay_[kTiles][2];

  static RNNKERNELS_DEVICE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
  static RNNKERNELS_DEVICE int min(int a, int b) { return a < b ? a : b; }
  RNNKERNELS_DEVICE bool owns() const { return part_ == 0; }
  RNNKERNELS_DEVICE int unit_of(int tile, int i) const {
    return (first_tile_ + tile) * kTileUnits + lane_ / 4 + i / 2 * 8;
  }
  RNNKERNELS_DEVICE int row_of(int i) const { return lane_ % 4 * 2 + i % 2; }

  // Calls fn(tile, i, row, unit, on) for each state that this lane owns; `on` says whether the row and the
  // unit exist.
  template <class Fn>
  RNNKERNELS_DEVICE void for_states(int rows, const Fn& fn) const {
    if (!owns()) return;
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      RNNKERNELS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int unit = unit_of(tile, i), row = row_of(i);
        fn(tile, i, row, unit, unit < last_unit_ && row < rows);
      }
    }
  }

  RNNKERNELS_DEVICE void run(const Pass& pass) {
    const int steps = pass.steps();
    const bool down = problem_.layout.reverse != Pass::kBackward;
    const auto step_at = [&](int s) { return pass.step_at(down ? steps - 1 - s : s); };
    team_.begin(rows_, steps);
    if (team_.rank() >= plan_.busy) return;
    for_states(rows_, [&](int tile, int i, int row, int unit, bool on) {
      state_[tile][i] = on ? pass.begin(row, unit) : State{};
      if (i % 2 == 0) decay_[tile][i / 2] = unit < last_unit_ ? pass.decay(unit) : 0;
    });
    Incoming ahead[kTiles][4];
    Step next{};
    if (steps > 0) {
      next = step_at(0);
      fetch(pass, next, ahead);
      put_operand(pass, next, ahead);
    }
    for (int s = 0; s < steps; ++s) {
      const Step step = next;
      Incoming incoming[kTiles][4];
      for_states(kTeamRows, [&](int tile, int i, int, int, bool) { incoming[tile][i] = ahead[tile][i]; });
      const bool last = s + 1 == steps;
      if (!last) {
        next = step_at(s + 1);
        fetch(pass, next, ahead);
      }
      team_.await(operands_ - 1);
      if (last && !pass.wants_last_update()) break;
      if (first_tile_ < last_tile_) multiply();
      join_parts();
      update(pass, step, incoming);
      device::sync_warp();  // all lanes have read the operand (teams.h)
      if (!last) put_operand(pass, next, ahead);
    }
    for_states(rows_, [&](int tile, int i, int row, int unit, bool on) {
      if (on) pass.end(row, unit, state_[tile][i]);
    });
  }

  // Loads W_hh, transposed for the backward pass. A lane only ever reads its own fragments, in registers and
  // in shared memory.
  RNNKERNELS_DEVICE void load_matrix(int64_t network) {
    RNNKERNELS_UNROLL
    for (int slice = 0; slice < kRegisterSlices; ++slice) {
      RNNKERNELS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) matrix_[tile][slice] = fragment(network, tile, slice);
      if (slice % kChunkSlices == kChunkSlices - 1) settle(slice + 1 - kChunkSlices);
    }
    for (int slice = kRegisterSlices; slice < plan_.part_slices; ++slice) {
      for (int tile = 0; tile < kTiles; ++tile) {
        shared_matrix().store(fragment_at(tile, slice), fragment(network, tile, slice));
      }
    }
  }
  // Makes the fragments of a chunk before the next chunk is loaded. ptxas does not move the shuffle: without
  // it, the factors of each word would occupy two registers until the last slice has arrived.
  RNNKERNELS_DEVICE void settle(int first_slice) {
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      RNNKERNELS_UNROLL
      for (int i = 0; i < 4 * kChunkSlices; ++i) {
        auto& x = matrix_[tile][first_slice + i / 4].x[i % 4];
        x = device::shuffle_xor(x, 0);
      }
    }
  }
  RNNKERNELS_DEVICE A fragment(int64_t network, int tile, int slice) const {
    const Matrix& w = problem_.weight;
    const float* data = static_cast<const float*>(w.data) + network * w.network_stride;
    const int64_t row_stride = Pass::kBackward ? w.column_stride : w.row_stride;
    const int64_t column_stride = Pass::kBackward ? w.row_stride : w.column_stride;
    // Opaque, because otherwise the addresses of all slices are computed at once and registers spill.
    const int first_column = device::opaque((first_slice_ + slice) * Factors::kDepth);
    return factors_.matrix(lane_, [&](int i, int k) {
      const int row = (first_tile_ + tile) * kTileUnits + i, column = first_column + k;
      const bool exists = first_tile_ + tile < last_tile_ && row < hidden_ && column < hidden_;
      return exists ? data[row * row_stride + column * column_stride] : 0.0f;
    });
  }
  RNNKERNELS_DEVICE device::Shared<uint32_t> shared_matrix() const {
    return device::shared_memory<uint32_t>(plan_.matrix_at, (plan_.shared_bytes - plan_.matrix_at) / 4);
  }
  RNNKERNELS_DEVICE int fragment_at(int tile, int slice) const {
    const int place =
        (warp_ * kTiles + tile) * (plan_.part_slices - kRegisterSlices) + slice - kRegisterSlices;
    return (place * device::kWarpLanes + lane_) * 4;
  }

  // sums_ = W x over this warp's part. Slices alternate between two sums, so that consecutive products are
  // independent.
  RNNKERNELS_DEVICE void multiply() {
    device::Sums even[kTiles], odd[kTiles];
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) even[tile] = odd[tile] = device::Sums{};
    const int words =
        team_.place(operands_ - 1, lane_ / 4, first_slice_ * static_cast<int>(kSliceWords)) + lane_ % 4;
    RNNKERNELS_UNROLL
    for (int first = 0; first < kRegisterSlices; first += kChunkSlices) {
      if (first >= plan_.part_slices) break;
      multiply(words, first, even, odd, [&](int tile, int slice) { return matrix_[tile][first + slice]; });
    }
    for (int first = kRegisterSlices; first < plan_.part_slices; first += kChunkSlices) {
      multiply(words, first, even, odd, [&](int tile, int slice) {
        return shared_matrix().template load<A>(fragment_at(tile, first + slice));
      });
    }
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      RNNKERNELS_UNROLL
      for (int i = 0; i < 4; ++i) sums_[tile].x[i] = even[tile].x[i] + odd[tile].x[i];
    }
  }
  template <class Fragment>
  RNNKERNELS_DEVICE void multiply(int words, int first, device::Sums (&even)[kTiles],
                                  device::Sums (&odd)[kTiles], const Fragment& fragment) const {
    uint32_t above[kChunkSlices], below[kChunkSlices];
    RNNKERNELS_UNROLL
    for (int slice = 0; slice < kChunkSlices; ++slice) {
      const int at = words + (first + slice) * static_cast<int>(kSliceWords);
      above[slice] = team_.word(at);
      below[slice] = team_.word(at + static_cast<int>(kSliceWords) / 2);
    }
    RNNKERNELS_UNROLL
    for (int slice = 0; slice < kChunkSlices; ++slice) {
      RNNKERNELS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        factors_.multiply(slice % 2 ? odd[tile] : even[tile], fragment(tile, slice), above[slice],
                          below[slice]);
      }
    }
  }

  // Adds the sums of the other parts of a column to those of its first part, in order.
  RNNKERNELS_DEVICE void join_parts() {
    if (plan_.parts == 1) return;
    const auto sums = device::shared_memory<float>(plan_.sums_at, (plan_.matrix_at - plan_.sums_at) / 4);
    const auto place = [&](int warp, int tile) {
      return (((warp - plan_.columns) * kTiles + tile) * device::kWarpLanes + lane_) * 4;
    };
    const bool any = first_tile_ < last_tile_;
    if (any && !owns()) {
      RNNKERNELS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) sums.store(place(warp_, tile), sums_[tile]);
    }
    device::sync_block();
    for (int warp = warp_ + plan_.columns; any && owns() && warp < plan_.warps; warp += plan_.columns) {
      RNNKERNELS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        const auto theirs = sums.template load<device::Sums>(place(warp, tile));
        RNNKERNELS_UNROLL
        for (int i = 0; i < 4; ++i) sums_[tile].x[i] += theirs.x[i];
      }
    }
  }

  RNNKERNELS_DEVICE void fetch(const Pass& pass, const Step& step, Incoming (&to)[kTiles][4]) const {
    for_states(step.rows, [&](int tile, int i, int row, int unit, bool on) {
      to[tile][i] = pass.fetch(step, row, unit, on);
    });
  }

  RNNKERNELS_DEVICE void update(const Pass& pass, const Step& step, const Incoming (&incoming)[kTiles][4]) {
    uint32_t bits[kTiles] = {};
    for_states(step.rows, [&](int tile, int i, int row, int unit, bool on) {
      const bool bit = pass.update(step, row, unit, on, decay_[tile][i / 2], incoming[tile][i],
                                   sums_[tile].x[i], state_[tile][i]);
      bits[tile] |= static_cast<uint32_t>(bit) << (i % 2 * 16 + i / 2 * 8 + lane_ / 4);
    });
    if constexpr (Pass::kKeepsBits) {
      if (owns()) keep_bits(pass, step, bits);
    }
  }

  // Stores the bits of two rows of each tile, half a word per tile. With an odd number of tiles, the last
  // tile also clears the other half of its word.
  RNNKERNELS_DEVICE void keep_bits(const Pass& pass, const Step& step, const uint32_t (&bits)[kTiles]) const {
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t both = bits[tile];
      RNNKERNELS_UNROLL
      for (int mask = 4; mask < device::kWarpLanes; mask *= 2) both |= device::shuffle_xor(both, mask);
      const int place = first_tile_ + tile;
      const bool alone = place % 2 == 0 && (place + 1) * kTileUnits >= hidden_;
      RNNKERNELS_UNROLL
      for (int i = 0; i < 2; ++i) {
        auto* halves = reinterpret_cast<uint16_t*>(pass.words(step, row_of(i)));  // GPUs are little-endian
        if (lane_ / 4 != 0 || row_of(i) >= step.rows || place >= last_tile_ || !pass.keeps()) continue;
        halves[place] = static_cast<uint16_t>(both >> (16 * i));
        if (alone) halves[place + 1] = 0;
      }
    }
  }

  RNNKERNELS_DEVICE void put_operand(const Pass& pass, const Step& step,
                                     const Incoming (&incoming)[kTiles][4]) {
    const unsigned n = operands_++;
    if (!owns()) return;
    float x[kTiles][4] = {};
    for_states(step.rows, [&](int tile, int i, int row, int unit, bool on) {
      x[tile][i] = pass.operand(step, row, unit, on, decay_[tile][i / 2], incoming[tile][i], state_[tile][i]);
    });
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      OperandWord words[Factors::kWordsOfLane];
      factors_.words(lane_, x[tile], words);
      const int first_word = (first_tile_ + tile) * kTileUnits / Factors::kUnitsOfWord;
      RNNKERNELS_UNROLL
      for (const OperandWord& word : words) {
        if (first_tile_ + tile >= last_tile_ || word.row >= rows_) continue;
        team_.put(n, word.row, first_word + word.word, word.bits);
      }
    }
  }
};

}  // namespace rnnkernels::cuda
