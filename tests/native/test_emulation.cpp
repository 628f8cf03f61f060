// The emulated GPU: what it computes, and that it names each fault that is planted in a kernel.
#include <cmath>
#include <cstring>
#include <functional>
#include <set>
#include <vector>

#include "cuda/device.h"
#include "cuda/emulation.h"
#include "native.h"

using namespace rnnkernels;
using namespace rnnkernels::device;
using emulation::Launch;

namespace {

// The name of the fault that a kernel ends in, or "none".
std::string fault(const Launch& launch, const std::function<void()>& kernel, std::string* text = nullptr) {
  try {
    emulation::run(launch, kernel);
  } catch (const emulation::Fault& fault) {
    if (text) *text = fault.what();
    return fault.name;
  }
  return "none";
}

constexpr int kSeeds = 20;

// A kernel is right under every order of its threads.
void expect_right(const char* what, Launch launch, const std::function<void()>& kernel) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    launch.seed = seed;
    std::string text;
    const std::string found = fault(launch, kernel, &text);
    expect(found == "none", std::string(what) + ": " + text);
  }
}

// And a wrong one is caught under every order, whatever it would have computed.
void expect_fault(const char* what, const char* name, Launch launch, const std::function<void()>& kernel) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    launch.seed = seed;
    std::string text;
    const std::string found = fault(launch, kernel, &text);
    expect(found == name, std::string(what) + ": expected " + name + ", got " + found + ", " + text);
  }
}

// --- What works --------------------------------------------------------------------------------------

