// How many threads are worth using while other processes use the same CPUs.
//
// Threads that wait for each other are slower than one thread as soon as another process keeps one of them from
// running. So each call reports how long its threads were kept from their CPUs. If that is long, the following
// calls use half as many threads, for a time that doubles as long as more threads fail again soon after it.
#pragma once

#include <atomic>
#include <cstdint>

namespace rnnkernels::cpu {

// All times are in nanoseconds. Calls of several threads may use one object at the same time.
class ThreadLimit {
 public:
  static constexpr int64_t kShortestHold = 10'000'000, kLongestHold = 1'000'000'000;

  // How many of `threads` threads a call that begins now uses.
  int limit(int threads, int64_t now);

  // A call with so many threads has ended after `wall`; one of its threads was kept from its CPU for `lost`.
  void report(int threads, int64_t now, int64_t wall, int64_t lost);

 private:
  std::atomic<int> limit_{0};  // 0 is no limit
  std::atomic<int64_t> hold_{kShortestHold / 2};
  std::atomic<int64_t> until_{0};   // when the limit is doubled
  std::atomic<int64_t> raised_{0};  // when it was doubled last
};

}  // namespace rnnkernels::cpu
