// The engine: the time loop of a pass, with the matrix, the state and the threads. It does not depend on f.
//
// One call is one parallel region. Its threads pack the matrix into blocks of 16 columns and wait for each
// other once. Then each team of threads runs all steps for its own batch rows of its own network. Each of its
// members has some of the columns:
//
//   for each step:  wait for the team's operand
//                   for each group of column blocks, for each few rows:
//                     register tile -> product;  pass.update;  pass.operand of the next step
//
// The operand has two buffers, so that one barrier per step is enough: while some threads still read the
// operand of a step, others can already write that of the next one. Rows begin and end as the layout says: in
// a packed sequence a later step has fewer rows, so the forward pass loses rows and the backward pass gains
// them.
#pragma once

#include "core/problem.h"
#include "cpu/flush.h"
#include "cpu/simd.h"
#include "cpu/split.h"
#include "cpu/threads.h"
#include "cpu/tile.h"

namespace rnnkernels {
namespace {

using cpu::Attendance;
using cpu::Barrier;
using cpu::Members;
using cpu::TeamBarrier;
using cpu::ThreadPlan;
using cpu::Threads;

// Part `index` of `parts` of the batch rows, so that all parts have nearly the same sum of their rows' steps.
// Rows of a packed sequence differ in length, the longest first, so equal numbers of rows would leave the
// later threads idle.
Range rows_of_team(const Layout& layout, int64_t index, int64_t parts) {
  int64_t total = 0;
  for (int64_t t = 0; layout.rows && t < layout.steps; ++t) total += layout.rows[t];
  if (total == 0) return part_of(layout.batch, index, parts);
  Range range{0, 0};
  int64_t sum = 0, length = layout.steps;
  for (int64_t row = 0; row < layout.batch; ++row) {
    if (sum * parts < total * index) range.first = row + 1;
    if (sum * parts < total * (index + 1)) range.last = row + 1;
    while (length > 0 && layout.rows[length - 1] <= row) --length;
    sum += length;
  }
  return range;
}

// Sequences with more bytes per team are prefetched, because they do not stay in L2 between two uses.
constexpr int64_t kPrefetchBytes = 512 * 1024;

// The engine's arrays, one after another in memory of the caller. E is an element of the product's factors:
// one value, or a pair of bfloat16. All row strides are one block larger than needed, so that the rows of a
// tile do not fall into the same cache set.
template <class E>
struct Workspace {
  using T = typename SumOf<E>::type;
  Barrier* packing = nullptr;       // of all threads of the call
  TeamBarrier* barriers = nullptr;  // [slots]
  E* packed = nullptr;              // [G][blocks][depth][16]
  T* decay = nullptr;               // [G][blocks * 16]
  E* operand = nullptr;             // [2][G * B][operand_stride]
  T* state = nullptr;               // [G * B][row_stride]
  int64_t blocks = 0;
  int64_t depth = 0;  // H in elements
  int64_t row_stride = 0, operand_stride = 0;
  int64_t bytes = 0;

  Workspace(const Recurrence& p, const ThreadPlan& plan, void* memory) {
    blocks = (p.hidden + kBlock - 1) / kBlock;
    depth = (p.hidden + kValuesOf<E> - 1) / kValuesOf<E>;
    row_stride = (blocks + 1) * kBlock;
    operand_stride = row_stride / kValuesOf<E>;
    const int64_t rows = p.networks * p.layout.batch;
    char* at = static_cast<char*>(memory);
    const auto take = [&](int64_t size) {
      void* piece = at ? at + bytes : nullptr;
      bytes += (size + 63) / 64 * 64;
      return piece;
    };
    packing = static_cast<Barrier*>(take(sizeof(Barrier)));
    barriers = static_cast<TeamBarrier*>(take(plan.slots * sizeof(TeamBarrier)));
    packed = static_cast<E*>(take(p.networks * blocks * kBlock * depth * sizeof(E)));
    decay = static_cast<T*>(take(p.networks * blocks * kBlock * sizeof(T)));
    operand = static_cast<E*>(take(2 * rows * operand_stride * sizeof(E)));
    state = static_cast<T*>(take(rows * row_stride * sizeof(T)));
  }
};

template <class E, class Pass>
class Engine {
  using T = typename SumOf<E>::type;

