// What the native tests share: which cases are run, threads of their own, memory for a kernel, and a count of
// what failed.
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

// --- Cases -------------------------------------------------------------------------------------------

// What a test's arguments ask for: every n-th of its cases, 1 if not given, and each of them in so many
// orders of an emulated GPU's threads, 4 if not given.
class Cases {
 public:
  Cases(int argc, char** argv) : orders(argument(argc, argv, 2, 4)), each_(argument(argc, argv, 1, 1)) {}

  const int orders;

  // Whether the next case is to be run.
  bool takes_next() {
    const bool taken = ++number_ % each_ == 0;
    taken_ += taken;
    return taken;
  }
  int number() const { return number_; }  // of that case, counted from 1

  // Says how many there were. Returns the status of main.
  int finish() const {
    std::printf("%d cases, %d failures\n", taken_, failures);
    return failures != 0 || taken_ == 0;
  }

 private:
  static int argument(int argc, char** argv, int index, int otherwise) {
    return argc > index ? std::max(1, std::atoi(argv[index])) : otherwise;
  }

  int each_, number_ = 0, taken_ = 0;
};

// --- Threads -----------------------------------------------------------------------------------------

int real_threads = 1;  // how many turn up, which may be fewer than promised

[[maybe_unused]] void run_threads(int slices, void (*work)(void*, int, int), void* argument) {
  const int each = (slices + real_threads - 1) / real_threads;
  std::vector<std::thread> pool;
  for (int first = 0; first < slices; first += each) {
    pool.emplace_back(work, argument, first, std::min(slices, first + each));
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
