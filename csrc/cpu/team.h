// The threads of one call: how many there are, who does what, and how those that share a matrix wait
// for each other. Compiled once, for no particular instruction set.
#pragma once

#include <atomic>
#include <cstdint>

namespace rnnkernels::cpu {

// The caller's threads. `run` cuts the slices 0..slices-1 into ranges, one range a thread, and calls
// work(argument, first, last) for all of them at the same time; a thread may be given several slices
// when fewer threads turn up than were promised.
struct Threads {
  int count = 1;
  // Whether all ranges really run at the same time, so that one may wait for another.
  bool may_wait = false;
  void (*run)(int slices, void (*work)(void* argument, int first, int last), void* argument) = nullptr;
  // About what starting the threads costs, in multiply-adds: less than this is one thread's.
  int64_t worth_starting = 2 * 1024 * 1024;
};

// How the work is cut: networks and batch rows into teams, and the hidden units of a team among its
// members, who wait for each other once a step.
struct ThreadPlan {
  int64_t row_groups = 1;  // teams a network
  int members = 1;         // of one team
  int slots = 1;           // teams that run at the same time
  int slices() const { return slots * members; }
};

ThreadPlan make_thread_plan(int64_t networks, int64_t steps, int64_t batch, int64_t hidden,
                            int64_t element_size, const Threads& threads);

// How a product is cut: rectangles of the result, of which each share has some.
struct ProductPlan {
  int64_t row_parts = 1;
  int64_t column_parts = 1;
  int slices = 1;
};

ProductPlan make_product_plan(int64_t networks, int64_t rows, int64_t depth, int64_t columns,
                              const Threads& threads);

// A meeting point for `total` slices, used any number of times. The count only grows, so nobody has
// to reset it. Waiting spins for a while (a step takes microseconds) and then gives up the core.
class Barrier {
 public:
  void reset() { arrived_.store(0, std::memory_order_relaxed); }
  // `weight` slices arrive at the `round`-th meeting, rounds counted from 1.
  void wait(int64_t weight, int64_t total, int64_t round);

 private:
  alignas(64) std::atomic<int64_t> arrived_;
};

}  // namespace rnnkernels::cpu
