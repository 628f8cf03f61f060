// The order that fibers run in, meetings, and what lands late.
#include "emulation/emulator.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

namespace rnnkernels::emulation {

std::string text(const char* format, ...) {
  char line[300];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  return line;
}

Machine* machine = nullptr;

Machine::Machine(const Launch& launch, const std::function<void()>& kernel)
    : launch_(launch), kernel_(kernel), random_(launch.seed) {
  if (launch.threads % kWarp != 0 || launch.threads <= 0) {
    throw Fault("launch", "a block must be whole warps, got " + std::to_string(launch.threads));
  }
  if (launch.cluster <= 0 || launch.blocks % launch.cluster != 0) {
    throw Fault("launch", "the grid must be whole clusters");
  }
  const int count = launch.blocks * launch.threads;
  // One more for each block: what stores into it by itself.
  nothing_ = Clock(count + launch.blocks);
  blocks_.resize(launch.blocks);
  clusters_.resize(launch.blocks / launch.cluster);
  warps_.resize(count / kWarp);
  for (Block& block : blocks_) {
    block.shared.resize(launch.shared_bytes);
    block.shadow.resize(launch.shared_bytes);
  }
  threads_ = std::vector<Thread>(count);
  runnable_.resize(count);
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads_[i];
    thread.index = runnable_[i] = i;
    thread.block = i / launch.threads;
    thread.in_block = i % launch.threads;
    thread.clock = Clock(nothing_, i);
    thread.fiber.prepare(&Machine::enter);
  }
}

// --- Who goes on -------------------------------------------------------------------------------------

void Machine::run() {
  machine = this;
  struct Reset {
    ~Reset() { machine = nullptr; }
  } reset;
  host_.go_on_with(next());
  if (!failure_ && returned_ < static_cast<int>(threads_.size())) {
    failure_ = std::make_exception_ptr(deadlock());
  }
  if (!failure_) return;
  cancelled_ = true;
  for (Thread& thread : threads_) {
    current_ = thread.index;
    if (thread.begun && !thread.returned) host_.go_on_with(thread.fiber);
  }
  std::rethrow_exception(failure_);
}

void Machine::enter() {
  Thread& thread = machine->current();
  thread.begun = true;
  try {
    machine->kernel_();
  } catch (const Cancelled&) {
  } catch (...) {
    machine->failure_ = std::current_exception();
  }
  thread.returned = true;
  ++machine->returned_;
  ++machine->blocks_[thread.block].returned;
  thread.fiber.end_with(machine->next());
}

// Any thread that can go on, or the host where there is none, or no more need.
Fiber& Machine::next() {
  if (!failure_ && random_.draw(4) == 0) land_something();
  while (!failure_ && runnable_.empty() && !stores_.empty()) land_something();
  if (failure_ || runnable_.empty()) return host_;
  int& drawn = runnable_[random_.draw(runnable_.size())];
  current_ = std::exchange(drawn, runnable_.back());
  runnable_.pop_back();
  return threads_[current_].fiber;
}

void Machine::wait(std::string_view what, Waiters& waiters) {
  Thread& thread = current();
  thread.waits_for = what;
  waiters.push_back(thread.index);
  Fiber& other = next();
  if (&other != &thread.fiber) thread.fiber.go_on_with(other);
  if (cancelled_) throw Cancelled{};
}

void Machine::wake(Waiters& waiters) {
  runnable_.insert(runnable_.end(), waiters.begin(), waiters.end());
  waiters.clear();
}

Fault Machine::deadlock() const {
  std::map<std::string_view, int> waiting;
  int example = -1;
  for (const Thread& thread : threads_) {
    if (thread.returned) continue;
    ++waiting[thread.waits_for];
    if (example < 0) example = thread.index;
  }
  std::string reason;
  for (const auto& [what, count] : waiting) {
    reason += (reason.empty() ? "" : ", ") + std::to_string(count) + " threads wait for " + std::string(what);
  }
  if (returned_ > 0) reason += ", " + std::to_string(returned_) + " have returned";
  return Fault("deadlock", reason + " (" + who(example) + " among them)");
}

// The last one to come lets all of them go on, each with everybody's past.
void Machine::meet(Meeting& meeting, std::string_view operation, int first, int count, bool orders) {
  if (meeting.arrived > 0 && meeting.operation != operation) {
    throw Fault("divergence", who(current()) + " is at " + std::string(operation) + ", others are at " +
                                  std::string(meeting.operation));
  }
  meeting.operation = operation;
  if (++meeting.arrived < count) {
    wait(operation, meeting.waiters);
    return;
  }
  if (orders) {
    Clock all;
    for (int i = first; i < first + count; ++i) all.join(threads_[i].clock);
    for (int i = first; i < first + count; ++i) {
      threads_[i].clock.follow(all);
      threads_[i].clock.tick();
    }
  }
  meeting.arrived = 0;
  ++meeting.round;
  wake(meeting.waiters);
  yield();
}

// --- What lands late ---------------------------------------------------------------------------------

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

void Machine::land(const Store& store) {
  Block& block = blocks_[store.to.block];
  std::memcpy(block.shared.data() + store.to.offset, store.bytes.data(), store.bytes.size());
  const int64_t size = static_cast<int64_t>(store.bytes.size());
  const int writer = static_cast<int>(threads_.size()) + store.to.block;
  // Only who waits at that barrier comes after it, so it has a time of its own.
  ++block.landed;
  block.shadow.set_pending(store.to.offset, size, false);
  block.shadow.written_by(store.to.offset, size, writer, block.landed);
  store.barrier->arriving.raise(writer, block.landed);
  store.barrier->bytes -= size;
  finish_phase(*store.barrier);
}

// One asynchronous copy or store, any of them.
void Machine::land_something() {
  if (!stores_.empty()) {
    Store& drawn = stores_[random_.draw(stores_.size())];
    std::swap(drawn, stores_.back());
    land(stores_.back());
    stores_.pop_back();
  }
  Thread& thread = threads_[random_.draw(threads_.size())];
  for (std::vector<Copy>& group : thread.groups) {
    if (!group.empty() && random_.draw(2)) land(group[random_.draw(group.size())]);
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
  wake(barrier.waiters);
}

}  // namespace rnnkernels::emulation
