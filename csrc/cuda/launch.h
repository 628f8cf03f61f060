// The kernel around the engine, and its launch for one stored type: instantiated once per type, in
// recurrence_*.cu, so that the types compile in parallel.
#pragma once

#include <type_traits>

#include "cuda/engine.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

// Blocks per multiprocessor: one, except for the small shape with few fetched inputs.
constexpr int blocks_at_once(Shape shape, int fetched) {
  return shape == Shape::kSmall && fetched < 3 ? 2 : 1;
}

template <class Pass, class Factors, class TeamType, Shape kShape>
RNNKERNELS_KERNEL(kMostWarps* kWarpThreads, blocks_at_once(kShape, Pass::kFetched))
recurrence_kernel(RNNKERNELS_ARGUMENT typename Pass::Problem problem, RNNKERNELS_ARGUMENT LaunchPlan plan,
                  bool exact, int64_t first_network, void* workspace) {
  Engine<Pass, Factors, TeamType, tiles_of_warp(kShape), register_slices(kShape)>(problem, plan, exact,
                                                                                  workspace)
      .run(first_network);
}

// Runs all networks in one launch for blocks and clusters. A grid uses the whole device, so each network has
// a launch of its own.
template <class Pass, class Factors, class TeamType, Shape kShape>
Status launch(const typename Pass::Problem& problem, const LaunchPlan& plan, bool exact, void* workspace,
              Stream stream) {
  if (problem.layout.steps > INT32_MAX) return kNotSupported;
  const int64_t at_once = TeamType::kTogether ? 1 : problem.networks;
  device::Grid grid;
  grid.blocks = at_once * plan.teams * plan.blocks;
  grid.threads = plan.warps * kWarpThreads;
  grid.cluster = plan.team == Team::kCluster ? plan.blocks : 1;
  grid.together = TeamType::kTogether;
  grid.shared_bytes = plan.shared_bytes;
  Status status = 0;
  for (int64_t network = 0; grid.blocks > 0 && network < problem.networks && status == 0;
       network += at_once) {
    if (plan.workspace_bytes > 0) status = device::fill_zero(workspace, plan.workspace_bytes, stream);
    if (status != 0) break;
    status = device::launch(grid, stream, &recurrence_kernel<Pass, Factors, TeamType, kShape>, problem, plan,
                            exact, network, workspace);
  }
  return status;
}

template <class Pass, class Factors>
Status launch(const typename Pass::Problem& problem, const LaunchPlan& plan, bool exact, void* workspace,
              Stream stream) {
  if (plan.team == Team::kBlock && plan.shape == Shape::kSmall) {
    return launch<Pass, Factors, BlockTeam, Shape::kSmall>(problem, plan, exact, workspace, stream);
  }
  if (plan.team == Team::kBlock && plan.shape == Shape::kWide) {
    return launch<Pass, Factors, BlockTeam, Shape::kWide>(problem, plan, exact, workspace, stream);
  }
  if (plan.team == Team::kCluster) {
    return launch<Pass, Factors, ClusterTeam, Shape::kLong>(problem, plan, exact, workspace, stream);
  }
  if (plan.team == Team::kGrid) {
    return launch<Pass, Factors, GridTeam, Shape::kLong>(problem, plan, exact, workspace, stream);
  }
  return kNotSupported;
}

// Dispatch by ElementType and not by S, because BFloat16 and Float16 are distinct types in every source file
// (core/elements.h).
template <ElementType>
struct Stored;
template <>
struct Stored<ElementType::kFloat32> {
  using S = float;
  using Factors = FloatFactors;
};
template <>
struct Stored<ElementType::kBFloat16> {
  using S = BFloat16;
  using Factors = BFloat16Factors;
};
template <>
struct Stored<ElementType::kFloat16> {
  using S = Float16;
  using Factors = FloatFactors;
};

template <ElementType kType, class Problem>
Status run_stored(const Problem& problem, const LaunchPlan& plan, bool exact, void* workspace,
                  Stream stream) {
  Status status = kNotSupported;
  with_pass<typename Stored<kType>::S>(problem, [&](auto* pass) {
    using Pass = std::remove_pointer_t<decltype(pass)>;
    status = launch<Pass, typename Stored<kType>::Factors>(problem, plan, exact, workspace, stream);
  });
  return status;
}

}  // namespace rnnkernels::cuda
