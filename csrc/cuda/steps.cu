// The pointwise kernels of steps.h. A warp processes 32 units of one row at once, which are a word of bits.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/lanes.h"
#include "cuda/passes.h"
#include "cuda/steps.h"
#include "cuda/tuning.h"

namespace rnnkernels::cuda {

namespace {

constexpr int kBlockWarps = 4;

// The unit of a row that a lane processes. Every row is a scan of its own, so that all offsets have 64 bits.
struct RowUnit {
  int64_t network, row;
  int unit;
  bool on;  // whether the unit exists
};

// Calls fn(RowUnit) in all lanes of a warp, for the warp's slice of [networks, rows, units].
template <class Fn>
RNNKERNELS_DEVICE void for_units(int64_t networks, int64_t rows, int64_t hidden, const Fn& fn) {
  const device::Place me = device::place();
  const int64_t words = (hidden + device::kWarpLanes - 1) / device::kWarpLanes;
  const int lane = me.thread % device::kWarpLanes;
  for (int64_t i = int64_t{me.block} * kBlockWarps + me.thread / device::kWarpLanes;
       i < networks * rows * words; i += int64_t{me.blocks} * kBlockWarps) {
    const int64_t unit = i % words * device::kWarpLanes + lane, row = i / words;
    fn(RowUnit{row / rows, row % rows, static_cast<int>(unit), unit < hidden});
  }
}

device::Grid grid_of(int64_t networks, int64_t rows, int64_t hidden) {
  device::Grid grid;
  grid.blocks = std::min(tuning::kMostStepBlocks,
                         ceil_div(networks * rows * ceil_div(hidden, device::kWarpLanes), kBlockWarps));
  grid.threads = kBlockWarps * device::kWarpLanes;
  return grid;
}

// Stores the bits of a warp's 32 units as one word. All lanes must call it.
template <class Pass>
RNNKERNELS_DEVICE void keep(const Pass& pass, const Step& step, int unit, bool bit) {
  const uint32_t word = word_of_lanes(bit);
  if (pass.keeps() && unit % device::kWarpLanes == 0) pass.words(step, 0)[unit / device::kWarpLanes] = word;
}

template <class Pass>
RNNKERNELS_KERNEL(kBlockWarps* device::kWarpLanes, 1)
pointwise_kernel(RNNKERNELS_ARGUMENT typename Pass::Problem problem,
                 RNNKERNELS_ARGUMENT PointwiseStep pointwise, int64_t rows,
                 RNNKERNELS_ARGUMENT StepMemory memory) {
  using T = typename Pass::T;
  const int64_t hidden = problem.hidden;
  for_units(problem.networks, rows, hidden, [&](const RowUnit& at) {
    const Pass pass(problem, Scan{at.network, at.row}, 1);
    const bool ends = at.row < pointwise.from_rows, begins = at.row < pointwise.to_rows;
    auto* kept = static_cast<typename Pass::State*>(memory.states) +
                 (at.network * problem.layout.batch + at.row) * hidden + at.unit;
    typename Pass::State state{};
    T d{};
    if (at.on) {
      state = pointwise.from < 0 ? pass.begin(0, at.unit) : *kept;
      d = pass.decay(at.unit);
    }
    if (pointwise.updates && ends) {
      const Step step = pass.step_at(pointwise.from);
      const auto* product = static_cast<const T*>(memory.product) +
                            (at.network * pointwise.from_rows + at.row) * hidden + at.unit;
      const bool bit = pass.update(step, 0, at.unit, at.on, d, pass.fetch(step, 0, at.unit, at.on),
                                   at.on ? *product : T{}, state);
      if constexpr (Pass::kKeepsBits) keep(pass, step, at.unit, bit);
    }
    if (begins) {
      const Step step = pass.step_at(pointwise.to);
      const T x = pass.operand(step, 0, at.unit, at.on, d, pass.fetch(step, 0, at.unit, at.on), state);
      if (at.on) {
        static_cast<T*>(memory.operand)[(at.network * pointwise.to_rows + at.row) * hidden + at.unit] = x;
      }
    }
    if (!at.on) return;
    if (pointwise.to < 0) {
      pass.end(0, at.unit, state);
    } else {
      *kept = state;
    }
  });
}

template <class Pass>
Status launch_pointwise(const typename Pass::Problem& problem, const PointwiseStep& pointwise,
                        const StepMemory& memory, Stream stream) {
  // The first and the last pointwise step process all rows.
  const bool all = pointwise.from < 0 || pointwise.to < 0;
  const int64_t rows = all ? problem.layout.batch : std::max(pointwise.from_rows, pointwise.to_rows);
  const device::Grid grid = grid_of(problem.networks, rows, problem.hidden);
  if (grid.blocks == 0) return 0;
  return device::launch(grid, stream, &pointwise_kernel<Pass>, problem, pointwise, rows, memory);
}

// The step of row `row` among the rows of all steps.
RNNKERNELS_DEVICE int step_of(const Layout& layout, int64_t row) {
  if (!layout.offsets) return static_cast<int>(row / layout.batch);
  int low = 0, high = static_cast<int>(layout.steps);  // the step is in [low, high)
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (layout.offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

template <class S, class Cell>
RNNKERNELS_KERNEL(kBlockWarps* device::kWarpLanes, 1)
operands_kernel(RNNKERNELS_ARGUMENT BackwardProblem problem, int64_t first_row, int64_t rows, S* operands) {
  const Cell cell(problem.nonlinearity);
  for_units(problem.networks, rows, problem.hidden, [&](const RowUnit& at) {
    if (!at.on) return;
    const int64_t row = first_row + at.row;
    const int t = step_of(problem.layout, row);
    const BackwardPass<S, Cell> pass(problem, Scan{at.network, row - problem.layout.first_row(t)}, 1);
    assign(operands + (at.network * rows + at.row) * problem.hidden + at.unit,
           cell.operand(ComputeType<S>{widen(pass.previous(pass.step_at(t), 0, at.unit, true))}));
  });
}

template <class Problem>
Status run(const Problem& problem, const PointwiseStep& pointwise, const StepMemory& memory, Stream stream) {
  Status status = 0;
  with_element(problem.type, [&](auto element) {
    with_pass<decltype(element)>(problem, [&](auto* pass) {
      status = launch_pointwise<std::remove_pointer_t<decltype(pass)>>(problem, pointwise, memory, stream);
    });
  });
  return status;
}

template <class S>
Status put_stored(const BackwardProblem& problem, int64_t first_row, int64_t rows, S* operands,
                  Stream stream) {
  const device::Grid grid = grid_of(problem.networks, rows, problem.hidden);
  Status status = 0;
  if (grid.blocks == 0) return status;
  with_any_cell(problem.nonlinearity, problem.form, [&](auto* cell) {
    status = device::launch(grid, stream, &operands_kernel<S, std::remove_pointer_t<decltype(cell)>>, problem,
                            first_row, rows, operands);
  });
  return status;
}

int64_t bytes_of(const Recurrence& problem, int64_t values) {
  return problem.networks * problem.layout.batch * problem.hidden * values * computed_bytes(problem.type);
}

}  // namespace

int64_t state_bytes(const ForwardProblem& problem) { return bytes_of(problem, 1); }
int64_t state_bytes(const BackwardProblem& problem) { return bytes_of(problem, 2); }
int64_t state_bytes(const LinearProblem& problem) { return bytes_of(problem, 1); }
static_assert(sizeof(ForwardPass<BFloat16, AnyCurrent>::State) == 4);
static_assert(sizeof(BackwardPass<BFloat16, AnyCurrent>::State) == 8);
static_assert(sizeof(LinearPass<double>::State) == 8);

Status run_pointwise_step(const ForwardProblem& problem, const PointwiseStep& pointwise,
                          const StepMemory& memory, Stream stream) {
  return run(problem, pointwise, memory, stream);
}
Status run_pointwise_step(const BackwardProblem& problem, const PointwiseStep& pointwise,
                          const StepMemory& memory, Stream stream) {
  return run(problem, pointwise, memory, stream);
}
Status run_pointwise_step(const LinearProblem& problem, const PointwiseStep& pointwise,
                          const StepMemory& memory, Stream stream) {
  return run(problem, pointwise, memory, stream);
}

Status put_operands(const BackwardProblem& problem, int64_t first_row, int64_t rows, void* operands,
                    Stream stream) {
  Status status = 0;
  with_element(problem.type, [&](auto element) {
    status = put_stored(problem, first_row, rows, static_cast<decltype(element)*>(operands), stream);
  });
  return status;
}

}  // namespace rnnkernels::cuda
