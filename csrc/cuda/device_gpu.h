// The implementation of device.h on a GPU. Clusters, and mbarriers that count bytes, need sm_90. On older
// GPUs a block is a cluster of its own, and every operation that needs a peer traps.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#define RNNKERNELS_DEVICE __device__ __forceinline__
#define RNNKERNELS_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define RNNKERNELS_ARGUMENT const __grid_constant__

namespace rnnkernels::device {

__device__ __forceinline__ Place place() {
  uint32_t rank = 0, size = 1;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), static_cast<int>(blockIdx.x),
          static_cast<int>(gridDim.x),   static_cast<int>(rank),       static_cast<int>(size)};
}

__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ __forceinline__ float opaque(float x) {
  asm volatile("" : "+f"(x));
  return x;
}

__device__ __forceinline__ int lowest_bit(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }
__device__ __forceinline__ int highest_bit(uint32_t x) { return 31 - __clz(static_cast<int>(x)); }

template <class T>
class Shared {
 public:
  __device__ __forceinline__ Shared(T* data) : data_(data) {}
  __device__ __forceinline__ T operator[](int64_t i) const { return data_[i]; }
  __device__ __forceinline__ void set(int64_t i, T x) const { data_[i] = x; }
  template <class Packed>
  __device__ __forceinline__ Packed load(int64_t i) const {
    return *reinterpret_cast<const Packed*>(data_ + i);
  }
  template <class Packed>
  __device__ __forceinline__ void store(int64_t i, Packed x) const {
    *reinterpret_cast<Packed*>(data_ + i) = x;
  }
  __device__ __forceinline__ Shared slice(int64_t first, int64_t) const { return data_ + first; }
  __device__ __forceinline__ Shared of_peer(int rank) const {
#if __CUDA_ARCH__ >= 900
    T* peer;
    asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(data_), "r"(rank));
    return peer;
#else
    __trap();
    return data_;
#endif
  }
  // The address within the shared window, which also covers the memory of peers.
  __device__ __forceinline__ uint32_t address(int64_t i = 0) const {
    uint64_t wide;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(wide) : "l"(data_ + i));
    return static_cast<uint32_t>(wide);
  }

 private:
  T* data_;
};

template <class T>
__device__ __forceinline__ Shared<T> shared_memory(int64_t at, int64_t /*size*/) {
  extern __shared__ __align__(128) char memory[];
  return reinterpret_cast<T*>(memory + at);
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
__device__ __forceinline__ void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <class S>
__device__ __forceinline__ uint16_t rounded(float x);
template <>
__device__ __forceinline__ uint16_t rounded<BFloat16>(float x) {
  return static_cast<uint16_t>(rounded_pair(x, 0));
}
template <>
__device__ __forceinline__ uint16_t rounded<Float16>(float x) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}

__device__ __forceinline__ void multiply_add(Sums& c, const BFloat16Fragments::A& a,
                                             const BFloat16Fragments::B& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}
__device__ __forceinline__ void multiply_add(Sums& c, const TF32Fragments::A& a, const TF32Fragments::B& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
      : "r"(__float_as_uint(a.x[0])), "r"(__float_as_uint(a.x[1])), "r"(__float_as_uint(a.x[2])),
        "r"(__float_as_uint(a.x[3])), "r"(__float_as_uint(b.x[0])), "r"(__float_as_uint(b.x[1])));
}

template <class T>
__device__ __forceinline__ void copy_async(const Shared<T>& to, int64_t i, const T* from) {
  const int bytes = from ? 16 : 0;  // bytes to read; the instruction fills the rest of the 16 with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address(i)),
               "l"(from ? from : reinterpret_cast<const T*>(1024)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

class Mbarrier {
 public:
  __device__ __forceinline__ explicit Mbarrier(const Shared<uint64_t>& memory) : memory_(memory) {}
  // Visible to all blocks of the cluster after sync_cluster.
  __device__ __forceinline__ void init(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(memory_.address()), "r"(arrivals)
                 : "memory");
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void arrive() const {
    asm volatile("mbarrier.arrive.release.cluster.shared::cta.b64 _, [%0];" ::"r"(memory_.address())
                 : "memory");
  }
  __device__ __forceinline__ void arrive_at_peer(int rank) const {
    asm volatile(
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(memory_.of_peer(rank).address())
        : "memory");
  }
  __device__ __forceinline__ void expect(int bytes) const {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(memory_.address()),
                 "r"(bytes)
                 : "memory");
  }
  __device__ __forceinline__ void wait(int parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(memory_.address()),
        "r"(parity)
        : "memory");
  }
#else
  __device__ __forceinline__ void arrive() const { __trap(); }
  __device__ __forceinline__ void arrive_at_peer(int) const { __trap(); }
  __device__ __forceinline__ void expect(int) const { __trap(); }
  __device__ __forceinline__ void wait(int) const { __trap(); }
#endif
  __device__ __forceinline__ Mbarrier of_peer(int rank) const { return Mbarrier(memory_.of_peer(rank)); }
  __device__ __forceinline__ uint32_t address() const { return memory_.address(); }

 private:
  Shared<uint64_t> memory_;
};

// T has four bytes.
template <class T>
__device__ __forceinline__ void store_async(const Shared<T>& to, int64_t i, T x, const Mbarrier& barrier) {
  static_assert(sizeof(T) == 4);
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to.address(i)),
      "r"(reinterpret_cast<const uint32_t&>(x)), "r"(barrier.address())
      : "memory");
#else
  __trap();
#endif
}

__device__ __forceinline__ unsigned load_acquire(const unsigned* from) {
  unsigned x;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
  return x;
}
__device__ __forceinline__ void store_release(unsigned* to, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned add_release(unsigned* to, unsigned value) {
  unsigned before;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(to), "r"(value)
               : "memory");
  return before;
}

// A word and its mark are stored in one access of 64 bits, so they arrive together and need no ordering.
__device__ __forceinline__ void store_word(uint64_t* to, uint32_t x, uint32_t mark) {
  const uint64_t both = static_cast<uint64_t>(mark) << 32 | x;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(both) : "memory");
}
template <int kMost>
__device__ __forceinline__ void await_words(const uint64_t* from, int64_t stride, int count, uint32_t mark,
                                            uint32_t (&to)[kMost][2]) {
  bool arrived;
  do {
    uint64_t words[kMost][2];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i >= count) continue;
      asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                   : "=l"(words[i][0]), "=l"(words[i][1])
                   : "l"(from + i * stride)
                   : "memory");
    }
    arrived = true;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i >= count) continue;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        to[i][j] = static_cast<uint32_t>(words[i][j]);
        arrived = arrived && static_cast<uint32_t>(words[i][j] >> 32) == mark;
      }
    }
  } while (!arrived);
}

template <class... Arguments>
Status launch(const Grid& grid, Stream stream, void (*kernel)(Arguments...), Arguments... arguments) {
  constexpr int64_t kSharedByDefault = 48 * 1024;
  constexpr int kPortableCluster = 8;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
  };
  if (grid.blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (grid.shared_bytes > kSharedByDefault) {
    const auto bytes = static_cast<int>(grid.shared_bytes);
    const cudaError_t error = set(cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
  }
  if (grid.cluster > kPortableCluster) {
    const cudaError_t error = set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  if (grid.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(grid.cluster);
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  if (grid.together) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

inline Status fill_zero(void* memory, int64_t bytes, Stream stream) {
  return cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream));
}

}  // namespace rnnkernels::device
