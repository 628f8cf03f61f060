// What the native tests have in common: a count of failures, and threads.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

inline int real_threads = 1;  // how many turn up, which may be fewer than promised

inline void run_threads(int shares, void (*work)(void*, int, int), void* argument) {
  const int each = (shares + real_threads - 1) / real_threads;
  std::vector<std::thread> pool;
  for (int first = 0; first < shares; first += each) {
    pool.emplace_back(work, argument, first, std::min(shares, first + each));
  }
  for (auto& thread : pool) thread.join();
}
