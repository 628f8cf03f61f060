// The engine: a team of blocks has all of W_hh on its multiprocessors, for the whole sequence, and walks 8
// rows of one network at a time.
//
//   a block owns plan.tiles tiles of 16 units: their rows of W, of which its warps each have a column of
//   kTiles tiles, and of the depth one of plan.parts
//   shared memory has the operand of all units, twice: of this step, and of the next (teams.h)
//
//   for each step:  fetch what the next one reads;  await the operand;  sums = W x;  join the parts' sums;
//                   sweep.update;  sweep.operand, put for the next step
//
// A lane has 4 numbers of a tile: units g and g + 8, rows 2q and 2q + 1 (device.h). Of the parts of a column
// the first one owns the states. Rows that do not belong to a step have a zero operand.
#pragma once

#include "cuda/sweeps.h"
#include "cuda/teams.h"

namespace rnnkernels::cuda {

template <class Sweep, class Factors, class Team, int kTiles, int kRegisterSlices>
class Engine {
 public:
  RNNKERNELS_DEVICE Engine(const typename Sweep::Problem& problem, const Plan& plan, bool exact,
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

  // Walks of 8 rows of one network, dealt out to its teams in turn.
  RNNKERNELS_DEVICE void run(int64_t first_network) {
    const int64_t network = first_network + team_.team() / plan_.teams;
    load_matrix(network);
    for (int64_t row = int64_t{team_.team() % plan_.teams} * kTeamRows; row < problem_.layout.batch;
         row += int64_t{plan_.teams} * kTeamRows) {
      rows_ = static_cast<int>(min(problem_.layout.batch - row, int64_t{kTeamRows}));
      run(Sweep(problem_, Walk{network, row}, rows_));
    }
    team_.end();
  }

 private:
  using State = typename Sweep::State;
  using Incoming = typename Sweep::Incoming;
  using A = typename Factors::A;

  const typename Sweep::Problem& problem_;
  const Plan& plan_;
  const Factors factors_;
  Team team_;
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

  // Calls fn(tile, i, row, unit, whether there is this number) for the numbers that this lane owns.
  template <class Fn>
  RNNKERNELS_DEVICE void for_numbers(int rows, const Fn& fn) const {
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

  RNNKERNELS_DEVICE void run(const Sweep& sweep) {
    const int steps = sweep.steps();
    const bool down = problem_.layout.reverse != Sweep::kBackward;
    const auto step_at = [&](int s) { return sweep.at_step(down ? steps - 1 - s : s); };
    team_.begin(rows_, steps);
    if (team_.rank() >= plan_.busy) return;
    for_numbers(rows_, [&](int tile, int i, int row, int unit, bool on) {
      state_[tile][i] = on ? sweep.begin(row, unit) : State{};
      if (i % 2 == 0) decay_[tile][i / 2] = unit < last_unit_ ? sweep.decay(unit) : 0;
    });
    Incoming ahead[kTiles][4];
    Step next{};
    if (steps > 0) {
      next = step_at(0);
      fetch(sweep, next, ahead);
      put_operand(sweep, next, ahead);
    }
    for (int s = 0; s < steps; ++s) {
      const Step step = next;
      Incoming incoming[kTiles][4];
      for_numbers(kTeamRows, [&](int tile, int i, int, int, bool) { incoming[tile][i] = ahead[tile][i]; });
      const bool last = s + 1 == steps;
      if (!last) {
        next = step_at(s + 1);
        fetch(sweep, next, ahead);
      }
      team_.await(operands_ - 1);
      if (last && !sweep.wants_last_update()) break;
      if (first_tile_ < last_tile_) multiply();
      join_parts();
      update(sweep, step, incoming);
      device::sync_warp();  // all of its lanes have read the operand (teams.h)
      if (!last) put_operand(sweep, next, ahead);
    }
    for_numbers(rows_, [&](int tile, int i, int row, int unit, bool on) {
      if (on) sweep.end(row, unit, state_[tile][i]);
    });
  }

  // Transposed for the backward walk. A lane keeps its own fragments, in shared memory as well.
  RNNKERNELS_DEVICE void load_matrix(int64_t network) {
    RNNKERNELS_UNROLL
    for (int slice = 0; slice < kRegisterSlices; ++slice) {
      RNNKERNELS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) matrix_[tile][slice] = fragment(network, tile, slice);
      if (slice % kChunk == kChunk - 1) settle(slice + 1 - kChunk);
    }
    for (int slice = kRegisterSlices; slice < plan_.part_slices; ++slice) {
      for (int tile = 0; tile < kTiles; ++tile) {
        shared_matrix().store(fragment_at(tile, slice), fragment(network, tile, slice));
      }
    }
  }
  // A chunk's fragments are made before the next is fetched. A shuffle is what ptxas does not put off:
  // without it, the factors of a word lie in two registers until the last slice has come.
  RNNKERNELS_DEVICE void settle(int first_slice) {
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      RNNKERNELS_UNROLL
      for (int i = 0; i < 4 * kChunk; ++i) {
        auto& x = matrix_[tile][first_slice + i / 4].x[i % 4];
        x = device::shuffle_xor(x, 0);
      }
    }
  }
  RNNKERNELS_DEVICE A fragment(int64_t network, int tile, int slice) const {
    const Matrix& w = problem_.weight;
    const float* data = static_cast<const float*>(w.data) + network * w.network_stride;
    const int64_t row_stride = Sweep::kBackward ? w.column_stride : w.row_stride;
    const int64_t column_stride = Sweep::kBackward ? w.row_stride : w.column_stride;
    // Opaque, or the addresses of all slices are worked out at once and do not fit the registers.
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

  // A chunk of slices at a time, in turn into two sums, whose products need not wait for each other.
  RNNKERNELS_DEVICE void multiply() {
    device::Sums even[kTiles], odd[kTiles];
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) even[tile] = odd[tile] = device::Sums{};
    const int words =
        team_.place(operands_ - 1, lane_ / 4, first_slice_ * static_cast<int>(kSliceWords)) + lane_ % 4;
    RNNKERNELS_UNROLL
    for (int first = 0; first < kRegisterSlices; first += kChunk) {
      if (first >= plan_.part_slices) break;
      multiply(words, first, even, odd, [&](int tile, int slice) { return matrix_[tile][first + slice]; });
    }
    for (int first = kRegisterSlices; first < plan_.part_slices; first += kChunk) {
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
    uint32_t above[kChunk], below[kChunk];
    RNNKERNELS_UNROLL
    for (int slice = 0; slice < kChunk; ++slice) {
      const int at = words + (first + slice) * static_cast<int>(kSliceWords);
      above[slice] = team_.word(at);
      below[slice] = team_.word(at + static_cast<int>(kSliceWords) / 2);
    }
    RNNKERNELS_UNROLL
    for (int slice = 0; slice < kChunk; ++slice) {
      RNNKERNELS_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        factors_.multiply(slice % 2 ? odd[tile] : even[tile], fragment(tile, slice), above[slice],
                          below[slice]);
      }
    }
  }

