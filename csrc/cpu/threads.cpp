// Which work each thread has, and how threads wait for each other.
#include "cpu/threads.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <thread>

namespace rnnkernels::cpu {

namespace {

// Tells the processor that this thread spins.
void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About what a barrier costs, in multiply-adds: a step with fewer of them is not divided.
constexpr int64_t kBarrierCost = 24 * 1024;
// Batch rows per thread from which on the register tile is limited by its arithmetic, not by reading the
// matrix from the cache.
constexpr int64_t kEnoughRows = 4;

// How long a thread spins before it yields its CPU: 0.02 to 0.1 ms.
constexpr int kSpins = 1000;
// How long a thread waits before it leaves its team. It must be longer than what a thread of a quiet machine
// takes to clear a page of 2 MB, and shorter than the time slice of another process.
constexpr int64_t kPatience = 250'000, kPatienceSteps = 2;

}  // namespace

// The rule, in this order: one thread if the whole problem is small; whole networks and batch rows to each
// thread, because they need no barrier; then the units of a step, if a step has enough work for a barrier.
ThreadPlan make_thread_plan(int64_t networks, int64_t steps, int64_t batch, int64_t hidden,
                            int64_t element_size, const Threads& threads) {
  ThreadPlan plan;
  // A double, because the product may exceed 63 bits.
  const double step_work =
      static_cast<double>(batch * hidden) * static_cast<double>(hidden * element_size) / 4;
  const double work = static_cast<double>(networks) * static_cast<double>(steps) * step_work;
  if (threads.count <= 1 || work < static_cast<double>(threads.worth_starting)) return plan;

  const int64_t wanted = (threads.count + networks - 1) / networks;  // threads for each network
  plan.row_groups = std::max<int64_t>(1, std::min(wanted, batch / kEnoughRows));
  const int64_t teams = networks * plan.row_groups;
  plan.slots = static_cast<int>(std::min<int64_t>(teams, threads.count));
  if (threads.may_wait && steps > 1 && step_work / static_cast<double>(plan.row_groups) >= kBarrierCost) {
    const int64_t blocks = (hidden + 15) / 16;
    plan.members = static_cast<int>(std::min<int64_t>({threads.count / plan.slots, blocks, kMostMembers}));
  }
  return plan;
}

// Divides into as many rectangles as there are threads, in the way whose largest rectangle has the least
// work. Packing a column of the right matrix counts as much as kPackingRows rows.
ProductPlan make_product_plan(int64_t networks, int64_t rows, int64_t depth, int64_t columns,
                              const Threads& threads) {
  ProductPlan plan;
  const __int128 work = static_cast<__int128>(networks) * rows * depth * columns;
  if (threads.count <= 1 || work < threads.worth_starting) return plan;
  constexpr int64_t kTileRows = 6, kPackingRows = 8;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows, blocks = (columns + 15) / 16;
  const int64_t wanted = (threads.count + networks - 1) / networks;  // rectangles for each network
  int64_t least = -1;
  for (int64_t parts = 1; parts <= std::min(wanted, blocks); ++parts) {
    const int64_t row_parts = std::min(tiles, wanted / parts);
    const int64_t cost =
        ((tiles + row_parts - 1) / row_parts * kTileRows + kPackingRows) * ((blocks + parts - 1) / parts);
    if (least >= 0 && cost >= least) continue;
    least = cost;
    plan.row_parts = row_parts;
    plan.column_parts = parts;
  }
  plan.slices =
      static_cast<int>(std::min<int64_t>(threads.count, networks * plan.row_parts * plan.column_parts));
  return plan;
}

void Barrier::wait(int64_t slices, int64_t total, int64_t round) {
  if (slices == total) return;
  const int64_t target = total * round;
  int64_t seen = arrived_.fetch_add(slices, std::memory_order_acq_rel) + slices;
  for (int spins = 0; seen < target; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
    seen = arrived_.load(std::memory_order_acquire);
  }
}

void TeamBarrier::wait(Attendance* mine, int team) {
  const int count = std::popcount(mine->members);
  if (count == team) return;
  if (mine->rounds == 0) mine->began = nanoseconds();
  ++mine->rounds;
  const auto target = static_cast<uint32_t>(team * mine->rounds);
  uint64_t state = state_.fetch_add(uint64_t(count) << 32, std::memory_order_acq_rel);
  if (static_cast<uint32_t>(state >> 32) + count == target) {
    const auto left = static_cast<Members>(state);
    if (left) state_.fetch_and(~uint64_t(left), std::memory_order_relaxed);
    mine->members |= left;
    return;
  }
  int64_t deadline = 0;
  for (int spins = 0;; ++spins) {
    state = state_.load(std::memory_order_acquire);
    if (static_cast<int32_t>(static_cast<uint32_t>(state >> 32) - target) >= 0) return;
    if (spins < kSpins) {
      pause();
    } else if (leave_if_late(*mine, state, &deadline)) {
      mine->members = 0;
      return;
    } else {
      std::this_thread::yield();
    }
  }
}

// `state` was read when somebody was still missing. If it has changed since, the thread does not leave.
bool TeamBarrier::leave_if_late(const Attendance& mine, uint64_t state, int64_t* deadline) {
  const int64_t now = nanoseconds();
  if (*deadline == 0) {
    const int64_t step = (now - mine.began) / mine.rounds;
    *deadline = now + std::max(kPatience, kPatienceSteps * step);
  }
  return now > *deadline &&
         state_.compare_exchange_strong(state, state | mine.members, std::memory_order_acq_rel);
}

int64_t nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace rnnkernels::cpu
