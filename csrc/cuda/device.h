// The device interface: everything that a kernel uses of a GPU beyond plain C++. It has two implementations:
//
//   cuda/device_gpu.h                on a GPU; the only file with PTX
//   emulation/device_emulated.h      on the emulated GPU (emulation/emulation.h), for tests without a GPU
//
// In kernels:
//   place()                      the indices of the thread and the block, and the block's rank in its cluster
//   opaque(x)                    x, hidden from the compiler's optimizations
//   lowest_bit(x), highest_bit(x)   the index of the lowest or highest one bit; x must not be 0
//   Shared<T>                    an array in a block's shared memory: [i] reads and set(i, x) writes element
//                                i; load<P>(i) and store(i, p) access several elements at once, aligned to
//                                the size of P; of_peer(rank) is the same array of another block
//   shared_memory<T>(at, size)   the array of `size` elements from byte `at` of the block's own memory
//   sync_block, sync_warp, sync_cluster   barriers
//   shuffle_xor(x, mask)         x of lane (lane ^ mask)
//   rounded_pair(low, high)      two floats as bfloat16, `low` in the lower half of the word
//   rounded<S>(x)                the bits of x rounded to S, BFloat16 or Float16
//   multiply_add(c, a, b)        C += A B by a warp: m16n8k16 of bfloat16, m16n8k8 of TF32; float32 sums
//   copy_async(to, i, from)      copies 16 bytes from global memory to element i, or zeros if from is null
//   commit_copies, wait_copies<n>   groups of copies: waits until all but this thread's last n have landed
//   Mbarrier                     a barrier in shared memory that counts arrivals and bytes
//   store_async(to, i, x, b)     stores x into a peer's memory, and counts its bytes at the peer's mbarrier b
//   load_acquire, store_release, add_release   accesses to global memory that order those around them
//   store_word(to, x, mark)      stores a word and a mark in global memory, both in one access
//   await_words(from, stride, count, mark, to)   waits until `count` pairs of words have the mark
//
// On the host:
//   launch(grid, stream, kernel, arguments...)   kernels are declared with RNNKERNELS_KERNEL(threads, blocks)
//   fill_zero(memory, bytes, stream)
//
// Fragments have the layout of PTX ("Matrix fragments for mma.m16n8k16"). With g = lane / 4, q = lane % 4:
//   A [16][k]  rows g and g + 8, columns 2q, 2q+1 (and + 8);   B [k][8]  rows 2q, 2q+1 (and + 8), column g
//   C [16][8]  rows g and g + 8, columns 2q, 2q+1
// For TF32 (k = 8), A has columns q and q + 4, and B rows q and q + 4.
#pragma once

#include <cstdint>

#include "core/elements.h"
#include "cuda/place.h"
#include "cuda/status.h"

namespace rnnkernels::device {

using cuda::Status;
using cuda::Stream;

constexpr int kWarpLanes = 32;

struct Grid {
  int64_t blocks = 0;
  int threads = 0;        // per block
  int cluster = 1;        // blocks per cluster
  bool together = false;  // all blocks must run at the same time; otherwise the launch fails
  int64_t shared_bytes = 0;
};

struct BFloat16Fragments {  // two elements per register, the one with the lower index in the lower half
  struct A {
    uint32_t x[4];  // (g, 2q), (g + 8, 2q), (g, 2q + 8), (g + 8, 2q + 8)
  };
  struct B {
    uint32_t x[2];  // (2q, g), (2q + 8, g)
  };
};
struct TF32Fragments {  // float32 elements, of which the product uses the upper 19 bits
  struct A {
    float x[4];  // (g, q), (g + 8, q), (g, q + 4), (g + 8, q + 4)
  };
  struct B {
    float x[2];  // (q, g), (q + 4, g)
  };
};
struct Sums {
  float x[4];  // (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)
};

}  // namespace rnnkernels::device

#if defined(__CUDACC__)
#include "cuda/device_gpu.h"
#else
#include "emulation/device_emulated.h"
#endif
