// The primitives of emulation.h: each checks its arguments, updates the clocks of the threads it orders, and
// lets the emulator choose the thread that continues.
#include "emulation/emulation.h"

#include <cstring>

#include "emulation/emulator.h"

namespace rnnkernels::emulation {

void run(const Launch& launch, const std::function<void()>& kernel) { Emulator(launch, kernel).run(); }

device::Place place() {
  const Thread& thread = emulator->current();
  const Launch& launch = emulator->launch();
  return {thread.in_block, launch.threads, thread.block, launch.blocks, thread.block % launch.cluster,
          launch.cluster};
}

char* touch(Address at, int64_t bytes, Access access) {
  emulator->yield_sometimes();
  Thread& thread = emulator->current();
  Block& block = emulator->block(at.block);
  const char* verb = access == Access::kRead ? "reads" : "writes";
  const auto where = [&] {
    return emulator->name_of(thread) + text(" %s %ld bytes at byte %ld", verb, long(bytes), long(at.offset)) +
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
      throw Fault("race", where() + ", where an asynchronous copy is still pending");
    case Conflict::kRace:
      throw Fault("race", where() + ", unordered with an access of " + emulator->name_of(conflict.other));
  }
  return block.shared.data() + at.offset;
}

void throw_out_of_bounds(int64_t index, int64_t size) {
  throw Fault("out of bounds", emulator->name_of(emulator->current()) +
                                   text(" accesses element %ld of %ld", long(index), long(size)));
}

void sync_block() {
  const int count = emulator->launch().threads;
  emulator->synchronize(emulator->current_block().barrier, "sync_block", emulator->current().block * count,
                        count, true);
}

void sync_warp() {
  emulator->synchronize(emulator->warp().barrier, "sync_warp", emulator->current().index / kWarp * kWarp,
                        kWarp, true);
}

void sync_cluster() {
  const int count = emulator->launch().cluster * emulator->launch().threads;
  emulator->synchronize(emulator->cluster(), "sync_cluster", emulator->current().index / count * count, count,
                        true);
}

const char* exchange(const char* operation, const void* mine, int64_t bytes) {
  Warp& warp = emulator->warp();
  const int index = emulator->current().index, lane = index % kWarp;
  std::vector<char>& all = warp.contributions[warp.barrier.round % 2];
  if (static_cast<int64_t>(all.size()) < kWarp * bytes) all.resize(kWarp * bytes);
  std::memcpy(all.data() + lane * bytes, mine, bytes);
  emulator->synchronize(warp.barrier, operation, index - lane, kWarp, false);
  return all.data();
}

void copy_async(Address to, const void* from) {
  touch(to, 16, Access::kWrite);
  emulator->block(to.block).shadow.set_pending(to.offset, 16, true);
  emulator->current().groups.back().push_back({to, from, 16});
}

void commit_copies() { emulator->current().groups.emplace_back(); }

void wait_copies(int groups_left) {
  Thread& thread = emulator->current();
  emulator->yield();
  while (static_cast<int>(thread.groups.size()) - 1 > groups_left) {
    for (Copy& copy : thread.groups.front()) {
      emulator->land(copy);
      emulator->block(copy.to.block).shadow.set_pending(copy.to.offset, copy.bytes, false);
    }
    thread.groups.erase(thread.groups.begin());
  }
}

void mbarrier_init(Address at, int arrivals) {
  touch(at, 8, Access::kWrite);
  Mbarrier& mbarrier = emulator->block(at.block).mbarriers[at.offset];
  emulator->wake(mbarrier.waiters);
  mbarrier = Mbarrier{};
  mbarrier.expected = mbarrier.pending = arrivals;
  mbarrier.arriving = mbarrier.released = emulator->no_clock();
}

void mbarrier_arrive(Address at) {
  Thread& thread = emulator->current();
  Mbarrier& mbarrier = emulator->mbarrier_at(at);
  if (mbarrier.pending == 0)
    throw Fault("barrier", emulator->name_of(thread) + " arrives at a complete phase");
  mbarrier.arriving.join(thread.clock);
  thread.clock.tick();
  --mbarrier.pending;
  emulator->finish_phase(mbarrier);
  emulator->yield();
}

void mbarrier_expect(Address at, int64_t bytes) { emulator->mbarrier_at(at).bytes += bytes; }

void mbarrier_wait(Address at, int parity) {
  Mbarrier& mbarrier = emulator->mbarrier_at(at);
  emulator->yield();
  while (mbarrier.phase % 2 == parity) {
    emulator->wait(parity == 0 ? "phase 0 of a barrier" : "phase 1 of a barrier", mbarrier.waiters);
  }
  emulator->current().clock.join(mbarrier.released);
}

void store_async(Address to, const void* from, int64_t bytes, Address at) {
  Thread& thread = emulator->current();
  touch(to, bytes, Access::kWrite);
  emulator->block(to.block).shadow.set_pending(to.offset, bytes, true);
  Mbarrier& mbarrier = emulator->mbarrier_at(at);
  mbarrier.arriving.join(thread.clock);
  const char* data = static_cast<const char*>(from);
  emulator->store_later({to, &mbarrier, std::vector<char>(data, data + bytes)});
  thread.clock.tick();
}

unsigned load_acquire(const unsigned* from) {
  emulator->yield();
  emulator->current().clock.join(emulator->word(from).released);
  return *from;
}

void store_release(unsigned* to, unsigned value) {
  Thread& thread = emulator->current();
  Word& word = emulator->word(to);
  word.released = thread.clock;
  thread.clock.tick();
  *to = value;
  emulator->wake(word.waiters);
  emulator->yield();
}

unsigned add_release(unsigned* to, unsigned value) {
  Thread& thread = emulator->current();
  Word& word = emulator->word(to);
  word.released.join(thread.clock);
  thread.clock.tick();
  const unsigned before = *to;
  *to += value;
  emulator->wake(word.waiters);
  emulator->yield();
  return before;
}

void store_word(uint64_t* to, uint32_t x, uint32_t mark) {
  emulator->yield_sometimes();
  *to = static_cast<uint64_t>(mark) << 32 | x;
  emulator->wake(emulator->word(to).waiters);
}

uint32_t await_word(const uint64_t* from, uint32_t mark) {
  const auto found = [from] { return static_cast<uint32_t>(*from >> 32); };
  while (found() < mark) emulator->wait("a word of global memory", emulator->word(from).waiters);
  if (found() != mark) {
    throw Fault("overrun", emulator->name_of(emulator->current()) +
                               text(" reads mark %u while it waits for %u", found(), mark));
  }
  return static_cast<uint32_t>(*from);
}

namespace {
uint64_t seed = 0;
}  // namespace
void set_seed(uint64_t from) { seed = from; }
uint64_t next_seed() { return seed++; }

}  // namespace rnnkernels::emulation
