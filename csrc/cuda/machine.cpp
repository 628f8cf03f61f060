// Fibers, the order they run in, meetings, and what lands late.
#include "cuda/machine.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace rnnkernels::emulation {

std::string text(const char* format, ...) {
  char line[300];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  return line;
}

constexpr int64_t kStackBytes = 256 * 1024;

Machine* machine = nullptr;

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
void Machine::meet(Meeting& meeting, const std::string& operation, int first, int count, bool orders) {
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
  if (orders) {
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

}  // namespace rnnkernels::emulation
