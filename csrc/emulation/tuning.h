// The emulated GPU's values of cuda/tuning.h, which explains each of them. They are small, so that small
// problems take every path that large problems take on a GPU: fragments in registers and in shared memory,
// several parts, several rounds per block. Blocks are few because an emulated block holds all of its threads
// for the whole launch.
#pragma once

#include <cstdint>

namespace rnnkernels::cuda::tuning {

constexpr int kRegisterSlicesSmall = 4, kRegisterSlicesWide = 4, kRegisterSlicesLong = 4;
constexpr int kLeastPartSlices = 4;

constexpr int64_t kMostStepBlocks = 3;
constexpr int64_t kOperandBytes = 1000;

constexpr int64_t kMostOptimizerBlocks = 3;

constexpr int64_t kMostNadeBlocks = 3;
constexpr int64_t kNadeSharedBytes = 1024;
constexpr int64_t kMostNadeGlobalBlocks = 5;

}  // namespace rnnkernels::cuda::tuning
