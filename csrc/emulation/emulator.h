// The emulator behind emulation.h: the threads of a launch as fibers, the events that they wait for, and the
// choice of the fiber that continues.
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

// splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a draw takes a few nanoseconds.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // A number below `count`, which is at most 2^32.
  size_t draw(size_t count) {
    uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return (x >> 32) * count >> 32;
  }

 private:
  uint64_t state_;
};

// Indices of the threads that wait for the same event.
using Waiters = std::vector<int>;

// A reusable barrier of several threads, at which all of them must execute the same operation.
struct Barrier {
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

// A pending asynchronous store, with a copy of the stored bytes.
struct Store {
  Address to;
  Mbarrier* mbarrier;
  std::vector<char> bytes;
};

struct Thread {
  int index = 0, in_block = 0, block = 0;
  bool begun = false, returned = false;
  Fiber fiber;
  Clock clock;
  std::string_view waits_for;
  std::vector<std::vector<Copy>> groups{1};  // groups of asynchronous copies; the last one is open
};

// The lanes' contributions to collective operations are double-buffered: one buffer may still be read while
// the other is filled.
struct Warp {
  Barrier barrier;
  std::vector<char> contributions[2];
};

struct Block {
  std::vector<char> shared;
  Shadow shadow;
  Barrier barrier;
  std::map<int64_t, Mbarrier> mbarriers;
  uint32_t landed = 0;  // number of asynchronous stores that have landed
  int returned = 0;
};

// A synchronizing word of global memory.
struct Word {
  Clock released;
  Waiters waiters;  // for a change of its value
};

// Thrown in every other thread after a fault, to unwind its stack.
struct Cancelled {};

class Emulator {
 public:
  Emulator(const Launch& launch, const std::function<void()>& kernel);

  void run();
  Thread& current() { return threads_[current_]; }
  const Launch& launch() const { return launch_; }
  Block& block(int index) { return blocks_[index]; }
  Block& current_block() { return blocks_[current().block]; }
  Warp& warp() { return warps_[current_ / kWarp]; }
  Barrier& cluster() { return clusters_[current().block / launch_.cluster]; }
  Word& word(const void* at) { return words_[at]; }
  const Clock& no_clock() const { return nothing_; }

  // Lets another thread continue first.
  void yield() { wait("the scheduler", runnable_); }
  void yield_sometimes() {
    if (random_.draw(16) == 0) yield();
  }
  // Suspends the current thread until the waiters are woken. When it continues, the awaited condition may no
  // longer hold. `what` must outlive the launch.
  void wait(std::string_view what, Waiters& waiters);
  void wake(Waiters& waiters);
  // A barrier of `count` threads, from `first` on. With `orders`, everything that each of them did before the
  // barrier is ordered before everything that any of them does after it.
  void synchronize(Barrier& barrier, std::string_view operation, int first, int count, bool orders);

  void land(Copy& copy);
  void store_later(Store store) { stores_.push_back(std::move(store)); }
  void finish_phase(Mbarrier& mbarrier);
  Mbarrier& mbarrier_at(Address at);

  std::string name_of(const Thread& thread) const {
    return text("thread %d of block %d", thread.in_block, thread.block);
  }
  std::string name_of(int index) const {
    const int count = static_cast<int>(threads_.size());
    return index < count ? name_of(threads_[index]) : text("a store into block %d", index - count);
  }

 private:
  const Launch& launch_;
  const std::function<void()>& kernel_;
  Random random_;
  Clock nothing_;
  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  std::vector<Barrier> clusters_;
  std::vector<Warp> warps_;
  std::vector<Store> stores_;
  std::map<const void*, Word> words_;
  Fiber host_;
  int current_ = 0;
  std::vector<int> runnable_;  // threads that can continue, without the current one
  int returned_ = 0;
  std::exception_ptr failure_;
  bool cancelled_ = false;

  static void enter();
  Fiber& next();
  void land_something();
  void land(const Store& store);
  Fault deadlock() const;
};

extern Emulator* emulator;  // of the current launch

}  // namespace rnnkernels::emulation