  // The sums of the other parts of a column, in their order, to its first.
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

  RNNKERNELS_DEVICE void fetch(const Sweep& sweep, const Step& step, Incoming (&to)[kTiles][4]) const {
    for_numbers(step.rows, [&](int tile, int i, int row, int unit, bool on) {
      to[tile][i] = sweep.fetch(step, row, unit, on);
    });
  }

  RNNKERNELS_DEVICE void update(const Sweep& sweep, const Step& step, const Incoming (&incoming)[kTiles][4]) {
    uint32_t bits[kTiles] = {};
    for_numbers(step.rows, [&](int tile, int i, int row, int unit, bool on) {
      const bool bit = sweep.update(step, row, unit, on, decay_[tile][i / 2], incoming[tile][i],
                                    sums_[tile].x[i], state_[tile][i]);
      bits[tile] |= static_cast<uint32_t>(bit) << (i % 2 * 16 + i / 2 * 8 + lane_ / 4);
    });
    if constexpr (Sweep::kKeepsBits) {
      if (owns()) keep_bits(sweep, step, bits);
    }
  }

  // The bits of a tile's two rows in this column of lanes, half a word each. The half of a word that nobody
  // owns is cleared along with the last tile.
  RNNKERNELS_DEVICE void keep_bits(const Sweep& sweep, const Step& step,
                                   const uint32_t (&bits)[kTiles]) const {
    RNNKERNELS_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t both = bits[tile];
      RNNKERNELS_UNROLL
      for (int mask = 4; mask < device::kWarpLanes; mask *= 2) both |= device::shuffle_xor(both, mask);
      const int place = first_tile_ + tile;
      const bool alone = place % 2 == 0 && (place + 1) * kTileUnits >= hidden_;
      RNNKERNELS_UNROLL
      for (int i = 0; i < 2; ++i) {
        auto* halves = reinterpret_cast<uint16_t*>(sweep.words(step, row_of(i)));  // GPUs are little-endian
        if (lane_ / 4 != 0 || row_of(i) >= step.rows || place >= last_tile_ || !sweep.keeps()) continue;
        halves[place] = static_cast<uint16_t>(both >> (16 * i));
        if (alone) halves[place + 1] = 0;
      }
    }
  }

  RNNKERNELS_DEVICE void put_operand(const Sweep& sweep, const Step& step,
                                     const Incoming (&incoming)[kTiles][4]) {
    const unsigned n = operands_++;
    if (!owns()) return;
    float x[kTiles][4] = {};
    for_numbers(step.rows, [&](int tile, int i, int row, int unit, bool on) {
      x[tile][i] =
          sweep.operand(step, row, unit, on, decay_[tile][i / 2], incoming[tile][i], state_[tile][i]);
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
