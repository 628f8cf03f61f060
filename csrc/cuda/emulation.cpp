// Threads as fibers, and what they wait for. Shadow memory and clocks are in shadow.h.
#include "cuda/emulation.h"

#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "cuda/shadow.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace rnnkernels::emulation {

namespace {

constexpr int kWarp = 32;
constexpr int64_t kStackBytes = 256 * 1024;

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, ...) {
  char line[300];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  return line;
}

// A point where a number of threads meet, any number of times.
struct Meeting {
  int arrived = 0;
  int64_t round = 0;
  Clock clock;
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

struct Warp {
  Meeting meeting;
  std::vector<char> in, out;
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
  void meet(Meeting& meeting, const std::string& operation, int first, int count);

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

Machine* machine = nullptr;  // the one that runs

void Machine::enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine->scheduler_stack_, &machine->scheduler_stack_size_);
#endif
  Thread& thread = machine->current();
  thread.begun = true;
  try {
    machine->kernel_();
  } catch (const Cancelled&) {
  } catch (...) {
    machine->failure_ = std::current_exception();
  }
  thread.returned = true;
  ++machine->blocks_[thread.block].returned;
  machine->leave(thread, true);
}

void Machine::start(Thread& thread) {
  thread.stack = std::make_unique<char[]>(kStackBytes);
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, &Machine::enter, 0);
}

void Machine::resume(Thread& thread) {
  current_ = thread.index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_sanitizer_, thread.stack.get(), kStackBytes);
#endif
  swapcontext(&scheduler_, &thread.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_sanitizer_, nullptr, nullptr);
#endif
}

