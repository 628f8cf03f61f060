// What kernels need of the machine, and all that they use of it: who they are, memory that a block shares,
// meetings, shuffles, products of a warp, copies that go on by themselves. Two bodies stand behind the names:
//
//   device_gpu.h        the GPU's, the only place with PTX
//   device_emulated.h   the host's (emulation.h): the same kernels, slowly, where there is no GPU
//
// Names, in both:
//   place()                      thread and block, and the rank of the block in its cluster
//   opaque(x)                    x, of which the compiler knows nothing
//   lowest_bit(x), highest_bit(x)   the place of a one in a word that has one
//   Shared<T>                    a run of elements in a block's shared memory; element i is read with [i] and
//                                written with set(i, x); of_peer(rank) is the same run of another block
//                                load<P>(i), store(i, p): several elements at once, aligned to their size
//   shared_memory<T>(at, size)   such a run from byte `at` of the block's own memory on
//   sync_block, sync_warp, sync_cluster
//   shuffle_xor(x, mask)         the x of lane (lane ^ mask)
//   rounded_pair(low, high)      two numbers as bfloat16, the first in the lower half
//   rounded<S>(x)                the bits of x in half precision, BFloat16 or Float16
//   multiply_add(c, a, b)        C += A B for a warp: m16n8k16 of bfloat16, m16n8k8 of TF32; sums in float32
//   copy_async(to, i, from)      16 bytes from global memory to element i on; from null: zeros
//   commit_copies, wait_copies<n>   all but the last n groups have landed, for this thread
//   Mbarrier                     a barrier in shared memory that counts arrivals and bytes
//   store_async(to, i, x, b)     x into a peer's memory; counts for the barrier b there when it has landed
//   load_acquire, store_release, add_release   numbers in global memory that order what lies around them
//   store_word(to, x, mark)      a word into global memory, with a mark beside it that comes with it
//   await_words(from, stride, count, mark, to)   `count` pairs of such words, once they bear the mark
//
// And of the host:
//   launch(grid, stream, kernel, arguments...)   a kernel is declared with RNNKERNELS_KERNEL(threads, blocks)
//   fill_zero(memory, bytes, stream)
//
// Fragments are laid out as PTX has it ("Matrix fragments for mma.m16n8k16"): with g = lane / 4, q = lane %
// 4,
//   A [16][k]  rows g and g + 8, columns 2q, 2q+1 (and + 8);   B [k][8]  rows 2q, 2q+1 (and + 8), column g
//   C [16][8]  rows g and g + 8, columns 2q, 2q+1
// and for TF32 (k = 8) A has columns q and q + 4, B rows q and q + 4.
#pragma once

#include <cstdint>

#include "core/elements.h"

namespace rnnkernels::device {

constexpr int kWarpLanes = 32;

struct Place {
  int thread, threads;  // of the block
  int block, blocks;    // of the grid
  int cluster_rank, cluster_size;
};

struct Grid {
  int64_t blocks = 0;
  int threads = 0;        // of a block
  int cluster = 1;        // blocks
  bool together = false;  // all blocks run at the same time, or the launch fails
  int64_t shared_bytes = 0;
};

using Stream = void*;  // cudaStream_t
using Status = int;    // cudaError_t

struct BFloat16Fragments {  // each register two numbers, the one with the lower index below
  struct A {
    uint32_t x[4];  // (g, 2q), (g + 8, 2q), (g, 2q + 8), (g + 8, 2q + 8)
  };
  struct B {
    uint32_t x[2];  // (2q, g), (2q + 8, g)
  };
};
struct TF32Fragments {  // float32 of which the product sees the upper 19 bits
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
