// The order of the fibers, barriers, and asynchronous copies and stores.
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

Emulator* emulator = nullptr;

Emulator::Emulator(const Launch& launch, const std::function<void()>& kernel)
    : launch_(launch), kernel_(kernel), random_(launch.seed) {
  if (launch.threads % kWarp != 0 || launch.threads <= 0) {
    throw Fault("launch", "threads must be a positive multiple of 32, got " + std::to_string(launch.threads));
  }
  if (launch.cluster <= 0 || launch.blocks % launch.cluster != 0) {
    throw Fault("launch", "blocks must be a multiple of the cluster size, got " +
                              std::to_string(launch.blocks) + " and " + std::to_string(launch.cluster));
  }
  const int count = launch.blocks * launch.threads;
  // Every block has a component of its own: the time of the asynchronous stores into it.
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
    thread.fiber.prepare(&Emulator::enter);
  }
}

// --- Scheduling --------------------------------------------------------------------------------------

void Emulator::run() {
  emulator = this;
  struct Reset {
    ~Reset() { emulator = nullptr; }
  } reset;
  host_.switch_to(next());
  if (!failure_ && returned_ < static_cast<int>(threads_.size())) {
    failure_ = std::make_exception_ptr(deadlock());
  }
  if (!failure_) return;
  cancelled_ = true;
  for (Thread& thread : threads_) {
    current_ = thread.index;
    if (thread.begun && !thread.returned) host_.switch_to(thread.fiber);
  }
  std::rethrow_exception(failure_);
}

void Emulator::enter() {
  Thread& thread = emulator->current();
  thread.begun = true;
  try {
    emulator->kernel_();
  } catch (const Cancelled&) {
  } catch (...) {
    emulator->failure_ = std::current_exception();
  }
  thread.returned = true;
  ++emulator->returned_;
  ++emulator->blocks_[thread.block].returned;
  thread.fiber.finish_and_switch_to(emulator->next());
}

// Draws a thread that can continue. Returns the host's fiber if there is none, or after a failure.
Fiber& Emulator::next() {
  if (!failure_ && random_.draw(4) == 0) land_something();
  while (!failure_ && runnable_.empty() && !stores_.empty()) land_something();
  if (failure_ || runnable_.empty()) return host_;
  int& drawn = runnable_[random_.draw(runnable_.size())];
  current_ = std::exchange(drawn, runnable_.back());
  runnable_.pop_back();
  return threads_[current_].fiber;
}

void Emulator::wait(std::string_view what, Waiters& waiters) {
  Thread& thread = current();
  thread.waits_for = what;
  waiters.push_back(thread.index);
  Fiber& other = next();
  if (&other != &thread.fiber) thread.fiber.switch_to(other);
  if (cancelled_) throw Cancelled{};
}

void Emulator::wake(Waiters& waiters) {
  runnable_.insert(runnable_.end(), waiters.begin(), waiters.end());
  waiters.clear();
}

Fault Emulator::deadlock() const {
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
  return Fault("deadlock", reason + " (" + name_of(example) + " among them)");
}

// The last thread to arrive wakes all others. Each continues with the joined clock of all.
void Emulator::synchronize(Barrier& barrier, std::string_view operation, int first, int count, bool orders) {
  if (barrier.arrived > 0 && barrier.operation != operation) {
    throw Fault("divergence", name_of(current()) + " is at " + std::string(operation) + ", others are at " +
                                  std::string(barrier.operation));
  }
  barrier.operation = operation;
  if (++barrier.arrived < count) {
    wait(operation, barrier.waiters);
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
  barrier.arrived = 0;
  ++barrier.round;
  wake(barrier.waiters);
  yield();
}

// --- Asynchronous copies and stores ------------------------------------------------------------------

void Emulator::land(Copy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  char* to = blocks_[copy.to.block].shared.data() + copy.to.offset;
  if (copy.from) {
    std::memcpy(to, copy.from, copy.bytes);
  } else {
    std::memset(to, 0, copy.bytes);
  }
}

void Emulator::land(const Store& store) {
  Block& block = blocks_[store.to.block];
  std::memcpy(block.shared.data() + store.to.offset, store.bytes.data(), store.bytes.size());
  const int64_t size = static_cast<int64_t>(store.bytes.size());
  const int writer = static_cast<int>(threads_.size()) + store.to.block;
  // Only threads that wait at the mbarrier are ordered after the store, so it has a time of its own.
  ++block.landed;
  block.shadow.set_pending(store.to.offset, size, false);
  block.shadow.written_by(store.to.offset, size, writer, block.landed);
  store.mbarrier->arriving.raise(writer, block.landed);
  store.mbarrier->bytes -= size;
  finish_phase(*store.mbarrier);
}

// Lands a drawn asynchronous store, and copies of a drawn thread.
void Emulator::land_something() {
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

Mbarrier& Emulator::mbarrier_at(Address at) {
  const auto found = blocks_[at.block].mbarriers.find(at.offset);
  if (found == blocks_[at.block].mbarriers.end()) {
    throw Fault("unwritten",
                name_of(current()) + text(" uses an mbarrier without init at byte %ld of block %d",
                                          long(at.offset), at.block));
  }
  return found->second;
}

void Emulator::finish_phase(Mbarrier& mbarrier) {
  if (mbarrier.pending > 0 || mbarrier.bytes != 0) return;
  ++mbarrier.phase;
  mbarrier.pending = mbarrier.expected;
  mbarrier.released = mbarrier.arriving;
  wake(mbarrier.waiters);
}

}  // namespace rnnkernels::emulation
