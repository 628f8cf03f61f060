// The GPU's body of device.h. Clusters, and barriers that count bytes, need sm_90; on older ones a block is a
// cluster by itself, and what needs a peer traps.
#pragma once

#include <cstdint>

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
  // As an address in the shared window, which a peer's place has too.
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
  const int bytes = from ? 16 : 0;  // of the 16 those that are read; the rest becomes zero
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
  // All blocks of the cluster see it after sync_cluster.
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

}  // namespace rnnkernels::device
