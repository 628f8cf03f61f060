// How a number of like things is cut into parts.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace rnnkernels {
namespace {

RNNKERNELS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Range {
  int64_t first, last;
};

// Part `index` of `parts` nearly equal parts of 0..total-1.
RNNKERNELS_INLINE Range part_of(int64_t total, int64_t index, int64_t parts) {
  return {total * index / parts, total * (index + 1) / parts};
}

}  // namespace
}  // namespace rnnkernels
