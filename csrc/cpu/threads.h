// The threads of one call: how many there are, which work each of them has, and the barriers at which they
// wait for each other. Compiled once, for no particular instruction set.
#pragma once

#include <atomic>
#include <cstdint>

namespace rnnkernels::cpu {

// The caller's threads. `run` divides the slices 0 .. slices-1 into ranges and calls
// work(argument, first, last) for each range first .. last-1 in one of `count` threads. A range has several
// slices where fewer threads run than were promised. No thread runs two ranges.
struct Threads {
  int count = 1;
  // Whether all ranges really run at the same time, so that one may wait for another.
  bool may_wait = false;
  void (*run)(const Threads&, int slices, void (*work)(void* argument, int first, int last),
              void* argument) = nullptr;
  // About what starting the threads costs, in multiply-adds; smaller problems run in the calling thread.
  int64_t worth_starting = 2 * 1024 * 1024;
};

// How a recurrence is divided among threads: each team of threads has some batch rows of one network, and
// each member of a team has some hidden units of them. The members wait for each other once per step.
struct ThreadPlan {
  int64_t row_groups = 1;  // teams per network
  int members = 1;         // threads per team
  int slots = 1;           // teams that run at the same time
  // One slice of the work for each member of each running team.
  int slices() const { return slots * members; }
};

ThreadPlan make_thread_plan(int64_t networks, int64_t steps, int64_t batch, int64_t hidden,
                            int64_t element_size, const Threads& threads);

// How a product is divided: into row_parts x column_parts rectangles of each network's result, of which each
// slice has some.
struct ProductPlan {
  int64_t row_parts = 1;
  int64_t column_parts = 1;
  int slices = 1;
};

ProductPlan make_product_plan(int64_t networks, int64_t rows, int64_t depth, int64_t columns,
                              const Threads& threads);

// A barrier for a fixed number of slices that can be used any number of times: the count of arrivals only
// grows, so no thread has to reset it between two uses. A waiting thread spins, because a step takes
// microseconds, and yields its CPU when it has spun for long.
class Barrier {
 public:
  // To be called by one thread, before any other can wait.
  void reset() { arrived_.store(0, std::memory_order_relaxed); }
  // The calling thread arrives with its `slices` slices and waits until all `total` slices have arrived at
  // the `round`-th use of the barrier. Rounds are counted from 1.
  void wait(int64_t slices, int64_t total, int64_t round);

 private:
  alignas(64) std::atomic<int64_t> arrived_;
};

// A set of the members of a team: bit m is member m.
using Members = uint32_t;
constexpr int kMostMembers = 32;

// One thread's use of its team's barrier.
struct Attendance {
  Members members = 0;  // for which the thread does the work; none when it has left the team
  int64_t rounds = 0;   // how often it has come to the barrier
  int64_t began = 0;    // when it came for the first time, by `nanoseconds`
};

// The barrier of a team. Another process may keep a thread of the team from running for milliseconds. If the
// others waited for it, and the kernel then ran them one after another, every step would take that long. So a
// thread that has waited for much longer than a step leaves the team, and the thread that arrives last does
// its work from then on. The last thread never waits, so one always remains.
class TeamBarrier {
 public:
  // To be called by one thread, before any other can wait.
  void reset() { state_.store(0, std::memory_order_relaxed); }
  // The calling thread arrives for its members and waits until all `team` members have arrived. On return
  // `mine->members` may have grown, or be empty.
  void wait(Attendance* mine, int team);

 private:
  bool leave_if_late(const Attendance& mine, uint64_t state, int64_t* deadline);

  // The number of arrivals so far in the upper half, modulo 2^32; the members that have left and whose work
  // nobody has taken over in the lower half.
  alignas(64) std::atomic<uint64_t> state_;
};

// A monotonic clock.
int64_t nanoseconds();

}  // namespace rnnkernels::cpu