 public:
  Engine(const Recurrence& problem, const ThreadPlan& plan, const Workspace<E>& workspace, const Pass& pass)
      : problem_(problem), plan_(plan), workspace_(workspace), pass_(pass) {
    const Layout& layout = problem.layout;
    const int64_t last = layout.steps - 1;
    const int64_t rows = last < 0 ? 0 : layout.first_row(last) + layout.rows_at(last);
    prefetches_ = problem.networks * rows * problem.hidden * static_cast<int64_t>(sizeof(T)) >
                  kPrefetchBytes * plan.slots;
  }

  void run(const Threads& threads) {
    workspace_.packing->reset();
    for (int i = 0; i < plan_.slots; ++i) workspace_.barriers[i].reset();
    run_slices(threads, plan_.slices(), this, &Engine::work);
  }

 private:
  const Recurrence& problem_;
  const ThreadPlan& plan_;
  const Workspace<E>& workspace_;
  const Pass& pass_;
  bool prefetches_;  // whether a sequence is larger than kPrefetchBytes per team

  // The part of one team's work that one thread does: some rows of the batch, and the columns of some members.
  struct Assignment {
    Range rows;
    TeamBarrier* barrier;
    Attendance attendance;
  };

  void work(int64_t first_slice, int64_t last_slice) {
    const unsigned mode = flush_subnormals();
    run_teams(first_slice, last_slice);
    set_mode(mode);
  }

  // All that one thread does: it is members first_slice .. last_slice-1, counted through all running teams.
  void run_teams(int64_t first_slice, int64_t last_slice) {
    const int64_t slices = plan_.slices(), members = plan_.members;
    prepare(first_slice, last_slice);
    workspace_.packing->wait(last_slice - first_slice, slices, 1);

    const int64_t teams = problem_.networks * plan_.row_groups;
    for (int64_t slice = first_slice; slice < last_slice;) {
      const int64_t slot = slice / members, first_member = slice % members;
      const int64_t count = least(members - first_member, last_slice - slice);
      const auto mask = static_cast<Members>(((uint64_t{1} << count) - 1) << first_member);
      Assignment mine{{}, &workspace_.barriers[slot], {mask}};
      for (int64_t team = slot; team < teams && mine.attendance.members; team += plan_.slots) {
        mine.rows = rows_of_team(problem_.layout, team % plan_.row_groups, plan_.row_groups);
        Pass pass = pass_;
        pass.network = team / plan_.row_groups;
        run_time_loop(pass, mine);
      }
      slice += count;
    }
  }

  // Packs this thread's slices of the matrix, transposed for the backward pass, and of the decays.
  void prepare(int64_t first_slice, int64_t last_slice) {
    const Matrix& w = problem_.weight;
    const int64_t blocks = workspace_.blocks, hidden = problem_.hidden;
    const Range mine = parts_of(problem_.networks * blocks, first_slice, last_slice, plan_.slices());
    const bool multiplies = problem_.layout.steps > (pass_.wants_last_update() ? 0 : 1);
    for (int64_t i = mine.first; i < mine.last; ++i) {
      const int64_t network = i / blocks, block = i % blocks;
      const int64_t n_stride = Pass::kBackward ? w.column_stride : w.row_stride;
      const int64_t k_stride = Pass::kBackward ? w.row_stride : w.column_stride;
      if (multiplies)
        pack_blocks(static_cast<const T*>(w.data) + network * w.network_stride, hidden, hidden, n_stride,
                    k_stride, block, block + 1,
                    workspace_.packed + network * blocks * kBlock * workspace_.depth);
      const T* decay = static_cast<const T*>(problem_.decay) + network * problem_.decay_network_stride;
      T* padded = workspace_.decay + i * kBlock;
      for (int64_t c = 0; c < kBlock; ++c) {
        const int64_t unit = block * kBlock + c;
        padded[c] = unit < hidden ? decay[unit * problem_.decay_stride] : T(0);
      }
    }
  }

