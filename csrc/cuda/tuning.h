// Tuning constants of the CUDA kernels and of their launches: sizes that change the speed and the memory of a
// call. Only kLeastPartSlices and kOperandBytes change the order of a sum, and so the rounding of a result.
//
// Only this file distinguishes a GPU from the emulated GPU. The emulated GPU has small values
// (emulation/tuning.h), so that small problems take every path that large problems take on a GPU.
#pragma once

#include <cstdint>

#if defined(RNNKERNELS_EMULATED)
#include "emulation/tuning.h"
#else

namespace rnnkernels::cuda::tuning {

// --- Recurrence on chip (plan.h) ---------------------------------------------------------------------

// Slices of W_hh that a warp keeps in registers per tile, by shape: as many as no kernel spills with. The
// remaining slices are in shared memory.
constexpr int kRegisterSlicesSmall = 8, kRegisterSlicesWide = 12, kRegisterSlicesLong = 28;
// Slices that a warp must have before the depth of a tile is split among several warps.
constexpr int kLeastPartSlices = 8;

// --- Recurrence with one product per step (steps.cu, binding/backward.cpp) ---------------------------

constexpr int64_t kMostStepBlocks = 1 << 16;
// Bytes of operands that are gathered before each product of dW_hh.
constexpr int64_t kOperandBytes = int64_t{256} << 20;

// --- Optimizers (binding/optimizer_gpu.cpp) ----------------------------------------------------------

constexpr int64_t kMostOptimizerBlocks = INT32_MAX;

// --- NADE (nade.cu, binding/nade_gpu.cpp) ------------------------------------------------------------

constexpr int64_t kMostNadeBlocks = 1 << 16;
// Shared memory of a block for hidden units: the amount that every GPU has without opting in.
constexpr int64_t kNadeSharedBytes = 48 * 1024;
// Blocks whose hidden units are in global memory: about as many as a GPU runs at once. More would only use
// more memory.
constexpr int64_t kMostNadeGlobalBlocks = 1024;

}  // namespace rnnkernels::cuda::tuning

#endif
