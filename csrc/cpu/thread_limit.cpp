// The rules by which the limit falls and rises.
#include "cpu/thread_limit.h"

#include <algorithm>

namespace rnnkernels::cpu {

namespace {

// A thread that wakes up late (about 0.1 ms) and a rare interruption by the system are no other process.
constexpr int64_t kLeastLost = 200'000, kLostFraction = 8;
// More threads have failed again if they fail within so many times the hold.
constexpr int64_t kSoon = 8;

}  // namespace

int ThreadLimit::limit(int threads, int64_t now) {
  int limit = limit_.load(std::memory_order_relaxed);
  if (limit == 0) return threads;
  if (now >= until_.load(std::memory_order_relaxed)) {
    limit = 2 * limit < threads ? 2 * limit : 0;
    raised_.store(now, std::memory_order_relaxed);
    until_.store(now + hold_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    limit_.store(limit, std::memory_order_relaxed);
    if (limit == 0) return threads;
  }
  return std::min(threads, limit);
}

void ThreadLimit::report(int threads, int64_t now, int64_t wall, int64_t lost) {
  if (lost < kLeastLost || lost < wall / kLostFraction) return;
  const int64_t hold = hold_.load(std::memory_order_relaxed);
  const bool soon = now - raised_.load(std::memory_order_relaxed) < kSoon * hold;
  const int64_t next = std::clamp(soon ? 2 * hold : hold / 2, kShortestHold, kLongestHold);
  hold_.store(next, std::memory_order_relaxed);
  until_.store(now + next, std::memory_order_relaxed);
  limit_.store(std::max(1, threads / 2), std::memory_order_relaxed);
}

}  // namespace rnnkernels::cpu
