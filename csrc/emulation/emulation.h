// A GPU on the host, to run kernels where there is none: every thread is a fiber, and which one goes on is
// drawn from a seed wherever a real thread could be overtaken. It is slow, and it is stricter than the
// machine: what a GPU may forgive is a Fault here, with a name.
//
//   race            two threads touch an element of shared memory, one of them writes, and nothing orders
//   them;
//                   or somebody touches what an asynchronous copy has not landed in
//   out of bounds   an element past the end of its run, or of the block's memory
//   unwritten       an element is read that nobody wrote
//   divergence      lanes of one warp meet at different collective operations
//   deadlock        nobody can go on
//   overrun         a word of global memory is overwritten before who awaited it has read it
//   gone            a block's memory is touched after one of its threads has returned
//
// What orders two threads is followed with vector clocks (Flanagan and Freund 2009, FastTrack): barriers,
// cluster barriers, mbarriers, and releases that were acquired. Shuffles and products of a warp order
// nothing; sync_warp does.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace rnnkernels::emulation {

struct Fault : std::runtime_error {
  std::string name;
  Fault(std::string fault, const std::string& text)
      : std::runtime_error(fault + ": " + text), name(std::move(fault)) {}
};

struct Launch {
  int blocks = 1;
  int threads = 32;  // of a block, whole warps
  int cluster = 1;   // blocks
  int64_t shared_bytes = 0;
  uint64_t seed = 0;
};

// Calls kernel() as every thread of the launch, all of them at the same time; throws the first Fault.
void run(const Launch& launch, const std::function<void()>& kernel);

// --- What the body of device.h is made of ------------------------------------------------------------

struct Place {
  int thread, threads, block, blocks, cluster_rank, cluster_size;
};
Place place();

// A place in the shared memory of a block.
struct Address {
  int block = 0;
  int64_t offset = 0;
};

// Where it lies on the host, after the checks and with a note of who touched it.
enum class Access { kRead, kWrite };
char* touch(Address at, int64_t bytes, Access access);
[[noreturn]] void out_of_run(int64_t index, int64_t size);

void sync_block();
void sync_warp();
void sync_cluster();

// All lanes of a warp meet: each brings `bytes` of `mine` and gets those of all 32, one after another.
const char* exchange(const char* operation, const void* mine, int64_t bytes);

// 16 bytes from global memory, which land some time before their group has been waited for; null: zeros.
void copy_async(Address to, const void* from);
void commit_copies();
void wait_copies(int groups_left);

// A barrier in shared memory, 8 bytes. A phase ends when all have arrived and all expected bytes have landed.
void barrier_init(Address barrier, int arrivals);
void barrier_arrive(Address barrier);
void barrier_expect(Address barrier, int64_t bytes);
void barrier_wait(Address barrier, int parity);
// A store into a block's memory that lands late, and then counts for the barrier there.
void store_async(Address to, const void* from, int64_t bytes, Address barrier);

// A number in global memory that orders what lies around it.
unsigned load_acquire(const unsigned* from);
void store_release(unsigned* to, unsigned value);
unsigned add_release(unsigned* to, unsigned value);

// A word in global memory with a mark beside it. To come upon a mark beyond the awaited one is a Fault: the
// word has been overwritten before it was read.
void store_word(uint64_t* to, uint32_t x, uint32_t mark);
uint32_t await_word(const uint64_t* from, uint32_t mark);

// Seeds of launches that name none: what follows set_seed is always the same.
void set_seed(uint64_t seed);
uint64_t next_seed();

}  // namespace rnnkernels::emulation