void test_barriers() {
  std::vector<float> sums(64);
  const auto reversed = [&](bool meets) {
    return [&sums, meets] {
      const int thread = place().thread;
      const Shared<float> memory = shared_memory<float>(0, 64);
      memory.set(thread, static_cast<float>(thread));
      if (meets) sync_block();
      sums[thread] = memory[63 - thread];
    };
  };
  const Launch launch{1, 64, 1, 256};
  expect_right("a barrier between a write and another's read", launch, reversed(true));
  for (int i = 0; i < 64; ++i) expect(sums[i] == 63 - i, "what the other thread wrote");
  // Whoever comes first finds nothing; later ones would find a race.
  expect_fault("a missing barrier", "unwritten", launch, reversed(false));
  expect_fault("a second write without a barrier", "race", launch, [] {
    const int thread = place().thread;
    const Shared<float> memory = shared_memory<float>(0, 64);
    memory.set(thread, 1);
    sync_block();
    const float x = memory[63 - thread];
    memory.set(thread, x + 1);  // while the other may still read it
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
  expect_fault("an element past its run", "out of bounds", launch,
               [] { shared_memory<float>(0, 8).set(8, 1); });
  expect_fault("a run past the block's memory", "out of bounds", launch,
               [] { (void)shared_memory<float>(60, 8)[1]; });
  expect_fault("a slice past its run", "out of bounds", launch,
               [] { (void)shared_memory<float>(0, 8).slice(4, 5); });
  expect_fault("a read of nothing", "unwritten", launch, [] { (void)shared_memory<float>(0, 8)[0]; });
}

void test_meetings() {
  std::string text;
  expect_fault("one thread stays away", "deadlock", {1, 64, 1, 0}, [] {
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
         "a deadlock says who waits for what: " + text);
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
         "and those that something woke before are not among them: " + text);
  expect_fault("a warp at two operations", "divergence", {1, 32, 1, 0}, [] {
    Sums c{};
    if (place().thread < 7) {
      (void)shuffle_xor(1, 1);
    } else {
      multiply_add(c, BFloat16Fragments::A{}, BFloat16Fragments::B{});
    }
  });
}

// A [16][k] times B [k][8], laid out in fragments by the rule of device.h; against plain loops.
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
      expect(c[row][column] == sum, std::string(what) + ": an element of the product");
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
  for (int i = 0; i < 64; ++i) expect(found[i] == (i < 32 ? 496 : 1520), "the sum of a warp, in every lane");
}

// --- Copies ------------------------------------------------------------------------------------------

void test_copies() {
  std::vector<float> global(8);
  for (int i = 0; i < 8; ++i) global[i] = static_cast<float>(i);
  const auto copies = [&](int left, bool meets) {
    return [&global, left, meets] {
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
      if (meets) sync_block();
      for (int i = 0; i < (left == 0 ? 12 : 8); ++i) {
        expect(memory[i] == (i < 8 ? static_cast<float>(i) : 0), "what was copied, or zeros");
      }
    };
  };
  expect_right("copies that were waited for", {1, 32, 1, 64}, copies(0, true));
  expect_right("and the first group of two", {1, 32, 1, 64}, copies(1, true));
  expect(fault({1, 32, 1, 64, 1}, copies(0, false)) != "none", "another thread's copy needs a barrier, too");
  expect_fault("a copy that was not waited for", "race", {1, 32, 1, 64}, [&] {
    const Shared<float> memory = shared_memory<float>(0, 4);
    if (place().thread != 0) return;
    copy_async(memory, 0, global.data());
    commit_copies();
    (void)memory[0];
  });
}

// --- Clusters ----------------------------------------------------------------------------------------

// Two blocks send each other a number, some steps long, through two slots. A barrier for each slot is right;
// with one for both, a message that overtakes the one before it would be taken for it.
std::function<void()> exchange_numbers(std::vector<float>& results, int steps, int barriers) {
  return [&results, steps, barriers] {
    const Place me = place();
    const int peer = me.cluster_rank ^ 1;
    const Shared<float> slots = shared_memory<float>(0, 2);
    const Shared<uint64_t> memory = shared_memory<uint64_t>(16, 2);
    const auto full = [&](int s) { return Mbarrier(memory.slice(s % barriers, 1)); };
    for (int i = 0; me.thread == 0 && i < barriers; ++i) full(i).init(1);
    sync_cluster();
    if (me.thread == 0) {
      float x = static_cast<float>(me.cluster_rank);
      for (int s = 0; s < steps; ++s) {
        full(s).expect(4);
        full(s).arrive();
        store_async(slots.of_peer(peer), s % 2, x, full(s).of_peer(peer));
        full(s).wait(s / barriers % 2);
        x = slots[s % 2] + 1;
      }
      results[me.block] = x;
    }
    sync_cluster();
  };
}

void test_clusters() {
  std::vector<float> results(4);
  const Launch launch{4, 32, 2, 256};
  expect_right("messages to a peer, counted by its barriers", launch, exchange_numbers(results, 5, 2));
  for (int i = 0; i < 4; ++i) {
    expect(results[i] == static_cast<float>((i + 5) % 2 + 5), "the number that went to and fro");
  }
  expect_fault("a message that was not waited for", "race", {2, 32, 2, 64}, [] {
    const Place me = place();
    const Shared<float> slot = shared_memory<float>(0, 1);
    const Mbarrier full(shared_memory<uint64_t>(16, 1));
    if (me.thread == 0) full.init(1);
    if (me.thread == 0) slot.set(0, 0);
    sync_cluster();
    if (me.thread == 0)
      store_async(slot.of_peer(me.cluster_rank ^ 1), 0, 1.0f, full.of_peer(me.cluster_rank ^ 1));
    sync_cluster();
    (void)slot[0];
  });
  expect_right("a peer's memory, written and read around sync_cluster", launch, [] {
    const Place me = place();
    const Shared<float> slot = shared_memory<float>(0, 32);
    slot.of_peer(me.cluster_rank ^ 1).set(me.thread, static_cast<float>(me.cluster_rank));
    sync_cluster();
    expect(slot[me.thread] == static_cast<float>(me.cluster_rank ^ 1), "what the peer wrote");
    sync_cluster();
  });
  expect_fault("sync_block does not order a cluster", "race", {2, 32, 2, 64}, [] {
    const Place me = place();
    const Shared<float> slot = shared_memory<float>(0, 1);
    if (me.thread == 0) slot.of_peer(0).set(0, 1);
    sync_block();
    if (me.block == 0) (void)slot[0];
    sync_cluster();
  });
  std::set<std::string> names;
  for (int seed = 0; seed < kSeeds; ++seed) {
    names.insert(fault({4, 32, 2, 256, static_cast<uint64_t>(seed)}, exchange_numbers(results, 9, 1)));
  }
  expect(names.count("race") == 1, "one barrier for two slots, and a message that overtakes another");
  names.clear();
  for (int seed = 0; seed < kSeeds; ++seed) {
    names.insert(fault({2, 32, 2, 256, static_cast<uint64_t>(seed)}, [] {
      const Place me = place();
      if (me.block == 1) shared_memory<float>(0, 32).of_peer(0).set(me.thread, 1);
    }));
  }
  expect(names.count("gone") == 1, "a block that returned while a peer writes to it");
  names.clear();
  for (int seed = 0; seed < 2 * kSeeds; ++seed) {
    names.insert(fault({1, 32, 1, 64, static_cast<uint64_t>(seed)}, [] {
      const Mbarrier barrier(shared_memory<uint64_t>(0, 1));
      if (place().thread == 0) barrier.init(1);
      sync_block();
      if (place().thread == 0) barrier.arrive();
      if (place().thread == 0) barrier.arrive();
      if (place().thread == 1) barrier.wait(0);
    }));
  }
  expect(names == std::set<std::string>{"none", "deadlock"}, "who may miss the phase that it waits for");
  expect_fault("arrivals that nobody makes", "deadlock", {1, 32, 1, 64}, [] {
    const Mbarrier barrier(shared_memory<uint64_t>(0, 1));
    if (place().thread == 0) barrier.init(33);
    sync_block();
    barrier.arrive();
    barrier.wait(0);
  });
  expect_fault("a barrier that nobody made", "unwritten", {1, 32, 1, 64},
               [] { Mbarrier(shared_memory<uint64_t>(0, 1)).arrive(); });
}

// As large as a launch gets: everybody sends everybody a number, some times over.
void test_large_cluster() {
  constexpr int kBlocks = 16, kThreads = 128, kAll = kBlocks * kThreads;
  std::vector<float> results(kAll);
  expect(fault({kBlocks, kThreads, kBlocks, 2 * kAll * 4 + 16},
               [&] {
                 const Place me = place();
                 const int index = me.block * kThreads + me.thread;
                 const Shared<float> numbers = shared_memory<float>(0, 2 * kAll);
                 const Shared<uint64_t> memory = shared_memory<uint64_t>(2 * kAll * 4, 2);
                 if (me.thread < 2) Mbarrier(memory.slice(me.thread, 1)).init(1);
                 sync_cluster();
                 float mine = static_cast<float>(index);
                 for (int step = 0; step < 3; ++step) {
                   const Mbarrier full(memory.slice(step % 2, 1));
                   const Shared<float> slots = numbers.slice(step % 2 * kAll, kAll);
                   if (me.thread == 0) full.expect(kAll * 4), full.arrive();
                   for (int peer = 0; peer < kBlocks; ++peer) {
                     store_async(slots.of_peer(peer), index, mine, full.of_peer(peer));
                   }
                   full.wait(step / 2 % 2);
                   mine = slots[(index + 1) % kAll] + 1;
                   sync_block();
                 }
                 sync_cluster();
                 results[index] = mine;
               }) == "none",
         "a cluster of 16 blocks");
  for (int i = 0; i < kAll; ++i)
    expect(results[i] == static_cast<float>((i + 3) % kAll + 3), "and its numbers");
}

// --- Global memory -----------------------------------------------------------------------------------

void test_flags() {
  unsigned flag = 0;
  float value = 0, found = 0;
  expect_right("a flag that is released and acquired", {2, 32, 1, 0}, [&] {
    const Place me = place();
    if (me.thread != 0) return;
    if (me.block == 0) {
      value = 7;
      store_release(&flag, 1);
    } else {
      while (load_acquire(&flag) == 0) {
      }
      found = value;
      store_release(&flag, 0);
    }
  });
  expect(found == 7, "what was written before the flag");
  // Two threads read a number, and a third one writes it after the second: has the second heard of the first?
  const auto hand_on = [](bool of_both) {
    return [of_both, flags = std::vector<unsigned>(3)]() mutable {
      const int thread = place().thread;
      const Shared<float> memory = shared_memory<float>(0, 1);
      if (thread == 0) std::fill(flags.begin(), flags.end(), 0), memory.set(0, 1);
      sync_block();
      const auto await = [&](int i, unsigned value) {
        while (load_acquire(&flags[i]) != value) {
        }
      };
      if (thread < 2) {
        (void)memory[0];
        (void)add_release(&flags[thread], 1);
        if (thread == 1 && of_both) await(0, 1);
        if (thread == 1) store_release(&flags[2], 1);
      } else if (thread == 2) {
        await(2, 1);
        memory.set(0, 2);
      }
    };
  };
  expect_right("reads of which one was handed on", {1, 32, 1, 64}, hand_on(true));
  expect_fault("a read that was not", "race", {1, 32, 1, 64}, hand_on(false));
  unsigned count = 0;
  expect_right("a count of all threads", {4, 64, 1, 0}, [&] { (void)add_release(&count, 1); });
  expect(count == kSeeds * 256u, "the count");
}

// Global memory is zero before each run, as a launcher leaves it.
void expect_words(const char* what, const char* name, void (*kernel)(std::vector<uint64_t>&)) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    std::vector<uint64_t> memory(8, 0);
    std::string text;
    const std::string found =
        fault({2, 32, 1, 0, static_cast<uint64_t>(seed)}, [&] { kernel(memory); }, &text);
    expect(found == name, std::string(what) + ": expected " + name + ", got " + found + ", " + text);
  }
}

