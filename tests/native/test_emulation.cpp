// Tests of the emulated GPU within a block: results of its primitives, and one kernel for each fault.
#include <cstring>
#include <string>
#include <vector>

#include "faults.h"

namespace {

// --- Barriers and shared memory ----------------------------------------------------------------------

void test_barriers() {
  std::vector<float> found(64);
  const auto reversed = [&](bool synchronizes) {
    return [&found, synchronizes] {
      const int thread = place().thread;
      const Shared<float> memory = shared_memory<float>(0, 64);
      memory.set(thread, static_cast<float>(thread));
      if (synchronizes) sync_block();
      found[thread] = memory[63 - thread];
    };
  };
  const Launch launch{1, 64, 1, 256};
  expect_right("a barrier between a write and the read of another thread", launch, reversed(true));
  for (int i = 0; i < 64; ++i) expect(found[i] == 63 - i, "the value that the other thread wrote");
  // The first thread to read finds an unwritten element; later ones would find a race.
  expect_fault("a missing barrier", "unwritten", launch, reversed(false));
  expect_fault("a second write without a barrier", "race", launch, [] {
    const int thread = place().thread;
    const Shared<float> memory = shared_memory<float>(0, 64);
    memory.set(thread, 1);
    sync_block();
    const float x = memory[63 - thread];
    memory.set(thread, x + 1);  // while the other thread may still read it
  });
  expect_right("sync_warp orders a warp", launch, [] {
    const int thread = place().thread;
    const Shared<float> memory = shared_memory<float>(0, 64);
    memory.set(thread, 1);
    sync_warp();
    (void)memory[thread ^ 1];
  });
  expect_fault("a shuffle orders nothing", "race", {1, 32, 1, 256}, [] {
    const int thread = place().thread;
    const Shared<float> memory = shared_memory<float>(0, 64);
    if (thread == 0) memory.set(0, 1);
    (void)shuffle_xor(1.0f, 1);
    if (thread == 1) (void)memory[0];
  });
}

void test_bounds() {
  const Launch launch{1, 32, 1, 64};
  expect_fault("an element past the end of its array", "out of bounds", launch,
               [] { shared_memory<float>(0, 8).set(8, 1); });
  expect_fault("an array past the end of the block's memory", "out of bounds", launch,
               [] { (void)shared_memory<float>(60, 8)[1]; });
  expect_fault("a slice past the end of its array", "out of bounds", launch,
               [] { (void)shared_memory<float>(0, 8).slice(4, 5); });
  expect_fault("a read of an unwritten element", "unwritten", launch,
               [] { (void)shared_memory<float>(0, 8)[0]; });
}

void test_deadlock_and_divergence() {
  std::string text;
  expect_fault("one thread does not reach the barrier", "deadlock", {1, 64, 1, 0}, [] {
    if (place().thread != 5) sync_block();
  });
  (void)fault(
      {1, 64, 1, 0},
      [] {
        if (place().thread != 5) sync_block();
      },
      &text);
  expect(text.find("63 threads wait for sync_block") != std::string::npos &&
             text.find("1 have returned") != std::string::npos,
         "the message of a deadlock counts the threads per awaited event: " + text);
  (void)fault(
      {2, 64, 2, 64},
      [] {
        const Place me = place();
        const Mbarrier barrier(shared_memory<uint64_t>(0, 1));
        if (me.thread == 0) barrier.init(2);
        sync_cluster();
        if (me.thread < 2) barrier.arrive();
        if (me.block == 0) barrier.wait(0);
        if (me.block == 0 && me.thread < 3) barrier.wait(1);
        sync_cluster();
      },
      &text);
  expect(text.find("3 threads wait for phase 1 of a barrier") != std::string::npos &&
             text.find("125 threads wait for sync_cluster") != std::string::npos,
         "the message counts only threads that wait now, not those that were woken before: " + text);
  expect_fault("lanes of a warp at two operations", "divergence", {1, 32, 1, 0}, [] {
    Sums c{};
    if (place().thread < 7) {
      (void)shuffle_xor(1, 1);
    } else {
      multiply_add(c, BFloat16Fragments::A{}, BFloat16Fragments::B{});
    }
  });
}

// --- Operations of a warp ----------------------------------------------------------------------------

// A [16][k] times B [k][8], in the fragments of device.h, against plain loops.
template <class Fragments, int kDepth>
void test_product(const char* what) {
  float a[16][kDepth], b[kDepth][8], c[16][8] = {};
  for (int i = 0; i < 16 * kDepth; ++i) a[i / kDepth][i % kDepth] = static_cast<float>((i * 7) % 13 - 6);
  for (int i = 0; i < kDepth * 8; ++i) b[i / 8][i % 8] = static_cast<float>((i * 5) % 11 - 5);
  expect_right(what, {1, 32, 1, 0}, [&] {
    const int g = place().thread / 4, q = place().thread % 4;
    typename Fragments::A fa;
    typename Fragments::B fb;
    if constexpr (kDepth == 16) {
      const auto pair = [](float low, float high) {
        uint32_t l, h;
        std::memcpy(&l, &low, 4), std::memcpy(&h, &high, 4);
        return l >> 16 | (h & 0xffff0000u);
      };
      for (int i = 0; i < 4; ++i) {
        const int row = g + i % 2 * 8, column = 2 * q + i / 2 * 8;
        fa.x[i] = pair(a[row][column], a[row][column + 1]);
      }
      for (int i = 0; i < 2; ++i) fb.x[i] = pair(b[2 * q + 8 * i][g], b[2 * q + 8 * i + 1][g]);
    } else {
      for (int i = 0; i < 4; ++i) fa.x[i] = a[g + i % 2 * 8][q + i / 2 * 4];
      for (int i = 0; i < 2; ++i) fb.x[i] = b[q + 4 * i][g];
    }
    Sums sums{{1, 1, 1, 1}};
    multiply_add(sums, fa, fb);
    for (int i = 0; i < 4; ++i) c[g + i / 2 * 8][2 * q + i % 2] = sums.x[i];
  });
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = 1;
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
      expect(c[row][column] == sum, std::string(what) + ": element of the product");
    }
  }
}

