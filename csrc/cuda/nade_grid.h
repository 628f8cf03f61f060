// What the files of NADE's kernels share.
#pragma once

#include "cuda/device.h"
#include "cuda/nade.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kLanes = device::kWarpLanes;
constexpr int kBlockWarps = 4;

RNNKERNELS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
RNNKERNELS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t number_bytes(const Nade& problem) { return problem.type == ElementType::kFloat64 ? 8 : 4; }

inline device::Grid grid_of(int64_t blocks, int64_t most_blocks, int warps, int64_t shared_bytes) {
  device::Grid grid;
  grid.blocks = least(blocks, most_blocks);
  grid.threads = warps * kLanes;
  grid.shared_bytes = shared_bytes;
  return grid;
}

}  // namespace
}  // namespace rnnkernels::cuda
