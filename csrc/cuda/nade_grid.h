// Constants and the launch grid of the NADE kernels.
#pragma once

#include "cuda/device.h"
#include "cuda/nade.h"
#include "cuda/sizes.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kLanes = device::kWarpLanes;
constexpr int kBlockWarps = 4;

inline device::Grid grid_of(int64_t blocks, int64_t most_blocks, int warps, int64_t shared_bytes) {
  device::Grid grid;
  grid.blocks = least(blocks, most_blocks);
  grid.threads = warps * kLanes;
  grid.shared_bytes = shared_bytes;
  return grid;
}

}  // namespace
}  // namespace rnnkernels::cuda