void test_words() {
  // Two blocks hand two words back and forth, in two pieces in turn, as the grid's teams do.
  expect_words("words with marks", "none", [](std::vector<uint64_t>& memory) {
    const Place me = place();
    if (me.thread > 0) return;
    for (uint32_t n = 0; n < 6; ++n) {
      const auto piece = [&](int block) { return memory.data() + 4 * block + n % 2 * 2; };
      for (uint32_t i = 0; i < 2; ++i) store_word(piece(me.block) + i, 10 * n + i, n + 1);
      uint32_t to[2][2];
      await_words(piece(1 - me.block), 2, 1, n + 1, to);
      expect(to[0][0] == 10 * n && to[0][1] == 10 * n + 1, "the words of this mark");
    }
  });
  expect_words("a word that nobody stores", "deadlock",
               [](std::vector<uint64_t>& memory) { (void)emulation::await_word(memory.data(), 1); });
  expect_words("a word that is overwritten before it is read", "overrun", [](std::vector<uint64_t>& memory) {
    const Place me = place();
    if (me.thread > 0) return;
    if (me.block == 0) {
      for (uint32_t mark = 1; mark < 3; ++mark) store_word(&memory[0], 0, mark);
      store_word(&memory[1], 0, 1);
    } else {
      (void)emulation::await_word(&memory[1], 1);
      (void)emulation::await_word(&memory[0], 1);
    }
  });
}

}  // namespace

int main() {
  test_clusters();
  test_large_cluster();
  test_flags();
  test_words();
  test_barriers();
  test_bounds();
  test_meetings();
  test_shuffles();
  test_product<BFloat16Fragments, 16>("m16n8k16 of bfloat16");
  test_product<TF32Fragments, 8>("m16n8k8 of TF32");
  test_copies();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
