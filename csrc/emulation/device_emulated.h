// The implementation of device.h for the emulated GPU, out of the primitives of emulation.h.
#pragma once

#include <cstring>

#include "emulation/emulation.h"

#define RNNKERNELS_DEVICE inline
#define RNNKERNELS_KERNEL(threads, blocks) void
#define RNNKERNELS_ARGUMENT const

namespace rnnkernels::device {

using emulation::place;

template <class T>
T opaque(T x) {
  return x;
}

inline int lowest_bit(uint32_t x) { return __builtin_ctz(x); }
inline int highest_bit(uint32_t x) { return 31 - __builtin_clz(x); }

template <class T>
class Shared {
 public:
  Shared() = default;
  Shared(emulation::Address at, int64_t size) : at_(at), size_(size) {}

  T operator[](int64_t i) const {
    T x;
    std::memcpy(&x, emulation::touch(element(i, 1), sizeof(T), emulation::Access::kRead), sizeof(T));
    return x;
  }
  void set(int64_t i, T x) const {
    std::memcpy(emulation::touch(element(i, 1), sizeof(T), emulation::Access::kWrite), &x, sizeof(T));
  }
  template <class Packed>
  Packed load(int64_t i) const {
    Packed x;
    const int64_t count = static_cast<int64_t>(sizeof(Packed) / sizeof(T));
    std::memcpy(&x, emulation::touch(element(i, count), sizeof(Packed), emulation::Access::kRead),
                sizeof(Packed));
    return x;
  }
  template <class Packed>
  void store(int64_t i, Packed x) const {
    const int64_t count = static_cast<int64_t>(sizeof(Packed) / sizeof(T));
    std::memcpy(emulation::touch(element(i, count), sizeof(Packed), emulation::Access::kWrite), &x,
                sizeof(Packed));
  }
  Shared slice(int64_t first, int64_t size) const {
    if (first < 0 || size < 0 || first + size > size_)
      emulation::throw_out_of_bounds(first + size - 1, size_);
    return {{at_.block, at_.offset + first * static_cast<int64_t>(sizeof(T))}, size};
  }
  Shared of_peer(int rank) const {
    const Place me = place();
    if (rank < 0 || rank >= me.cluster_size) emulation::throw_out_of_bounds(rank, me.cluster_size);
    return {{me.block / me.cluster_size * me.cluster_size + rank, at_.offset}, size_};
  }
  emulation::Address element(int64_t i, int64_t count) const {
    if (i < 0 || i + count > size_) emulation::throw_out_of_bounds(i + count - 1, size_);
    return {at_.block, at_.offset + i * static_cast<int64_t>(sizeof(T))};
  }

 private:
  emulation::Address at_;
  int64_t size_ = 0;
};

template <class T>
Shared<T> shared_memory(int64_t at, int64_t size) {
  return {{emulation::place().block, at}, size};
}

using emulation::add_release;
using emulation::commit_copies;
using emulation::load_acquire;
using emulation::store_release;
using emulation::sync_block;
using emulation::sync_cluster;
using emulation::sync_warp;

template <class T>
T shuffle_xor(T x, int mask) {
  const int lane = emulation::place().thread % kWarpLanes;
  T result;
  std::memcpy(&result, emulation::exchange("shuffle_xor", &x, sizeof(T)) + (lane ^ mask) * sizeof(T),
              sizeof(T));
  return result;
}

template <class S>
uint16_t rounded(float x) {
  return static_cast<uint16_t>(rnnkernels::rounded<uint32_t>(S{}, x));
}
inline uint32_t rounded_pair(float low, float high) {
  return rounded<BFloat16>(low) | static_cast<uint32_t>(rounded<BFloat16>(high)) << 16;
}

template <class T>
void copy_async(const Shared<T>& to, int64_t i, const T* from) {
  emulation::copy_async(to.element(i, static_cast<int64_t>(16 / sizeof(T))), from);
}
template <int kLeft>
void wait_copies() {
  emulation::wait_copies(kLeft);
}

class Mbarrier {
 public:
  explicit Mbarrier(const Shared<uint64_t>& memory) : memory_(memory) {}
  void init(int arrivals) const { emulation::mbarrier_init(memory_.element(0, 1), arrivals); }
  void arrive() const { emulation::mbarrier_arrive(memory_.element(0, 1)); }
  void arrive_at_peer(int rank) const { emulation::mbarrier_arrive(memory_.of_peer(rank).element(0, 1)); }
  void expect(int64_t bytes) const { emulation::mbarrier_expect(memory_.element(0, 1), bytes); }
  void wait(int parity) const { emulation::mbarrier_wait(memory_.element(0, 1), parity); }
  Mbarrier of_peer(int rank) const { return Mbarrier(memory_.of_peer(rank)); }
  emulation::Address address() const { return memory_.element(0, 1); }

