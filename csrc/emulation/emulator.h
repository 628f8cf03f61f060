// The emulated GPU's threads as fibers, and what they wait for: inside of emulation.h.
#pragma once

#include <exception>
#include <map>
#include <string_view>
#include <vector>

#include "emulation/clock.h"
#include "emulation/emulation.h"
#include "emulation/fibers.h"
#include "emulation/shadow.h"

namespace rnnkernels::emulation {

constexpr int kWarp = 32;

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Of a few nanoseconds, and good enough for an order (splitmix64, Steele, Lea and Flood, OOPSLA 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // Below `count`, which is at most 2^32.
  size_t draw(size_t count) {
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return (x >> 32) * count >> 32;
  }

 private:
  uint64_t state_;
};

// Who goes on when something has happened.
using Waiters = std::vector<int>;

// A point where a number of threads meet, any number of times.
struct Meeting {
  int arrived = 0;
  int64_t round = 0;
  std::string_view operation;
  Waiters waiters;
};

struct Copy {
  Address to;
  const void* from;
  int64_t bytes;
  bool landed = false;
};

struct Mbarrier {
  int expected = 0, pending = 0;
  int64_t bytes = 0;
  int64_t phase = 0;
  Clock arriving, released;
  Waiters waiters;  // for the end of the phase
};

// A store that lands late, with its own copy of what is stored.
struct Store {
  Address to;
  Mbarrier* barrier;
  std::vector<char> bytes;
};

struct Thread {
  int index = 0, in_block = 0, block = 0;
  bool begun = false, returned = false;
  Fiber fiber;
  Clock clock;
  std::string_view waits_for;
  std::vector<std::vector<Copy>> groups{1};  // of asynchronous copies, the last one open
};

// What lanes bring lies in two pieces, taken in turn: one may be read while the other is filled.
struct Warp {
  Meeting meeting;
  std::vector<char> brought[2];
};

struct Block {
  std::vector<char> shared;
  Shadow shadow;
  Meeting meeting;
  std::map<int64_t, Mbarrier> barriers;
  uint32_t landed = 0;  // stores, in number
  int returned = 0;
};

// In global memory.
struct Word {
  Clock released;
  Waiters waiters;  // for another value
};

// Ends a thread after another one's fault.
struct Cancelled {};

class Machine {
 public:
  Machine(const Launch& launch, const std::function<void()>& kernel);

  void run();
  Thread& current() { return threads_[current_]; }
  const Launch& launch() const { return launch_; }
  Block& block(int index) { return blocks_[index]; }
  Block& home() { return blocks_[current().block]; }
  Warp& warp() { return warps_[current_ / kWarp]; }
  Meeting& cluster() { return clusters_[current().block / launch_.cluster]; }
  Word& word(const void* at) { return words_[at]; }
  const Clock& no_clock() const { return nothing_; }

  // Another thread may go on first.
  void yield() { wait("its turn", runnable_); }
  void yield_sometimes() {
    if (random_.draw(16) == 0) yield();
  }
  // Until somebody wakes the waiters. By the time it goes on, what it waits for may be gone again. `what`
  // has to outlive the launch.
  void wait(std::string_view what, Waiters& waiters);
  void wake(Waiters& waiters);
  // Of `count` threads from `first` on; with `orders` all that each did before comes before what any does
  // after.
  void meet(Meeting& meeting, std::string_view operation, int first, int count, bool orders);

  void land(Copy& copy);
  void store_later(Store store) { stores_.push_back(std::move(store)); }
  void finish_phase(Mbarrier& barrier);
  Mbarrier& barrier_at(Address at);

  std::string who(const Thread& thread) const {
    return text("thread %d of block %d", thread.in_block, thread.block);
  }
  std::string who(int index) const {
    const int count = static_cast<int>(threads_.size());
    return index < count ? who(threads_[index]) : text("a store into block %d", index - count);
  }

 private:
  const Launch& launch_;
  const std::function<void()>& kernel_;
  Random random_;
  Clock nothing_;
  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  std::vector<Meeting> clusters_;
  std::vector<Warp> warps_;
  std::vector<Store> stores_;
  std::map<const void*, Word> words_;
  Fiber host_;
  int current_ = 0;
  std::vector<int> runnable_;  // but for the current one
  int returned_ = 0;
  std::exception_ptr failure_;
  bool cancelled_ = false;

  static void enter();
  Fiber& next();
  void land_something();
  void land(const Store& store);
  Fault deadlock() const;
};

extern Machine* machine;  // the one that runs

}  // namespace rnnkernels::emulation
