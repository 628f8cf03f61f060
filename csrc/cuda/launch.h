// The kernel around the engine, and its launch for what is stored as S: instantiated once for each S
// (recurrence_*.cu), so that they compile side by side.
#pragma once

#include <type_traits>

#include "cuda/engine.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

constexpr Status kNotSupported = 801;  // cudaErrorNotSupported

// One block is all that a multiprocessor holds, but for the small shape, if it need not fetch much.
constexpr int blocks_at_once(Shape shape, int fetched) {
  return shape == Shape::kSmall && fetched < 3 ? 2 : 1;
}

template <class Sweep, class Factors, class Team, Shape kShape>
RNNKERNELS_KERNEL(kMostWarps* kWarpThreads, blocks_at_once(kShape, Sweep::kFetched))
walk(RNNKERNELS_ARGUMENT typename Sweep::Problem problem, RNNKERNELS_ARGUMENT Plan plan, bool exact,
     int64_t first_network, void* workspace) {
  Engine<Sweep, Factors, Team, tiles_of_warp(kShape), register_slices(kShape)>(problem, plan, exact,
                                                                               workspace)
      .run(first_network);
}

// Blocks and clusters of all networks at once; a grid has the device to itself.

template <class Sweep, class Factors, class Team, Shape kShape>
Status launch(const typename Sweep::Problem& problem, const Plan& plan, bool exact, void* workspace,
              Stream stream) {
  if (problem.layout.steps > INT32_MAX) return kNotSupported;
  const int64_t at_once = Team::kTogether ? 1 : problem.networks;
  device::Grid grid;
  grid.blocks = at_once * plan.teams * plan.blocks;
  grid.threads = plan.warps * kWarpThreads;
  grid.cluster = plan.team == cuda::Team::kCluster ? plan.blocks : 1;
  grid.together = Team::kTogether;
  grid.shared_bytes = plan.shared_bytes;
  Status status = 0;
  for (int64_t network = 0; grid.blocks > 0 && network < problem.networks && status == 0;
       network += at_once) {
    if (plan.workspace_bytes > 0) status = device::fill_zero(workspace, plan.workspace_bytes, stream);
    if (status != 0) break;
    status = device::launch(grid, stream, &walk<Sweep, Factors, Team, kShape>, problem, plan, exact, network,
                            workspace);
  }
  return status;
}

template <class Sweep, class Factors>
Status launch(const typename Sweep::Problem& problem, const Plan& plan, bool exact, void* workspace,
              Stream stream) {
  if (plan.team == Team::kBlock && plan.shape == Shape::kSmall) {
    return launch<Sweep, Factors, BlockTeam, Shape::kSmall>(problem, plan, exact, workspace, stream);
  }
  if (plan.team == Team::kBlock && plan.shape == Shape::kWide) {
    return launch<Sweep, Factors, BlockTeam, Shape::kWide>(problem, plan, exact, workspace, stream);
  }
  if (plan.team == Team::kCluster) {
    return launch<Sweep, Factors, ClusterTeam, Shape::kLong>(problem, plan, exact, workspace, stream);
  }
  if (plan.team == Team::kGrid) {
    return launch<Sweep, Factors, GridTeam, Shape::kLong>(problem, plan, exact, workspace, stream);
  }
  return kNotSupported;
}

// By type, and not by S: those of half precision are every file's own.
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

template <ElementType kType>
Status forward_of(const ForwardProblem& problem, const Plan& plan, bool exact, void* workspace,
                  Stream stream) {
  Status status = kNotSupported;
  with_any_cell(problem.nonlinearity, problem.form, [&](auto* cell) {
    using Sweep = ForwardSweep<typename Stored<kType>::S, std::remove_pointer_t<decltype(cell)>>;
    status = launch<Sweep, typename Stored<kType>::Factors>(problem, plan, exact, workspace, stream);
  });
  return status;
}

template <ElementType kType>
Status backward_of(const BackwardProblem& problem, const Plan& plan, bool exact, void* workspace,
                   Stream stream) {
  Status status = kNotSupported;
  with_any_cell(problem.nonlinearity, problem.form, [&](auto* cell) {
    using Sweep = BackwardSweep<typename Stored<kType>::S, std::remove_pointer_t<decltype(cell)>>;
    status = launch<Sweep, typename Stored<kType>::Factors>(problem, plan, exact, workspace, stream);
  });
  return status;
}

template <ElementType kType>
Status linear_of(const LinearProblem& problem, const Plan& plan, bool exact, void* workspace, Stream stream) {
  return launch<LinearSweep<typename Stored<kType>::S>, typename Stored<kType>::Factors>(problem, plan, exact,
                                                                                         workspace, stream);
}

}  // namespace rnnkernels::cuda
