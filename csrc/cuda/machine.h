// The emulated GPU's threads as fibers, and what they wait for: inside of emulation.h.
#pragma once

#include <ucontext.h>

#include <exception>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "cuda/emulation.h"
#include "cuda/shadow.h"

namespace rnnkernels::emulation {

constexpr int kWarp = 32;

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A point where a number of threads meet, any number of times.
struct Meeting {
  int arrived = 0;
  int64_t round = 0;
  std::string operation;
};

struct Copy {
  Address to;
  const void* from;
  int64_t bytes;
  bool landed = false;
};

// A store that lands late, with its own copy of what is stored.
struct Store {
  Address to, barrier;
  std::vector<char> bytes;
};

struct Thread {
  int index = 0, in_block = 0, block = 0;
  bool begun = false, returned = false;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* sanitizer_stack = nullptr;
  Clock clock;
  std::function<bool()> ready;  // empty: it can go on
  std::string waits_for;
  std::vector<std::vector<Copy>> groups{1};  // of asynchronous copies, the last one open
};

// What lanes bring lies in two pieces, taken in turn: one may be read while the other is filled.
struct Warp {
  Meeting meeting;
  std::vector<char> brought[2];
};

struct Mbarrier {
  int expected = 0, pending = 0;
  int64_t bytes = 0;
  int64_t phase = 0;
  Clock arriving, released;
};

struct Block {
  std::vector<char> shared;
  Shadow shadow;
  Meeting meeting;
  std::map<int64_t, Mbarrier> barriers;
  Clock stores;  // of what lands in it
  int returned = 0;
};

// Ends a thread after another one's fault.
struct Cancelled {};

class Machine {
 public:
  Machine(const Launch& launch, const std::function<void()>& kernel)
      : launch_(launch), kernel_(kernel), random_(launch.seed) {
    if (launch.threads % kWarp != 0 || launch.threads <= 0) {
      throw Fault("launch", "a block must be whole warps, got " + std::to_string(launch.threads));
    }
    if (launch.cluster <= 0 || launch.blocks % launch.cluster != 0) {
      throw Fault("launch", "the grid must be whole clusters");
    }
    // In a clock, one more for each block: what stores into it by itself.
    const int count = launch.blocks * launch.threads, clocks = count + launch.blocks;
    blocks_.resize(launch.blocks);
    clusters_.resize(launch.blocks / launch.cluster);
    warps_.resize(count / kWarp);
    for (Block& block : blocks_) {
      block.shared.resize(launch.shared_bytes);
      block.shadow.resize(launch.shared_bytes, clocks);
      block.stores.assign(clocks, 0);
    }
    threads_ = std::vector<Thread>(count);
    for (int i = 0; i < count; ++i) {
      Thread& thread = threads_[i];
      thread.index = i;
      thread.block = i / launch.threads;
      thread.in_block = i % launch.threads;
      thread.clock.assign(clocks, 0);
      thread.clock[i] = 1;
    }
  }

  void run();
  Thread& current() { return threads_[current_]; }
  const Launch& launch() const { return launch_; }
  Block& block(int index) { return blocks_[index]; }
  Block& home() { return blocks_[current().block]; }
  Warp& warp() { return warps_[current_ / kWarp]; }
  Meeting& cluster() { return clusters_[current().block / launch_.cluster]; }
  std::map<const unsigned*, Clock>& released() { return released_; }

  // Another thread may go on first.
  void yield() { wait("its turn", {}); }
  void yield_sometimes() {
    if (random_() % 16 == 0) yield();
  }
  void wait(const std::string& what, std::function<bool()> ready);
  // Of `count` threads from `first` on; with `orders` all that each did before comes before what any does
  // after.
  void meet(Meeting& meeting, const std::string& operation, int first, int count, bool orders);

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
  std::mt19937_64 random_;
  std::vector<Thread> threads_;
  std::vector<Block> blocks_;
  std::vector<Meeting> clusters_;
  std::vector<Warp> warps_;
  std::vector<Store> stores_;
  std::map<const unsigned*, Clock> released_;
  ucontext_t scheduler_;
  void* scheduler_sanitizer_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_size_ = 0;
  int current_ = 0;
  std::exception_ptr failure_;
  bool cancelled_ = false;

  static void enter();
  void start(Thread& thread);
  void resume(Thread& thread);
  void leave(Thread& thread, bool for_good);
  void schedule();
  int next_runnable();
  void land_something();
  [[noreturn]] void report_deadlock();
};

extern Machine* machine;  // the one that runs

}  // namespace rnnkernels::emulation
