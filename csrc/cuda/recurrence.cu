// The kernels of the recurrence, and the choice among them.
#include "cuda/block_engine.h"
#include "cuda/recurrence.cuh"

namespace rnnkernels::cuda {

namespace {

// The shapes of a block: tiles of 16 units a warp, and the largest H. Of W_hh a thread holds kTiles * H / 2
// words, kTiles * H / 4 in bfloat16; a shape that would spill is not in the list.
template <class Stored, class Multiplied, int kTilesOfWarp, int kHidden>
struct Shape {
  using S = Stored;
  using Factors = Multiplied;
  static constexpr int kTiles = kTilesOfWarp;
  static constexpr int kSlices = kHidden / Factors::kDepth;
  static constexpr int kMostThreads = kHidden / kTileUnits / kTiles * device::kWarpLanes;
};

template <class Fn>
cudaError_t with_shape(ElementType type, int64_t hidden, const Fn& fn) {
  if (type == ElementType::kFloat32 && hidden <= 128) return fn(Shape<float, FloatFactors, 1, 128>{});
  if (type == ElementType::kBFloat16 && hidden <= 128) return fn(Shape<BFloat16, BFloat16Factors, 1, 128>{});
  return cudaErrorNotSupported;
}

template <class Shape, class Sweep, class Problem>
__global__ void __launch_bounds__(Shape::kMostThreads, 1)
    walk_in_blocks(const __grid_constant__ Problem problem, int64_t groups) {
  Sweep sweep(problem);
  const int64_t block = blockIdx.x;
  sweep.network = block / groups;
  BlockEngine<Sweep, typename Shape::Factors, Shape::kTiles, Shape::kSlices>(sweep,
                                                                             block % groups * kTeamRows)
      .run();
}

template <class Shape, class Sweep, class Problem>
cudaError_t launch(const Problem& problem, cudaStream_t stream) {
  const int64_t groups = (problem.layout.batch + kTeamRows - 1) / kTeamRows,
                blocks = problem.networks * groups;
  constexpr int64_t kWarpUnits = kTileUnits * Shape::kTiles;
  const int64_t warps = (problem.hidden + kWarpUnits - 1) / kWarpUnits;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  walk_in_blocks<Shape, Sweep>
      <<<static_cast<unsigned>(blocks), static_cast<unsigned>(warps * device::kWarpLanes),
         shared_bytes<typename Shape::Factors>(problem.hidden), stream>>>(problem, groups);
  return cudaGetLastError();
}

template <template <class, class> class Sweep, class Problem>
cudaError_t run(const Problem& problem, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  with_cell(problem.nonlinearity, problem.form, Nonlinearities{}, [&](auto cell) {
    error = with_shape(problem.type, problem.hidden, [&](auto shape) {
      using Shape = decltype(shape);
      return launch<Shape, Sweep<typename Shape::S, decltype(cell)>>(problem, stream);
    });
  });
  return error;
}

}  // namespace

bool fits_block(ElementType type, int64_t hidden) {
  return with_shape(type, hidden, [](auto) { return cudaSuccess; }) == cudaSuccess;
}

cudaError_t forward(const ForwardProblem& problem, cudaStream_t stream) {
  return run<ForwardSweep>(problem, stream);
}

cudaError_t backward(const BackwardProblem& problem, cudaStream_t stream) {
  return run<BackwardSweep>(problem, stream);
}

cudaError_t linear(const LinearProblem& problem, cudaStream_t stream) {
  return with_shape(problem.type, problem.hidden, [&](auto shape) {
    using Shape = decltype(shape);
    return launch<Shape, LinearSweep<typename Shape::S>>(problem, stream);
  });
}

}  // namespace rnnkernels::cuda
