// Words that let one source serve a host compiler, nvcc, and several instruction sets.
#pragma once

#if defined(__CUDACC__)
#define RNNKERNELS_INLINE __host__ __device__ __forceinline__
#define RNNKERNELS_UNROLL _Pragma("unroll")
#else
// Always inlined, so that no instruction set leaves behind a copy that the linker could hand to
// another one.
#define RNNKERNELS_INLINE inline __attribute__((always_inline))
#define RNNKERNELS_UNROLL _Pragma("GCC unroll 32")
#endif
