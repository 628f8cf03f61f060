// The parts that all native tests use: the selection of cases, threads, memory for a kernel, and the count of
// failures.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/threads.h"

namespace {

int failures = 0;

void expect(bool holds, const std::string& description) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", description.c_str());
}

// --- Cases -------------------------------------------------------------------------------------------

// The arguments of a test, [n [orders]]: it runs every n-th of its cases (default 1), and on the emulated GPU
// each of them in `orders` orders of its threads (default 4).
class Cases {
 public:
  Cases(int argc, char** argv) : orders(argument(argc, argv, 2, 4)), each_(argument(argc, argv, 1, 1)) {}

  const int orders;

  // Whether to run the next case.
  bool takes_next() {
    const bool taken = ++index_ % each_ == 0;
    taken_ += taken;
    return taken;
  }
  // The index of that case, counted from 1.
  int index() const { return index_; }

  // Prints the numbers of cases and failures. Returns the exit status of main.
  int finish() const {
    std::printf("%d cases, %d failures\n", taken_, failures);
    return failures != 0 || taken_ == 0;
  }

 private:
  static int argument(int argc, char** argv, int index, int otherwise) {
    return argc > index ? std::max(1, std::atoi(argv[index])) : otherwise;
  }

  int each_, index_ = 0, taken_ = 0;
};

// --- Threads -----------------------------------------------------------------------------------------

int real_threads = 1;  // how many threads run, which may be fewer than promised

[[maybe_unused]] void run_threads(const rnnkernels::cpu::Threads&, int slices, void (*work)(void*, int, int),
                                  void* argument) {
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
