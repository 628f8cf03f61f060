// An emulated GPU on the host, which runs kernels where there is no GPU. Every thread of a launch is a fiber.
// Wherever a thread of a real GPU could be overtaken, the emulator draws the fiber that continues, from a
// seed. The emulator is slow, and it is stricter than a GPU: it reports an error that a GPU might tolerate
// as a named Fault.
//
//   race            two threads access the same element of shared memory, at least one of them writes, and
//                   nothing orders the two; or a thread accesses memory that an asynchronous copy is still
//                   writing
//   out of bounds   an access past the end of a Shared, or of the block's memory
//   unwritten       a read of an element that was never written, or the use of an mbarrier without init
//   divergence      the lanes of a warp execute different collective operations
//   deadlock        no thread can continue
//   overrun         a word of global memory is overwritten before the thread that waits for it has read it
//   gone            an access to a block's memory after one of the block's threads has returned
//   barrier         an arrival at an mbarrier at which every thread has arrived
//   launch          a launch that no GPU accepts
//
// Vector clocks record which accesses are ordered (FastTrack, Flanagan and Freund 2009). Barriers of a block,
// a warp and a cluster, mbarriers, and pairs of release and acquire order threads. Shuffles and products of a
// warp do not; sync_warp does.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "cuda/place.h"

namespace rnnkernels::emulation {

struct Fault : std::runtime_error {
  std::string name;
  Fault(std::string fault, const std::string& text)
      : std::runtime_error(fault + ": " + text), name(std::move(fault)) {}
};

struct Launch {
  int blocks = 1;
  int threads = 32;  // per block, a multiple of 32
  int cluster = 1;   // blocks per cluster
  int64_t shared_bytes = 0;
  uint64_t seed = 0;
};

// Calls kernel() once per thread of the launch, all threads concurrently. Throws the first Fault.
void run(const Launch& launch, const std::function<void()>& kernel);

// --- Primitives of device_emulated.h -----------------------------------------------------------------

device::Place place();

// An address in the shared memory of a block.
struct Address {
  int block = 0;
  int64_t offset = 0;
};

// Checks an access, records it, and returns the address on the host.
enum class Access { kRead, kWrite };
char* touch(Address at, int64_t bytes, Access access);
[[noreturn]] void throw_out_of_bounds(int64_t index, int64_t size);

void sync_block();
void sync_warp();
void sync_cluster();

// Collective over a warp: each lane contributes `bytes` bytes at `mine`. Returns the contributions of all 32
// lanes, one after another.
const char* exchange(const char* operation, const void* mine, int64_t bytes);

// Copies 16 bytes from global memory, or zeros if `from` is null. The bytes land at some time before
// wait_copies returns for their group.
void copy_async(Address to, const void* from);
void commit_copies();
void wait_copies(int groups_left);

// An mbarrier: 8 bytes of shared memory. A phase ends when all threads have arrived and all expected bytes
// have landed.
void mbarrier_init(Address mbarrier, int arrivals);
void mbarrier_arrive(Address mbarrier);
void mbarrier_expect(Address mbarrier, int64_t bytes);
void mbarrier_wait(Address mbarrier, int parity);
// Stores into a block's memory later, and then counts the bytes at the mbarrier.
void store_async(Address to, const void* from, int64_t bytes, Address mbarrier);

// Accesses to a value in global memory that order the accesses around them.
unsigned load_acquire(const unsigned* from);
void store_release(unsigned* to, unsigned value);
unsigned add_release(unsigned* to, unsigned value);

// A word in global memory with a mark beside it. Reading a mark beyond the awaited one is a Fault (overrun).
void store_word(uint64_t* to, uint32_t x, uint32_t mark);
uint32_t await_word(const uint64_t* from, uint32_t mark);

// Seeds for launches through device::launch. After set_seed(x) the launches have the seeds x, x + 1, ...
void set_seed(uint64_t seed);
uint64_t next_seed();

}  // namespace rnnkernels::emulation