void Machine::leave(Thread& thread, [[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &thread.sanitizer_stack, scheduler_stack_,
                                 scheduler_stack_size_);
#endif
  swapcontext(&thread.context, &scheduler_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(thread.sanitizer_stack, &scheduler_stack_, &scheduler_stack_size_);
#endif
}

// From a random place on, the first that can go on; -1 if none can.
int Machine::next_runnable() {
  const int count = static_cast<int>(threads_.size());
  const int from = static_cast<int>(random_() % count), step = random_() % 2 ? 1 : count - 1;
  for (int i = 0, at = from; i < count; ++i, at = (at + step) % count) {
    Thread& thread = threads_[at];
    if (thread.returned) continue;
    if (!thread.ready || thread.ready()) return at;
  }
  return -1;
}

void Machine::run() {
  machine = this;
  struct Reset {
    ~Reset() { machine = nullptr; }
  } reset;
  for (Thread& thread : threads_) start(thread);
  try {
    schedule();
  } catch (...) {
    cancelled_ = true;
    for (Thread& thread : threads_) {
      if (thread.begun && !thread.returned) resume(thread);
    }
    throw;
  }
}

void Machine::schedule() {
  for (;;) {
    if (random_() % 4 == 0) land_something();
    const int next = next_runnable();
    if (next < 0) {
      bool all_returned = true;
      for (const Thread& thread : threads_) all_returned = all_returned && thread.returned;
      if (all_returned) return;
      if (!stores_.empty()) {
        land_something();
        continue;
      }
      report_deadlock();
    }
    threads_[next].ready = nullptr;
    resume(threads_[next]);
    if (failure_) std::rethrow_exception(failure_);
  }
}

void Machine::report_deadlock() {
  std::map<std::string, int> waiting;
  int returned = 0, example = -1;
  for (const Thread& thread : threads_) {
    if (thread.returned) {
      ++returned;
    } else {
      ++waiting[thread.waits_for];
      if (example < 0) example = thread.index;
    }
  }
  std::string reason;
  for (const auto& [what, count] : waiting) {
    reason += (reason.empty() ? "" : ", ") + std::to_string(count) + " threads wait for " + what;
  }
  if (returned > 0) reason += ", " + std::to_string(returned) + " have returned";
  throw Fault("deadlock", reason + " (" + who(example) + " among them)");
}

void Machine::wait(const std::string& what, std::function<bool()> ready) {
  Thread& thread = current();
  thread.waits_for = what;
  thread.ready = std::move(ready);
  leave(thread, false);
  if (cancelled_) throw Cancelled{};
}

// The last one to come lets all of them go on, each with everybody's past.
void Machine::meet(Meeting& meeting, const std::string& operation, int first, int count) {
  Thread& thread = current();
  if (meeting.arrived > 0 && meeting.operation != operation) {
    throw Fault("divergence", who(thread) + " is at " + operation + ", others are at " + meeting.operation);
  }
  meeting.operation = operation;
  const int64_t round = meeting.round;
  if (++meeting.arrived < count) {
    wait(operation, [&meeting, round] { return meeting.round != round; });
    return;
  }
  if (operation != "exchange") {
    Clock all(thread.clock.size(), 0);
    for (int i = first; i < first + count; ++i) join(all, threads_[i].clock);
    for (int i = first; i < first + count; ++i) {
      threads_[i].clock = all;
      ++threads_[i].clock[i];
    }
  }
  meeting.arrived = 0;
  ++meeting.round;
  yield();
}

void Machine::land(Copy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  char* to = blocks_[copy.to.block].shared.data() + copy.to.offset;
  if (copy.from) {
    std::memcpy(to, copy.from, copy.bytes);
  } else {
    std::memset(to, 0, copy.bytes);
  }
}

// One asynchronous copy or store, any of them.
void Machine::land_something() {
  if (!stores_.empty()) {
    const size_t i = random_() % stores_.size();
    const Store store = std::move(stores_[i]);
    stores_.erase(stores_.begin() + static_cast<int64_t>(i));
    Block& block = blocks_[store.to.block];
    std::memcpy(block.shared.data() + store.to.offset, store.bytes.data(), store.bytes.size());
    const int64_t size = static_cast<int64_t>(store.bytes.size());
    const int writer = static_cast<int>(threads_.size()) + store.to.block;
    Mbarrier& barrier = barrier_at(store.barrier);
    // Only who waits at that barrier comes after it, so it has a time of its own.
    ++block.stores[writer];
    block.shadow.set_pending(store.to.offset, size, false);
    block.shadow.written_by(store.to.offset, size, writer, block.stores[writer]);
    barrier.arriving[writer] = block.stores[writer];
    barrier.bytes -= size;
    finish_phase(barrier);
  }
  Thread& thread = threads_[random_() % threads_.size()];
  for (std::vector<Copy>& group : thread.groups) {
    if (!group.empty() && random_() % 2) land(group[random_() % group.size()]);
  }
}

Mbarrier& Machine::barrier_at(Address at) {
  const auto found = blocks_[at.block].barriers.find(at.offset);
  if (found == blocks_[at.block].barriers.end()) {
    throw Fault("unwritten", who(current()) + text(" uses a barrier at byte %ld of block %d that nobody made",
                                                   long(at.offset), at.block));
  }
  return found->second;
}

void Machine::finish_phase(Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.expected;
  barrier.released = barrier.arriving;
}

}  // namespace

void run(const Launch& launch, const std::function<void()>& kernel) { Machine(launch, kernel).run(); }

Place place() {
  const Thread& thread = machine->current();
  const Launch& launch = machine->launch();
  return {thread.in_block, launch.threads, thread.block, launch.blocks, thread.block % launch.cluster,
          launch.cluster};
}

char* touch(Address at, int64_t bytes, Access access) {
  machine->yield_sometimes();
  Thread& thread = machine->current();
  Block& block = machine->block(at.block);
  const char* verb = access == Access::kRead ? "reads" : "writes";
  const auto where = [&] {
    return machine->who(thread) + text(" %s %ld bytes at byte %ld", verb, long(bytes), long(at.offset)) +
           (at.block == thread.block ? std::string() : text(" of block %d", at.block));
  };
  if (at.offset < 0 || at.offset + bytes > static_cast<int64_t>(block.shared.size())) {
    throw Fault("out of bounds", where() + text(", of %ld", long(block.shared.size())));
  }
  if (at.block != thread.block && block.returned > 0) throw Fault("gone", where());
  const Conflict conflict = access == Access::kRead
                                ? block.shadow.read(at.offset, bytes, thread.index, thread.clock)
                                : block.shadow.write(at.offset, bytes, thread.index, thread.clock);
  switch (conflict.kind) {
    case Conflict::kNone:
      break;
    case Conflict::kUnwritten:
      throw Fault("unwritten", where());
    case Conflict::kPending:
      throw Fault("race", where() + ", where an asynchronous copy has not landed");
    case Conflict::kRace:
      throw Fault("race", where() + ", which " + machine->who(conflict.other) + " touched, unordered");
  }
  return block.shared.data() + at.offset;
}

void out_of_run(int64_t index, int64_t size) {
  throw Fault("out of bounds", machine->who(machine->current()) +
                                   text(" asks for element %ld of a run of %ld", long(index), long(size)));
}

void sync_block() {
  const Launch& launch = machine->launch();
  machine->meet(machine->home().meeting, "sync_block", machine->current().block * launch.threads,
                launch.threads);
}

void sync_warp() {
  machine->meet(machine->warp().meeting, "sync_warp", machine->current().index / kWarp * kWarp, kWarp);
}

void sync_cluster() {
  const Launch& launch = machine->launch();
  const int count = launch.cluster * launch.threads;
  machine->meet(machine->cluster(), "sync_cluster", machine->current().index / count * count, count);
}

const char* exchange(const char* operation, const void* mine, int64_t bytes) {
  Warp& warp = machine->warp();
  const int lane = machine->current().index % kWarp;
  if (warp.meeting.arrived == 0) {
    warp.in.assign(kWarp * bytes, 0);
    warp.meeting.operation = operation;
  } else if (warp.meeting.operation != operation) {
    throw Fault("divergence", machine->who(machine->current()) + " is at " + operation + ", others are at " +
                                  warp.meeting.operation);
  }
  std::memcpy(warp.in.data() + lane * bytes, mine, bytes);
  const int64_t round = warp.meeting.round;
  if (++warp.meeting.arrived == kWarp) {
    warp.out = warp.in;
    warp.meeting.arrived = 0;
    ++warp.meeting.round;
  } else {
    machine->wait(operation, [&warp, round] { return warp.meeting.round != round; });
  }
  return warp.out.data();
}

void copy_async(Address to, const void* from) {
  touch(to, 16, Access::kWrite);
  machine->block(to.block).shadow.set_pending(to.offset, 16, true);
  machine->current().groups.back().push_back({to, from, 16});
}

void commit_copies() { machine->current().groups.emplace_back(); }

void wait_copies(int groups_left) {
  Thread& thread = machine->current();
  machine->yield();
  while (static_cast<int>(thread.groups.size()) - 1 > groups_left) {
    for (Copy& copy : thread.groups.front()) {
      machine->land(copy);
      machine->block(copy.to.block).shadow.set_pending(copy.to.offset, copy.bytes, false);
    }
    thread.groups.erase(thread.groups.begin());
  }
}

void barrier_init(Address at, int arrivals) {
  touch(at, 8, Access::kWrite);
  Mbarrier barrier;
  barrier.expected = barrier.pending = arrivals;
  barrier.arriving.assign(machine->current().clock.size(), 0);
  barrier.released = barrier.arriving;
  machine->block(at.block).barriers[at.offset] = barrier;
}

void barrier_arrive(Address at) {
  Thread& thread = machine->current();
  Mbarrier& barrier = machine->barrier_at(at);
  if (barrier.pending == 0) throw Fault("barrier", machine->who(thread) + " arrives where all have arrived");
  join(barrier.arriving, thread.clock);
  ++thread.clock[thread.index];
  --barrier.pending;
  machine->finish_phase(barrier);
  machine->yield();
}

void barrier_expect(Address at, int64_t bytes) { machine->barrier_at(at).bytes += bytes; }

void barrier_wait(Address at, int parity) {
  Thread& thread = machine->current();
  Mbarrier& barrier = machine->barrier_at(at);
  machine->wait(text("phase %d of a barrier", parity),
                [&barrier, parity] { return barrier.phase % 2 != parity; });
  join(thread.clock, barrier.released);
}

void store_async(Address to, const void* from, int64_t bytes, Address barrier) {
  Thread& thread = machine->current();
  touch(to, bytes, Access::kWrite);
  machine->block(to.block).shadow.set_pending(to.offset, bytes, true);
  join(machine->barrier_at(barrier).arriving, thread.clock);
  const char* data = static_cast<const char*>(from);
  machine->store_later({to, barrier, std::vector<char>(data, data + bytes)});
  ++thread.clock[thread.index];
}

unsigned load_acquire(const unsigned* from) {
  machine->yield();
  Thread& thread = machine->current();
  const auto found = machine->released().find(from);
  if (found != machine->released().end()) join(thread.clock, found->second);
  return *from;
}

void store_release(unsigned* to, unsigned value) {
  Thread& thread = machine->current();
  machine->released()[to] = thread.clock;
  ++thread.clock[thread.index];
  *to = value;
  machine->yield();
}

unsigned add_release(unsigned* to, unsigned value) {
  Thread& thread = machine->current();
  Clock& clock = machine->released()[to];
  if (clock.empty()) clock.assign(thread.clock.size(), 0);
  join(clock, thread.clock);
  ++thread.clock[thread.index];
  const unsigned before = *to;
  *to += value;
  machine->yield();
  return before;
}

}  // namespace rnnkernels::emulation