  // Calls fn(blocks) for each range of columns that a thread has.
  template <class Fn>
  RNNKERNELS_INLINE void for_columns(const Assignment& mine, Fn&& fn) const {
    for (uint64_t rest = mine.attendance.members; rest;) {
      const int first = __builtin_ctzll(rest), count = __builtin_ctzll(~(rest >> first));
      fn(parts_of(workspace_.blocks, first, first + count, plan_.members));
      rest &= ~(((uint64_t{1} << count) - 1) << first);
    }
  }

  T* state_of(const Pass& pass, int64_t row) const {
    return workspace_.state + (pass.network * problem_.layout.batch + row) * workspace_.row_stride;
  }
  E* operand_of(const Pass& pass, int64_t buffer, int64_t row) const {
    const int64_t rows = problem_.networks * problem_.layout.batch;
    return workspace_.operand +
           (buffer * rows + pass.network * problem_.layout.batch + row) * workspace_.operand_stride;
  }

  // Writes one block of the operand of a step into the row of a buffer.
  static RNNKERNELS_INLINE void form_operand(const Pass& pass, const typename Pass::Step& step, int64_t row,
                                             int64_t column, Block<T>& state, E* operand) {
    if constexpr (kValuesOf<E> == 1) {
      pass.operand(step, row, column, state, operand + column);
    } else {
      alignas(64) T x[kBlock] = {};
      pass.operand(step, row, column, state, x);
      store_pairs(operand + column / 2, load(x));
    }
  }

  // The end of those rows of the assignment that belong to a step.
  static int64_t end_of_rows(const typename Pass::Step& step, const Assignment& mine) {
    return step.rows < mine.rows.first ? mine.rows.first : least(step.rows, mine.rows.last);
  }

  // Calls fn(row, column, state) for every block of some rows.
  template <class Fn>
  void for_blocks(const Pass& pass, const Assignment& mine, int64_t first_row, int64_t last_row,
                  Fn&& fn) const {
    for_columns(mine, [&](const Range& blocks) {
      for (int64_t row = first_row; row < last_row; ++row) {
        for (int64_t block = blocks.first; block < blocks.last; ++block) {
          T* at = state_of(pass, row) + block * kBlock;
          Block<T> state = load_block(at);
          fn(row, block * kBlock, state);
          store_block(at, state);
        }
      }
    });
  }

  // The time loop: all steps for one assignment.
  void run_time_loop(Pass& pass, Assignment& mine) {
    const int64_t steps = problem_.layout.steps;
    const bool descending = problem_.layout.reverse != Pass::kBackward;
    const auto step_at = [&](int64_t s) {
      return s < steps ? pass.at(descending ? steps - 1 - s : s) : typename Pass::Step{};
    };
    for_blocks(pass, mine, mine.rows.first, mine.rows.last,
               [&](int64_t row, int64_t column, Block<T>& state) { pass.begin(row, column, state); });
    typename Pass::Step step{}, next = step_at(0);
    form_new_operands(pass, mine, step, next, 0);
    for (int64_t s = 0; s < steps; ++s) {
      step = next;
      next = step_at(s + 1);
      mine.barrier->wait(&mine.attendance, plan_.members);
      if (!mine.attendance.members) return;
      if (s + 1 == steps && !pass.wants_last_update()) break;
      multiply_and_update(pass, mine, step, next, s);
      form_new_operands(pass, mine, step, next, s + 1);
    }
    for_blocks(pass, mine, mine.rows.first, mine.rows.last,
               [&](int64_t row, int64_t column, Block<T>& state) { pass.end(row, column, state); });
  }

