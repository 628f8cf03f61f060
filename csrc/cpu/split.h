// How work is divided into nearly equal parts, and how the threads of a call run their slices of it.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "cpu/threads.h"

namespace rnnkernels {
namespace {

RNNKERNELS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The items first, first + 1, ..., last - 1.
struct Range {
  int64_t first, last;
};

// Part `index` of `parts` nearly equal parts of the items 0 .. total-1.
RNNKERNELS_INLINE Range part_of(int64_t total, int64_t index, int64_t parts) {
  return {total * index / parts, total * (index + 1) / parts};
}

// Parts first .. last-1 of the same, which are neighbours, as one range.
RNNKERNELS_INLINE Range parts_of(int64_t total, int64_t first, int64_t last, int64_t parts) {
  return {part_of(total, first, parts).first, part_of(total, last - 1, parts).last};
}

// Calls (object->*method)(first, last) so that each of the slices 0 .. slices-1 is in one of the ranges
// first .. last-1, in the threads of the call, and returns when all calls have returned. A single slice runs
// in the calling thread.
template <class Object>
void run_slices(const cpu::Threads& threads, int64_t slices, Object* object,
                void (Object::*method)(int64_t first, int64_t last)) {
  if (slices == 1) return (object->*method)(0, 1);
  struct Call {
    Object* object;
    void (Object::*method)(int64_t first, int64_t last);
  } call{object, method};
  threads.run(
      threads, static_cast<int>(slices),
      [](void* argument, int first, int last) {
        const Call& call = *static_cast<const Call*>(argument);
        (call.object->*call.method)(first, last);
      },
      &call);
}

}  // namespace
}  // namespace rnnkernels
