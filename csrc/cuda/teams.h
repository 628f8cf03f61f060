// The exchange of a step's operand among the blocks of a team. Operands are counted over the whole launch.
// The threads that own states `put` the words of operand n; `await(n)` returns, in every thread of every
// block, once all words of operand n are in the block's shared memory, at [n % 2][row][word].
//
//   BlockTeam     words are put into shared memory; await is one sync_block
//   ClusterTeam   every word is sent to every block of the cluster, and counted by an mbarrier there
//   GridTeam      every word is stored in global memory with the mark n + 1; every block polls all words
//
// Two buffers are enough. A thread that puts operand n + 2 has received all of operand n + 1. Its owners put
// operand n + 1 only after their warp (sync_warp) and, with several parts, their block (sync_block) had read
// all of operand n.
#pragma once

#include "cuda/device.h"
#include "cuda/factors.h"

namespace rnnkernels::cuda {

class TeamBase {
 public:
  RNNKERNELS_DEVICE TeamBase(const LaunchPlan& plan, device::Place me)
      : plan_(plan),
        me_(me),
        operand_(device::shared_memory<uint32_t>(plan.operand_at, int64_t{2} * kTeamRows * plan.stride)) {}

  // The index of word (row, i) of operand n.
  RNNKERNELS_DEVICE int place(unsigned n, int row, int i) const {
    return (static_cast<int>(n % 2) * kTeamRows + row) * plan_.stride + i;
  }
  RNNKERNELS_DEVICE uint32_t word(int at) const { return operand_[at]; }

  // Before a scan of `rows` rows: clears the other rows and the padding words, which are multiplied but never
  // put.
  RNNKERNELS_DEVICE void begin(int rows, int /*steps*/) {
    rows_ = rows;
    for (int row = 0; row < kTeamRows; ++row) {
      for (int i = (row < rows ? plan_.words : 0) + me_.thread; i < plan_.padded_words; i += me_.threads) {
        operand_.set(place(0, row, i), 0);
        operand_.set(place(1, row, i), 0);
      }
    }
  }

 protected:
  const LaunchPlan& plan_;
  const device::Place me_;
  const device::Shared<uint32_t> operand_;
  int rows_ = 0;
};

class BlockTeam : public TeamBase {
 public:
  static constexpr bool kTogether = false;
  RNNKERNELS_DEVICE BlockTeam(const LaunchPlan& plan, device::Place me, void*) : TeamBase(plan, me) {}
  RNNKERNELS_DEVICE int team() const { return me_.block; }
  RNNKERNELS_DEVICE int rank() const { return 0; }

  RNNKERNELS_DEVICE void put(unsigned n, int row, int i, uint32_t bits) const {
    operand_.set(place(n, row, i), bits);
  }
  RNNKERNELS_DEVICE void await(unsigned) const { device::sync_block(); }
  RNNKERNELS_DEVICE void end() const {}
};

// One scan per launch: `n` starts at 0, so n / 2 is the number of completed phases of its mbarrier.
class ClusterTeam : public TeamBase {
 public:
  static constexpr bool kTogether = false;
  RNNKERNELS_DEVICE ClusterTeam(const LaunchPlan& plan, device::Place me, void*) : TeamBase(plan, me) {}
  RNNKERNELS_DEVICE int team() const { return me_.block / me_.cluster_size; }
  RNNKERNELS_DEVICE int rank() const { return me_.cluster_rank; }

  RNNKERNELS_DEVICE void begin(int rows, int steps) {
    TeamBase::begin(rows, steps);
    steps_ = steps;
    if (me_.thread == 0) {
      for (unsigned n = 0; n < 2; ++n) {
        barrier(n).init(1);
        expect(n);
      }
    }
    device::sync_cluster();
  }
  RNNKERNELS_DEVICE void put(unsigned n, int row, int i, uint32_t bits) const {
    for (int other = 0; other < plan_.busy; ++other) {
      const int to = (me_.cluster_rank + other) % plan_.busy;
      device::store_async(operand_.of_peer(to), place(n, row, i), bits, barrier(n).of_peer(to));
    }
  }
  RNNKERNELS_DEVICE void await(unsigned n) const {
    barrier(n).wait(static_cast<int>(n / 2 % 2));
    if (me_.thread == 0) expect(n + 2);
  }
  // A block must not return while peers may still access its shared memory.
  RNNKERNELS_DEVICE void end() const { device::sync_cluster(); }

 private:
  int steps_ = 0;

  RNNKERNELS_DEVICE device::Mbarrier barrier(unsigned n) const {
    return device::Mbarrier(device::shared_memory<uint64_t>(n % 2 * sizeof(uint64_t), 1));
  }
  RNNKERNELS_DEVICE void expect(unsigned n) const {
    if (static_cast<int>(n) >= steps_) return;
    barrier(n).expect(rows_ * plan_.words * static_cast<int>(sizeof(uint32_t)));
    barrier(n).arrive();
  }
};

class GridTeam : public TeamBase {
 public:
  static constexpr bool kTogether = true;
  RNNKERNELS_DEVICE GridTeam(const LaunchPlan& plan, device::Place me, void* workspace)
      : TeamBase(plan, me),
        words_(static_cast<uint64_t*>(workspace) + int64_t{2} * kTeamRows * plan.words * team()) {}
  RNNKERNELS_DEVICE int team() const { return me_.block / plan_.blocks; }
  RNNKERNELS_DEVICE int rank() const { return me_.block % plan_.blocks; }

  RNNKERNELS_DEVICE void begin(int rows, int steps) {
    device::sync_block();  // all operands of the previous scan have been read
    TeamBase::begin(rows, steps);
  }
  RNNKERNELS_DEVICE void put(unsigned n, int row, int i, uint32_t bits) const {
    device::store_word(at(n, row, i), bits, n + 1);
  }
  // Loads a pair of words of every row at once, so that the latencies overlap.
  RNNKERNELS_DEVICE void await(unsigned n) const {
    for (int i = 2 * me_.thread; i < plan_.words; i += 2 * me_.threads) {
      uint32_t bits[kTeamRows][2];
      device::await_words(at(n, 0, i), plan_.words, rows_, n + 1, bits);
      RNNKERNELS_UNROLL
      for (int row = 0; row < kTeamRows; ++row) {
        if (row >= rows_) continue;
        operand_.set(place(n, row, i), bits[row][0]);
        operand_.set(place(n, row, i + 1), bits[row][1]);
      }
    }
    device::sync_block();
  }
  RNNKERNELS_DEVICE void end() const {}

 private:
  uint64_t* const words_;  // [2][kTeamRows][words]

  RNNKERNELS_DEVICE uint64_t* at(unsigned n, int row, int i) const {
    return words_ + (static_cast<int64_t>(n % 2) * kTeamRows + row) * plan_.words + i;
  }
};

}  // namespace rnnkernels::cuda