  // Forms the operand of the rows that begin with a step, the s-th of the time loop: the step `before` it has
  // fewer.
  void form_new_operands(const Pass& pass, const Assignment& mine, const typename Pass::Step& before,
                         const typename Pass::Step& step, int64_t s) const {
    for_blocks(pass, mine, end_of_rows(before, mine), end_of_rows(step, mine),
               [&](int64_t row, int64_t column, Block<T>& state) {
                 form_operand(pass, step, row, column, state, operand_of(pass, s % 2, row));
               });
  }

  // All tiles of one step for one assignment.
  void multiply_and_update(const Pass& pass, const Assignment& mine, const typename Pass::Step& step,
                           const typename Pass::Step& next, int64_t s) const {
    for_columns(mine, [&](const Range& blocks) {
      multiply_and_update(pass, {mine.rows.first, end_of_rows(step, mine)}, blocks, step, next, s);
    });
  }

  void multiply_and_update(const Pass& pass, const Range& some_rows, const Range& some_blocks,
                           const typename Pass::Step& step, const typename Pass::Step& next,
                           int64_t s) const {
    const int64_t rows = some_rows.last - some_rows.first, blocks = some_blocks.last - some_blocks.first;
    if (rows <= 0 || blocks <= 0) return;
    const int64_t row_tiles = (rows + kTileRows<E> - 1) / kTileRows<E>;
    const int64_t most_blocks = tile_blocks<E>(static_cast<int>((rows + row_tiles - 1) / row_tiles));
    const int64_t groups = (blocks + most_blocks - 1) / most_blocks;
    for (int64_t group = 0; group < groups; ++group) {
      const Range columns = part_of(blocks, group, groups);
      for (int64_t tile = 0; tile < row_tiles; ++tile) {
        const Range tile_rows = part_of(rows, tile, row_tiles);
        finish_tile(pass, step, next, s, some_rows.first + tile_rows.first, some_rows.first + tile_rows.last,
                    some_blocks.first + columns.first, some_blocks.first + columns.last);
      }
    }
  }

  // One register tile of the product, and the cell's work on it while it is in L1.
  void finish_tile(const Pass& pass, const typename Pass::Step& step, const typename Pass::Step& next,
                   int64_t s, int64_t first_row, int64_t last_row, int64_t first_block,
                   int64_t last_block) const {
    alignas(64) T product[kMostRows * kMostBlocks * kBlock];
    const int64_t depth = workspace_.depth, blocks = last_block - first_block;
    const E* packed = workspace_.packed + (pass.network * workspace_.blocks + first_block) * kBlock * depth;
    for (int64_t row = first_row; prefetches_ && row < last_row; ++row) {
      for (int64_t b = 0; b < blocks; ++b) pass.prefetch(step, next, row, (first_block + b) * kBlock);
    }
    kTiles<E>.at(last_row - first_row, blocks)(operand_of(pass, s % 2, first_row), workspace_.operand_stride,
                                               1, packed, depth, product);
    update_tile(pass, step, next, s, first_row, last_row, first_block, blocks, product);
  }

  // The pass and the steps are arguments by value, so that they stay in registers whatever is written to
  // memory.
  RNNKERNELS_INLINE void update_tile(const Pass pass, const typename Pass::Step step,
                                     const typename Pass::Step next, int64_t s, int64_t first_row,
                                     int64_t last_row, int64_t first_block, int64_t blocks,
                                     const T* product) const {
    const int64_t row_stride = workspace_.row_stride, operand_stride = workspace_.operand_stride;
    T* state = state_of(pass, first_row);
    E* operand = operand_of(pass, (s + 1) % 2, first_row);
    for (int64_t row = first_row; row < last_row; ++row) {
      const bool goes_on = row < next.rows;
      for (int64_t b = 0; b < blocks; ++b, product += kBlock) {
        const int64_t column = (first_block + b) * kBlock;
        Block<T> now = load_block(state + column);
        pass.update(step, row, column, product, now);
        if (goes_on) form_operand(pass, next, row, column, now, operand);
        store_block(state + column, now);
      }
      state += row_stride;
      operand += operand_stride;
    }
  }
};

}  // namespace
}  // namespace rnnkernels
