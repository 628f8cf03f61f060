// Who walks a recurrence on a GPU: the choice of the team that shares one copy of W_hh, and of its shape.
//
//   block     one block has all of W_hh; any architecture
//   cluster   2 to 16 blocks, each with some units' rows of W_hh; they send each other the state (sm_90 on)
//   grid      as many blocks as it takes, up to all the card has; the state goes through its memory
//   steps     nobody holds W_hh: a library's product and a pointwise kernel for each step; any H, any B, any
//   type
//
// Plain C++: a machine without a GPU can be asked what another one would do.
#pragma once

#include <cstdint>
#include <string>

#include "core/config.h"
#include "core/element_type.h"
#include "cuda/tuning.h"

namespace rnnkernels::cuda {

constexpr int kTileUnits = 16;  // what a product of a warp yields at once: so many units
constexpr int kTeamRows = 8;    // times so many rows; a team walks these at a time
constexpr int kWarpThreads = 32;

enum class Team : int { kBlock, kCluster, kGrid, kSteps };

// Of a warp: how many tiles of units, and how much of W_hh in its threads' registers.
enum class Shape : int { kSmall, kWide, kLong };

// What of a GPU matters here. Read from the device, or one of the known ones.
struct Device {
  const char* name;
  int capability;  // 10 major + minor: 80, 90, 100
  int multiprocessors;
  int64_t shared_bytes;  // that one block may have
  int largest_cluster;   // blocks; 1: it has none
};

// The engine does no arithmetic on sizes of its own: it finds them here.
struct Plan {
  Team team = Team::kSteps;
  Shape shape = Shape::kSmall;
  int teams = 0;         // of a network; the walks (8 rows each) are dealt out to them
  int blocks = 0;        // of a team
  int busy = 0;          // of them: those that have units
  int tiles = 0;         // of a block, each of 16 units
  int columns = 0;       // of a block's tiles, side by side: as many as a warp has
  int parts = 1;         // warps that share the depth of a tile's product
  int warps = 0;         // of a block
  int part_slices = 0;   // of a warp's part of the depth, whole chunks
  int words = 0;         // of a row of the operand: all units, four bytes a word
  int padded_words = 0;  // and up to the end of the last part
  int stride = 0;        // from one of its rows to the next in shared memory
  // In a block's shared memory: barriers, then the operand [2][8][stride], then sums of the parts, then what
  // the registers do not hold of W_hh.
  int operand_at = 0, sums_at = 0, matrix_at = 0;  // bytes
  int shared_bytes = 0;
  int64_t workspace_bytes = 0;  // of a launch
  double cycles = 0;            // the model's, for a step of all rows
};

struct Extent {
  ElementType type = ElementType::kFloat32;
  int64_t networks = 1, batch = 0, hidden = 0;  // G, B, H
};

// The fastest by the model; the steps where nothing else fits.
Plan make_plan(const Extent& extent, const Device& device);

// The plan for a wish: "" (make_plan's), "block", "cluster2" to "cluster16", "grid" or "steps". Returns
// false, with a sentence, for one that is not known or does not fit.
bool make_plan(const Extent& extent, const Device& device, const std::string& wish, Plan* plan,
               std::string* sentence);

// "cluster of 4 blocks, ...", for people.
std::string text(const Plan& plan);

// GPUs to plan for from afar: the i-th, or null past the end.
const Device* known_device(int index);

// --- What engine and plan agree on -------------------------------------------------------------------

// Depth of a product of a warp: 32 bytes a row, so 16 in bfloat16 and 8 in float32.
constexpr int64_t kSliceWords = 8;
constexpr int64_t kFragmentBytes = 512;  // of 16 units of W_hh and a slice's depth

RNNKERNELS_INLINE constexpr int tiles_of_warp(Shape shape) { return shape == Shape::kWide ? 2 : 1; }
// Slices whose operands a warp loads together.
constexpr int kChunk = 4;

// Slices of each of its tiles that a warp has in registers; the rest of its part is in shared memory.
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
static_assert(register_slices(Shape::kSmall) % kChunk == 0 && register_slices(Shape::kWide) % kChunk == 0 &&
              register_slices(Shape::kLong) % kChunk == 0 && tuning::kLeastPartSlices % kChunk == 0);
constexpr int kMostWarps = 8;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace rnnkernels::cuda
