// A warp takes 32 units of one row at a time, which are a word of bits.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/lanes.h"
#include "cuda/steps.h"
#include "cuda/sweeps.h"
#include "cuda/tuning.h"

namespace rnnkernels::cuda {

namespace {

constexpr int kBlockWarps = 4;

// A unit of a row, as one lane sees it. A row is a walk of its own, so that all offsets have 64 bits.
struct Place {
  int64_t network, row;
  int unit;
  bool on;  // whether there is such a unit
};

// Calls fn(place) in all lanes of a warp, for every warp's share of [networks, rows, units].
template <class Fn>
RNNKERNELS_DEVICE void for_places(int64_t networks, int64_t rows, int64_t hidden, const Fn& fn) {
  const device::Place me = device::place();
  const int64_t words = (hidden + device::kWarpLanes - 1) / device::kWarpLanes;
  const int lane = me.thread % device::kWarpLanes;
  for (int64_t i = int64_t{me.block} * kBlockWarps + me.thread / device::kWarpLanes;
       i < networks * rows * words; i += int64_t{me.blocks} * kBlockWarps) {
    const int64_t unit = i % words * device::kWarpLanes + lane, row = i / words;
    fn(Place{row / rows, row % rows, static_cast<int>(unit), unit < hidden});
  }
}

device::Grid grid_of(int64_t networks, int64_t rows, int64_t hidden) {
  device::Grid grid;
  grid.blocks = std::min(tuning::kMostStepBlocks,
                         ceil_div(networks * rows * ceil_div(hidden, device::kWarpLanes), kBlockWarps));
  grid.threads = kBlockWarps * device::kWarpLanes;
  return grid;
}

// The bits of a warp's 32 units are a word; all of its lanes meet here.
template <class Sweep>
RNNKERNELS_DEVICE void keep(const Sweep& sweep, const Step& step, int unit, bool bit) {
  const uint32_t word = word_of_lanes(bit);
  if (sweep.keeps() && unit % device::kWarpLanes == 0) sweep.words(step, 0)[unit / device::kWarpLanes] = word;
}

template <class Sweep>
RNNKERNELS_KERNEL(kBlockWarps* device::kWarpLanes, 1)
turn_kernel(RNNKERNELS_ARGUMENT typename Sweep::Problem problem, RNNKERNELS_ARGUMENT Turn turn, int64_t rows,
            RNNKERNELS_ARGUMENT StepMemory memory) {
  using T = typename Sweep::T;
  const int64_t hidden = problem.hidden;
  for_places(problem.networks, rows, hidden, [&](const Place& at) {
    const Sweep sweep(problem, Walk{at.network, at.row}, 1);
    const bool ends = at.row < turn.from_rows, begins = at.row < turn.to_rows;
    auto* kept = static_cast<typename Sweep::State*>(memory.states) +
                 (at.network * problem.layout.batch + at.row) * hidden + at.unit;
    typename Sweep::State state{};
    T d{};
    if (at.on) {
      state = turn.from < 0 ? sweep.begin(0, at.unit) : *kept;
      d = sweep.decay(at.unit);
    }
    if (turn.updates && ends) {
      const Step step = sweep.at_step(turn.from);
      const auto* product =
          static_cast<const T*>(memory.product) + (at.network * turn.from_rows + at.row) * hidden + at.unit;
      const bool bit = sweep.update(step, 0, at.unit, at.on, d, sweep.fetch(step, 0, at.unit, at.on),
                                    at.on ? *product : T{}, state);
      if constexpr (Sweep::kKeepsBits) keep(sweep, step, at.unit, bit);
    }
    if (begins) {
      const Step step = sweep.at_step(turn.to);
      const T x = sweep.operand(step, 0, at.unit, at.on, d, sweep.fetch(step, 0, at.unit, at.on), state);
      if (at.on) {
        static_cast<T*>(memory.operand)[(at.network * turn.to_rows + at.row) * hidden + at.unit] = x;
      }
    }
    if (!at.on) return;
    if (turn.to < 0) {
      sweep.end(0, at.unit, state);
    } else {
      *kept = state;
    }
  });
}

template <class Sweep>
Status launch_turn(const typename Sweep::Problem& problem, const Turn& turn, const StepMemory& memory,
                   Stream stream) {
  // The first and the last one see all rows.
  const bool all = turn.from < 0 || turn.to < 0;
  const int64_t rows = all ? problem.layout.batch : std::max(turn.from_rows, turn.to_rows);
  const device::Grid grid = grid_of(problem.networks, rows, problem.hidden);
  if (grid.blocks == 0) return 0;
  return device::launch(grid, stream, &turn_kernel<Sweep>, problem, turn, rows, memory);
}

// The step that row `row` of all steps belongs to.
RNNKERNELS_DEVICE int step_of(const Layout& layout, int64_t row) {
  if (!layout.offsets) return static_cast<int>(row / layout.batch);
  int low = 0, high = static_cast<int>(layout.steps);  // it is in [low, high)
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
  for_places(problem.networks, rows, problem.hidden, [&](const Place& at) {
    if (!at.on) return;
    const int64_t row = first_row + at.row;
    const int t = step_of(problem.layout, row);
    const BackwardSweep<S, Cell> sweep(problem, Walk{at.network, row - problem.layout.first_row(t)}, 1);
    assign(operands + (at.network * rows + at.row) * problem.hidden + at.unit,
           cell.operand(Number<S>{number(sweep.previous(sweep.at_step(t), 0, at.unit, true))}));
  });
}

template <template <class, class> class SweepOf, class S, class Problem>
Status take_stored(const Problem& problem, const Turn& turn, const StepMemory& memory, Stream stream) {
  Status status = 0;
  with_any_cell(problem.nonlinearity, problem.form, [&](auto* cell) {
    using Sweep = SweepOf<S, std::remove_pointer_t<decltype(cell)>>;
    status = launch_turn<Sweep>(problem, turn, memory, stream);
  });
  return status;
}

template <template <class, class> class SweepOf, class Problem>
Status take(const Problem& problem, const Turn& turn, const StepMemory& memory, Stream stream) {
  Status status = 0;
  with_element(problem.type, [&](auto element) {
    status = take_stored<SweepOf, decltype(element)>(problem, turn, memory, stream);
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

int64_t bytes_of(const Recurrence& problem, int64_t numbers) {
  return problem.networks * problem.layout.batch * problem.hidden * numbers *
         (problem.type == ElementType::kFloat64 ? 8 : 4);
}

}  // namespace

int64_t state_bytes(const ForwardProblem& problem) { return bytes_of(problem, 1); }
int64_t state_bytes(const BackwardProblem& problem) { return bytes_of(problem, 2); }
int64_t state_bytes(const LinearProblem& problem) { return bytes_of(problem, 1); }
static_assert(sizeof(ForwardSweep<BFloat16, AnyCurrent>::State) == 4);
static_assert(sizeof(BackwardSweep<BFloat16, AnyCurrent>::State) == 8);
static_assert(sizeof(LinearSweep<double>::State) == 8);

Status take_turn(const ForwardProblem& problem, const Turn& turn, const StepMemory& memory, Stream stream) {
  return take<ForwardSweep>(problem, turn, memory, stream);
}
Status take_turn(const BackwardProblem& problem, const Turn& turn, const StepMemory& memory, Stream stream) {
  return take<BackwardSweep>(problem, turn, memory, stream);
}
Status take_turn(const LinearProblem& problem, const Turn& turn, const StepMemory& memory, Stream stream) {
  Status status = 0;
  with_element(problem.type, [&](auto element) {
    status = launch_turn<LinearSweep<decltype(element)>>(problem, turn, memory, stream);
  });
  return status;
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
