// What the native tests share: threads of their own, memory for a kernel, and a count of what failed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// --- Threads -----------------------------------------------------------------------------------------

int real_threads = 1;  // how many turn up, which may be fewer than promised

[[maybe_unused]] void run_threads(int shares, void (*work)(void*, int, int), void* argument) {
  const int each = (shares + real_threads - 1) / real_threads;
  std::vector<std::thread> pool;
  for (int first = 0; first < shares; first += each) {
    pool.emplace_back(work, argument, first, std::min(shares, first + each));
  }
  for (auto& thread : pool) thread.join();
}

// --- Memory ------------------------------------------------------------------------------------------

template <class Run>
void with_memory(int64_t bytes, const Run& run) {
  std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64),
                                                     &std::free);
  run(memory.get());
}

}  // namespace
