// The primitives of emulation.h, on the fibers of emulator.h.
#include "emulation/emulation.h"

#include <cstring>

#include "emulation/emulator.h"

namespace rnnkernels::emulation {

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
  const int count = machine->launch().threads;
  machine->meet(machine->home().meeting, "sync_block", machine->current().block * count, count, true);
}

void sync_warp() {
  machine->meet(machine->warp().meeting, "sync_warp", machine->current().index / kWarp * kWarp, kWarp, true);
}

void sync_cluster() {
  const int count = machine->launch().cluster * machine->launch().threads;
  machine->meet(machine->cluster(), "sync_cluster", machine->current().index / count * count, count, true);
}

const char* exchange(const char* operation, const void* mine, int64_t bytes) {
  Warp& warp = machine->warp();
  const int index = machine->current().index, lane = index % kWarp;
  std::vector<char>& all = warp.brought[warp.meeting.round % 2];
  if (static_cast<int64_t>(all.size()) < kWarp * bytes) all.resize(kWarp * bytes);
  std::memcpy(all.data() + lane * bytes, mine, bytes);
  machine->meet(warp.meeting, operation, index - lane, kWarp, false);
  return all.data();
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
  Mbarrier& barrier = machine->block(at.block).barriers[at.offset];
  machine->wake(barrier.waiters);
  barrier = Mbarrier{};
  barrier.expected = barrier.pending = arrivals;
  barrier.arriving = barrier.released = machine->no_clock();
}

void barrier_arrive(Address at) {
  Thread& thread = machine->current();
  Mbarrier& barrier = machine->barrier_at(at);
  if (barrier.pending == 0) throw Fault("barrier", machine->who(thread) + " arrives where all have arrived");
  barrier.arriving.join(thread.clock);
  thread.clock.tick();
  --barrier.pending;
  machine->finish_phase(barrier);
  machine->yield();
}

void barrier_expect(Address at, int64_t bytes) { machine->barrier_at(at).bytes += bytes; }

void barrier_wait(Address at, int parity) {
  Mbarrier& barrier = machine->barrier_at(at);
  machine->yield();
  while (barrier.phase % 2 == parity) {
    machine->wait(parity == 0 ? "phase 0 of a barrier" : "phase 1 of a barrier", barrier.waiters);
  }
  machine->current().clock.join(barrier.released);
}

void store_async(Address to, const void* from, int64_t bytes, Address at) {
  Thread& thread = machine->current();
  touch(to, bytes, Access::kWrite);
  machine->block(to.block).shadow.set_pending(to.offset, bytes, true);
  Mbarrier& barrier = machine->barrier_at(at);
  barrier.arriving.join(thread.clock);
  const char* data = static_cast<const char*>(from);
  machine->store_later({to, &barrier, std::vector<char>(data, data + bytes)});
  thread.clock.tick();
}

unsigned load_acquire(const unsigned* from) {
  machine->yield();
  machine->current().clock.join(machine->word(from).released);
  return *from;
}

void store_release(unsigned* to, unsigned value) {
  Thread& thread = machine->current();
  Word& word = machine->word(to);
  word.released = thread.clock;
  thread.clock.tick();
  *to = value;
  machine->wake(word.waiters);
  machine->yield();
}

unsigned add_release(unsigned* to, unsigned value) {
  Thread& thread = machine->current();
  Word& word = machine->word(to);
  word.released.join(thread.clock);
  thread.clock.tick();
  const unsigned before = *to;
  *to += value;
  machine->wake(word.waiters);
  machine->yield();
  return before;
}

void store_word(uint64_t* to, uint32_t x, uint32_t mark) {
  machine->yield_sometimes();
  *to = static_cast<uint64_t>(mark) << 32 | x;
  machine->wake(machine->word(to).waiters);
}

uint32_t await_word(const uint64_t* from, uint32_t mark) {
  const auto found = [from] { return static_cast<uint32_t>(*from >> 32); };
  while (found() < mark) machine->wait("a word of global memory", machine->word(from).waiters);
  if (found() != mark) {
    throw Fault("overrun",
                machine->who(machine->current()) + text(" finds mark %u in place of %u", found(), mark));
  }
  return static_cast<uint32_t>(*from);
}

namespace {
uint64_t seed = 0;
}  // namespace
void set_seed(uint64_t from) { seed = from; }
uint64_t next_seed() { return seed++; }

}  // namespace rnnkernels::emulation
