// The choice of a plan: a table of candidate teams and shapes, the check that one fits, and its modelled
// cost.
//
//   cycles = rounds (exchange + max(products, reads of shared memory) + update)
//
// The constants are published latencies and rates of Hopper (docs/cuda.md), accurate to about a factor of
// two. They only need to rank the teams.
#include "cuda/plan.h"

#include <algorithm>
#include <string>

namespace rnnkernels::cuda {

namespace {

struct Candidate {
  const char* name;
  Team team;
  Shape shape;
  int blocks;       // per team; 0: as many as needed
  double exchange;  // cycles from the last state of a step to the first product of the next
};

constexpr Candidate kCandidates[] = {
    {"block", Team::kBlock, Shape::kSmall, 1, 60},      {"block", Team::kBlock, Shape::kWide, 1, 60},
    {"cluster2", Team::kCluster, Shape::kLong, 2, 350}, {"cluster4", Team::kCluster, Shape::kLong, 4, 370},
    {"cluster8", Team::kCluster, Shape::kLong, 8, 400}, {"cluster16", Team::kCluster, Shape::kLong, 16, 450},
    {"grid", Team::kGrid, Shape::kLong, 0, 1400},
};
constexpr double kStepsExchange = 10000;  // cycles of two launches
constexpr double kSharedBytesPerCycle = 128;
constexpr double kProductCycles = 16;  // one product of a warp, on its quarter of a multiprocessor
constexpr double kUpdateCycles = 150;
constexpr int kClusterGroup = 16;  // multiprocessors of the group that a cluster must lie within
constexpr int kClusterSince = 90;  // capability
// More units than any team holds, few enough that a team's sizes are ints.
constexpr int64_t kMostTeamUnits = int64_t{1} << 24;

constexpr Device kKnown[] = {
    {"A100", 80, 108, 166912, 1},  {"RTX 4090", 89, 128, 101376, 1}, {"H100", 90, 132, 232448, 16},
    {"H200", 90, 132, 232448, 16}, {"B200", 100, 148, 232448, 16},
};

// The number of teams that the device runs at once.
int teams_at_once(const Candidate& candidate, const LaunchPlan& plan, const Device& device) {
  switch (candidate.team) {
    case Team::kBlock:
      return device.multiprocessors * (candidate.shape == Shape::kSmall ? 2 : 1);
    case Team::kCluster:
      return device.multiprocessors / kClusterGroup * (kClusterGroup / plan.blocks);
    default:
      return device.multiprocessors / plan.blocks;
  }
}

// The modelled cycles of a step, for a plan whose sizes are known, times `rounds` of the teams. `left` is the
// number of slices per tile that a warp reads from shared memory.
double modelled_cycles(const LaunchPlan& plan, const Candidate& candidate, ElementType type, int64_t left,
                       double rounds) {
  const int per_warp = tiles_of_warp(candidate.shape);
  const double products = double(plan.part_slices) * per_warp * (type == ElementType::kBFloat16 ? 1 : 3);
  const double warps_of_quarter = double(ceil_div(plan.warps, 4));
  const double read = (double(left) * plan.warps * per_warp * kFragmentBytes +
                       4.0 * kTeamRows * plan.part_slices * kSliceWords * plan.warps) /
                      kSharedBytesPerCycle;
  return rounds *
         (candidate.exchange + std::max(products * warps_of_quarter * kProductCycles, read) + kUpdateCycles);
}

// Fills in the plan for teams of `blocks` blocks. Returns false if it does not fit.
bool fill(const Extent& extent, const Device& device, const Candidate& candidate, int blocks,
          LaunchPlan* plan) {
  const int64_t groups = ceil_div(extent.batch, kTeamRows), scans = extent.networks * groups;
  const int all_tiles = static_cast<int>(ceil_div(extent.hidden, kTileUnits));
  const int units_of_word = extent.type == ElementType::kBFloat16 ? 2 : 1,
            per_warp = tiles_of_warp(candidate.shape);
  plan->team = candidate.team;
  plan->shape = candidate.shape;
  plan->blocks = blocks;
  plan->tiles = static_cast<int>(ceil_div(all_tiles, blocks));
  plan->busy = static_cast<int>(ceil_div(all_tiles, plan->tiles));
  const int columns = plan->columns = static_cast<int>(ceil_div(plan->tiles, per_warp));
  if (columns > kMostWarps) return false;
  plan->words = all_tiles * kTileUnits / units_of_word;
  const int chunks = static_cast<int>(ceil_div(plan->words, kChunkSlices * kSliceWords));
  const int most_parts =
      std::max(1, std::min(kMostWarps / columns, chunks / (tuning::kLeastPartSlices / kChunkSlices)));
  plan->part_slices = static_cast<int>(ceil_div(chunks, most_parts)) * kChunkSlices;
  plan->parts = static_cast<int>(ceil_div(chunks * kChunkSlices, plan->part_slices));
  plan->warps = columns * plan->parts;
  plan->padded_words = plan->parts * plan->part_slices * static_cast<int>(kSliceWords);
  plan->stride = plan->padded_words + 4;  // rows on different banks

  const int held = register_slices(candidate.shape);
  const int64_t left = std::max(0, plan->part_slices - held);
  constexpr int kBarrierBytes = 128;
  plan->operand_at = kBarrierBytes;
  const int64_t sums = plan->operand_at + 2 * kTeamRows * static_cast<int64_t>(plan->stride) * 4;
  const int64_t matrix =
      sums + (plan->parts > 1 ? int64_t{plan->warps - columns} * per_warp * kFragmentBytes : 0);
  const int64_t bytes = matrix + left * plan->warps * per_warp * kFragmentBytes;
  if (bytes > device.shared_bytes) return false;
  if (candidate.shape == Shape::kSmall && 2 * bytes > device.shared_bytes) return false;
  plan->sums_at = static_cast<int>(sums);
  plan->matrix_at = static_cast<int>(matrix);
  plan->shared_bytes = static_cast<int>(bytes);

  const int64_t at_once = teams_at_once(candidate, *plan, device);
  if (at_once == 0 || scans > INT32_MAX / blocks) return false;
  const bool grid = candidate.team == Team::kGrid;  // one network at a time
  plan->teams = static_cast<int>(grid ? std::min(groups, at_once) : groups);
  if (grid) {
    plan->workspace_bytes = int64_t{8} * plan->teams * 2 * kTeamRows * plan->words;
  }
  const double rounds =
      grid ? double(extent.networks) * double(ceil_div(groups, at_once)) : double(ceil_div(scans, at_once));
  plan->cycles = modelled_cycles(*plan, candidate, extent.type, left, rounds);
  return true;
}

// The best plan for one row of the table. Returns false if none fits.
bool best_of(const Extent& extent, const Device& device, const Candidate& candidate, LaunchPlan* plan) {
  if (extent.hidden > kMostTeamUnits) return false;
  if (candidate.team == Team::kCluster) {
    if (device.capability < kClusterSince || candidate.blocks > device.largest_cluster) return false;
  }
  if (candidate.blocks > 0) return fill(extent, device, candidate, candidate.blocks, plan);
  bool found = false;
  const int all_tiles = static_cast<int>(ceil_div(extent.hidden, kTileUnits));
  for (int tiles = 1; tiles <= kMostWarps; ++tiles) {
    const int blocks = static_cast<int>(ceil_div(all_tiles, tiles));
    LaunchPlan one;
    if (blocks > device.multiprocessors || !fill(extent, device, candidate, blocks, &one)) continue;
    if (!found || one.cycles < plan->cycles) *plan = one;
    found = true;
  }
  return found;
}

LaunchPlan plan_of_steps(const Extent& extent, const Device& device) {
  LaunchPlan plan;
  const double products = double(extent.networks) * extent.batch * extent.hidden * extent.hidden;
  constexpr double kProductsPerCycle = 256;  // per multiprocessor, for a small product of a library
  plan.cycles = kStepsExchange + products / kProductsPerCycle / device.multiprocessors;
  return plan;
}

bool has_team_kernels(ElementType type) { return type != ElementType::kFloat64; }

}  // namespace

LaunchPlan make_plan(const Extent& extent, const Device& device) {
  LaunchPlan best = plan_of_steps(extent, device);
  if (!has_team_kernels(extent.type) || extent.hidden == 0) return best;
  for (const Candidate& candidate : kCandidates) {
    LaunchPlan plan;
    if (best_of(extent, device, candidate, &plan) && plan.cycles < best.cycles) best = plan;
  }
  return best;
}

bool make_plan(const Extent& extent, const Device& device, const std::string& requested, LaunchPlan* plan,
               std::string* message) {
  if (requested.empty()) {
    *plan = make_plan(extent, device);
    return true;
  }
  if (requested == "steps") {
    *plan = plan_of_steps(extent, device);
    return true;
  }
  bool known = false, found = false;
  for (const Candidate& candidate : kCandidates) {
    if (requested != candidate.name) continue;
    known = true;
    LaunchPlan one;
    if (!has_team_kernels(extent.type) || !best_of(extent, device, candidate, &one)) continue;
    if (!found || one.cycles < plan->cycles) *plan = one;
    found = true;
  }
  if (found) return true;
  *message = known
                 ? requested + " does not fit H " + std::to_string(extent.hidden) + ", B " +
                       std::to_string(extent.batch) + " with this dtype on this device"
                 : "must be block, cluster2, cluster4, cluster8, cluster16, grid or steps, got " + requested;
  return false;
}

std::string text(const LaunchPlan& plan) {
  if (plan.team == Team::kSteps) return "steps: one product and one pointwise kernel per step";
  const char* name = plan.team == Team::kBlock ? "block" : plan.team == Team::kCluster ? "cluster" : "grid";
  const auto count = [](int n, const char* noun) {
    return std::to_string(n) + " " + noun + (n == 1 ? "" : "s");
  };
  return std::string(name) + " of " + std::to_string(plan.blocks) + ": " + count(plan.warps, "warp") + ", " +
         count(plan.tiles, "tile") + " of 16 units, " + count(plan.parts, "part") + ", " +
         std::to_string((plan.shared_bytes + 1023) / 1024) + " KiB shared";
}

const Device* known_device(int index) {
  constexpr int kCount = static_cast<int>(sizeof(kKnown) / sizeof(kKnown[0]));
  return index >= 0 && index < kCount ? &kKnown[index] : nullptr;
}

}  // namespace rnnkernels::cuda