void test_shuffles() {
  std::vector<int> found(64);
  expect_right("shuffle_xor", {1, 64, 1, 0}, [&] {
    const int thread = place().thread;
    int x = thread;
    for (int mask = 1; mask < 32; mask *= 2) x += shuffle_xor(x, mask);
    found[thread] = x;
  });
  for (int i = 0; i < 64; ++i)
    expect(found[i] == (i < 32 ? 496 : 1520), "the sum over a warp, in every lane");
}

// --- Copies ------------------------------------------------------------------------------------------

void test_copies() {
  std::vector<float> global(8);
  for (int i = 0; i < 8; ++i) global[i] = static_cast<float>(i);
  const auto copies = [&](int left, bool synchronizes) {
    return [&global, left, synchronizes] {
      const int thread = place().thread;
      const Shared<float> memory = shared_memory<float>(0, 12);
      if (thread < 2) copy_async(memory, 4 * thread, global.data() + 4 * thread);
      commit_copies();
      if (thread == 0) copy_async(memory, 8, static_cast<const float*>(nullptr));
      commit_copies();
      if (left == 0) {
        wait_copies<0>();
      } else {
        wait_copies<1>();
      }
      if (synchronizes) sync_block();
      for (int i = 0; i < (left == 0 ? 12 : 8); ++i) {
        expect(memory[i] == (i < 8 ? static_cast<float>(i) : 0), "the copied element, or zero");
      }
    };
  };
  expect_right("all copies, after a wait for them", {1, 32, 1, 64}, copies(0, true));
  expect_right("the first group of two, after a wait for it", {1, 32, 1, 64}, copies(1, true));
  expect(fault({1, 32, 1, 64, 1}, copies(0, false)) != "none", "another thread's copy also needs a barrier");
  expect_fault("a read without a wait for the copy", "race", {1, 32, 1, 64}, [&] {
    const Shared<float> memory = shared_memory<float>(0, 4);
    if (place().thread != 0) return;
    copy_async(memory, 0, global.data());
    commit_copies();
    (void)memory[0];
  });
}

}  // namespace

int main() {
  test_barriers();
  test_bounds();
  test_deadlock_and_divergence();
  test_shuffles();
  test_product<BFloat16Fragments, 16>("m16n8k16 of bfloat16");
  test_product<TF32Fragments, 8>("m16n8k8 of TF32");
  test_copies();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
