// The plan of a launch: which team of blocks holds a copy of W_hh on chip for the whole sequence, and how its
// work is split among blocks, warps, registers and shared memory.
//
//   block     one block holds all of W_hh; any architecture
//   cluster   2 to 16 blocks, each with the rows of W_hh of some units; they send each other the state; sm_90
//             and later
//   grid      as many blocks as needed, at most all that the GPU runs at once; the state passes through
//             global memory
//   steps     no team holds W_hh: one product of a library and one pointwise kernel per step; any H, B, type
//
// Plain C++ without CUDA: a host without a GPU can compute the plan for any GPU.
#pragma once

#include <cstdint>
#include <string>

#include "core/config.h"
#include "core/element_type.h"
#include "cuda/sizes.h"
#include "cuda/tuning.h"

namespace rnnkernels::cuda {

// A product of a warp yields a tile of 16 units times 8 rows. A team runs the time loop of 8 rows at once.
constexpr int kTileUnits = 16;
constexpr int kTeamRows = 8;
constexpr int kWarpThreads = 32;

enum class Team : int { kBlock, kCluster, kGrid, kSteps };

// The shape of a warp's work: the number of tiles, and the amount of W_hh in the registers of its threads.
enum class Shape : int { kSmall, kWide, kLong };

// The properties of a GPU that a plan depends on, read from the device or built in (known_device).
struct Device {
  const char* name;
  int capability;  // 10 major + minor: 80, 90, 100
  int multiprocessors;
  int64_t shared_bytes;  // largest shared memory of a block
  int largest_cluster;   // in blocks; 1 if the GPU has no clusters
};

// All sizes that the engine uses; it computes none of its own.
struct LaunchPlan {
  Team team = Team::kSteps;
  Shape shape = Shape::kSmall;
  int teams = 0;         // per network; the groups of 8 rows are distributed over them
  int blocks = 0;        // per team
  int busy = 0;          // blocks per team that have units
  int tiles = 0;         // per block
  int columns = 0;       // groups of tiles per block; a group is what one warp multiplies
  int parts = 1;         // warps that split the depth of a tile's product
  int warps = 0;         // per block
  int part_slices = 0;   // slices in a warp's part of the depth, a multiple of kChunkSlices
  int words = 0;         // 32-bit words in a row of the operand, for all units
  int padded_words = 0;  // the same, up to the end of the last part
  int stride = 0;        // words from one row of the operand to the next in shared memory
  // Byte offsets in a block's shared memory, which holds the mbarriers, the operand [2][8][stride], the sums
  // of the parts, and the slices of W_hh that are not in registers.
  int operand_at = 0, sums_at = 0, matrix_at = 0;
  int shared_bytes = 0;
  int64_t workspace_bytes = 0;  // per launch
  double cycles = 0;            // modelled cost of a step of all rows
};

struct Extent {
  ElementType type = ElementType::kFloat32;
  int64_t networks = 1, batch = 0, hidden = 0;  // G, B, H
};

// The plan with the lowest modelled cost; steps if no other team fits.
LaunchPlan make_plan(const Extent& extent, const Device& device);

// The plan for a requested team: "block", "cluster2" to "cluster16", "grid", "steps", or "" for the plan with
// the lowest cost. Returns false, with a message, if the team is unknown or does not fit.
bool make_plan(const Extent& extent, const Device& device, const std::string& requested, LaunchPlan* plan,
               std::string* message);

// A readable description, such as "cluster of 4: 8 warps, ...".
std::string text(const LaunchPlan& plan);

// Built-in device properties, usable without a GPU: those of device `index`, or null past the last one.
const Device* known_device(int index);

// --- Constants that the engine and the plan share ----------------------------------------------------

// A slice is the depth of one product of a warp: 8 words per row, which are 16 units in bfloat16 and 8 in
// float32.
constexpr int64_t kSliceWords = 8;
constexpr int64_t kFragmentBytes = 512;  // of W_hh: 16 units times the depth of a slice

RNNKERNELS_INLINE constexpr int tiles_of_warp(Shape shape) { return shape == Shape::kWide ? 2 : 1; }
// Slices whose operands a warp loads at once.
constexpr int kChunkSlices = 4;

// Slices per tile that a warp keeps in registers; the rest of its part is in shared memory.
RNNKERNELS_INLINE constexpr int register_slices(Shape shape) {
  switch (shape) {
    case Shape::kSmall:
      return tuning::kRegisterSlicesSmall;
    case Shape::kWide:
      return tuning::kRegisterSlicesWide;
    case Shape::kLong:
      return tuning::kRegisterSlicesLong;
  }
  return 0;
}
static_assert(register_slices(Shape::kSmall) % kChunkSlices == 0 &&
              register_slices(Shape::kWide) % kChunkSlices == 0 &&
              register_slices(Shape::kLong) % kChunkSlices == 0 &&
              tuning::kLeastPartSlices % kChunkSlices == 0);
constexpr int kMostWarps = 8;

}  // namespace rnnkernels::cuda
