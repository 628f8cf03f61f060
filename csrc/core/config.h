// Macros with which one source compiles with a host compiler, with nvcc, and for several instruction sets.
#pragma once

#if defined(__CUDACC__)
#define RNNKERNELS_INLINE __host__ __device__ __forceinline__
#define RNNKERNELS_UNROLL _Pragma("unroll")
#else
// Always inlined: the linker could otherwise use the copy of one instruction set for all of them.
#define RNNKERNELS_INLINE inline __attribute__((always_inline))
#define RNNKERNELS_UNROLL _Pragma("GCC unroll 32")
#endif