 private:
  Shared<uint64_t> memory_;
};

template <class T>
void store_async(const Shared<T>& to, int64_t i, T x, const Mbarrier& mbarrier) {
  emulation::store_async(to.element(i, 1), &x, sizeof(T), mbarrier.address());
}

using emulation::store_word;
template <int kMost>
void await_words(const uint64_t* from, int64_t stride, int count, uint32_t mark, uint32_t (&to)[kMost][2]) {
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < 2; ++j) to[i][j] = emulation::await_word(from + i * stride + j, mark);
  }
}

template <class... Arguments>
Status launch(const Grid& grid, Stream, void (*kernel)(Arguments...), Arguments... arguments) {
  emulation::Launch launch;
  launch.blocks = static_cast<int>(grid.blocks);
  launch.threads = grid.threads;
  launch.cluster = grid.cluster;
  launch.shared_bytes = grid.shared_bytes;
  launch.seed = emulation::next_seed();
  emulation::run(launch, [&] { kernel(arguments...); });
  return 0;
}

inline Status fill_zero(void* memory, int64_t bytes, Stream) {
  std::memset(memory, 0, static_cast<size_t>(bytes));
  return 0;
}

namespace emulated {

inline float bfloat16_in(uint32_t pair, int which) {
  const uint32_t bits = which == 0 ? pair << 16 : pair & 0xffff0000u;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits &= 0xffffe000u;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

template <class Both>
float element(BFloat16Fragments::A Both::* a, const Both* lanes, int row, int k) {
  const int lane = row % 8 * 4 + k % 8 / 2;
  return bfloat16_in((lanes[lane].*a).x[row / 8 + k / 8 * 2], k % 2);
}
template <class Both>
float element(BFloat16Fragments::B Both::* b, const Both* lanes, int k, int column) {
  return bfloat16_in((lanes[column * 4 + k % 8 / 2].*b).x[k / 8], k % 2);
}
template <class Both>
float element(TF32Fragments::A Both::* a, const Both* lanes, int row, int k) {
  return tf32((lanes[row % 8 * 4 + k % 4].*a).x[row / 8 + k / 4 * 2]);
}
template <class Both>
float element(TF32Fragments::B Both::* b, const Both* lanes, int k, int column) {
  return tf32((lanes[column * 4 + k % 4].*b).x[k / 4]);
}

// Every lane computes its own sums from the fragments of all lanes.
template <int kDepth, class Fragments>
void multiply_add(const char* name, Sums& c, const typename Fragments::A& a, const typename Fragments::B& b) {
  struct Both {
    typename Fragments::A a;
    typename Fragments::B b;
  };
  const Both mine{a, b};
  const Both* lanes = reinterpret_cast<const Both*>(emulation::exchange(name, &mine, sizeof(mine)));
  const int lane = emulation::place().thread % kWarpLanes;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < kDepth; ++k)
      sum += element(&Both::a, lanes, row, k) * element(&Both::b, lanes, k, column);
    c.x[i] += sum;
  }
}

}  // namespace emulated

inline void multiply_add(Sums& c, const BFloat16Fragments::A& a, const BFloat16Fragments::B& b) {
  emulated::multiply_add<16, BFloat16Fragments>("multiply_add of bfloat16", c, a, b);
}
inline void multiply_add(Sums& c, const TF32Fragments::A& a, const TF32Fragments::B& b) {
  emulated::multiply_add<8, TF32Fragments>("multiply_add of TF32", c, a, b);
}

}  // namespace rnnkernels::device
