// Tests of the emulated GPU between blocks: clusters and global memory, their results and their faults.
#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "faults.h"

namespace {

// --- Clusters ----------------------------------------------------------------------------------------

// Two blocks send each other a number for some steps, through two slots. One mbarrier per slot is correct.
// With one mbarrier for both slots, a number that overtakes the previous one would be mistaken for it.
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
  expect_right("stores into a peer, counted by its mbarriers", launch, exchange_numbers(results, 5, 2));
  for (int i = 0; i < 4; ++i) {
    expect(results[i] == static_cast<float>((i + 5) % 2 + 5), "the number that was exchanged");
  }
  expect_fault("a read without a wait for the asynchronous store", "race", {2, 32, 2, 64}, [] {
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
  expect_right("a write into a peer's memory, sync_cluster, and a read by the peer", launch, [] {
    const Place me = place();
    const Shared<float> slot = shared_memory<float>(0, 32);
    slot.of_peer(me.cluster_rank ^ 1).set(me.thread, static_cast<float>(me.cluster_rank));
    sync_cluster();
    expect(slot[me.thread] == static_cast<float>(me.cluster_rank ^ 1), "the value that the peer wrote");
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
  expect(names.count("race") == 1,
         "one mbarrier for two slots, and a number that overtakes the previous one");
  names.clear();
  for (int seed = 0; seed < kSeeds; ++seed) {
    names.insert(fault({2, 32, 2, 256, static_cast<uint64_t>(seed)}, [] {
      const Place me = place();
      if (me.block == 1) shared_memory<float>(0, 32).of_peer(0).set(me.thread, 1);
    }));
  }
  expect(names.count("gone") == 1, "a block that returned while a peer writes to it");
}

void test_mbarriers() {
  std::set<std::string> names;
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
  expect(names == std::set<std::string>{"none", "deadlock"}, "a thread that can miss the phase it waits for");
  expect_fault("a missing arrival", "deadlock", {1, 32, 1, 64}, [] {
    const Mbarrier barrier(shared_memory<uint64_t>(0, 1));
    if (place().thread == 0) barrier.init(33);
    sync_block();
    barrier.arrive();
    barrier.wait(0);
  });
  expect_fault("an mbarrier without init", "unwritten", {1, 32, 1, 64},
               [] { Mbarrier(shared_memory<uint64_t>(0, 1)).arrive(); });
}

// The largest cluster: every thread sends a number to every block, several times.
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
    expect(results[i] == static_cast<float>((i + 3) % kAll + 3), "the numbers of a cluster of 16");
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
  expect(found == 7, "the value that was written before the flag");
  // Two threads read a value, and a third thread writes it after the second. The first read is ordered before
  // the write only if the second thread has acquired the first one's flag.
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
  expect_right("a read that is ordered through another thread", {1, 32, 1, 64}, hand_on(true));
  expect_fault("a read that is not ordered before the write", "race", {1, 32, 1, 64}, hand_on(false));
  unsigned count = 0;
  expect_right("an atomic count of all threads", {4, 64, 1, 0}, [&] { (void)add_release(&count, 1); });
  expect(count == kSeeds * 256u, "the count");
}

// Global memory is zero before each run, as a launcher prepares it.
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
  // Two blocks exchange two words repeatedly, alternating between two buffers, as the blocks of a grid do.
  expect_words("words with marks", "none", [](std::vector<uint64_t>& memory) {
    const Place me = place();
    if (me.thread > 0) return;
    for (uint32_t n = 0; n < 6; ++n) {
      const auto buffer = [&](int block) { return memory.data() + 4 * block + n % 2 * 2; };
      for (uint32_t i = 0; i < 2; ++i) store_word(buffer(me.block) + i, 10 * n + i, n + 1);
      uint32_t to[2][2];
      await_words(buffer(1 - me.block), 2, 1, n + 1, to);
      expect(to[0][0] == 10 * n && to[0][1] == 10 * n + 1, "the words of this mark");
    }
  });
  expect_words("a word that is never stored", "deadlock",
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
  test_mbarriers();
  test_large_cluster();
  test_flags();
  test_words();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
