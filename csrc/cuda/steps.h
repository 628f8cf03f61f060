// The recurrence with one product per step, where no team of blocks holds W_hh: any H, any B, any type. A
// library computes the product W x for all rows of a step. A pointwise kernel between two products updates
// the states from one product and forms the operand of the next:
//
//   pointwise step 0:             begin the states;  the operand of the first time step
//   for i = 1 ... T:  the caller: product = operand W^T (operand W in the backward pass)
//                     pointwise step i:  update the states, form the next operand; the last one stores the
//                                        final states
//
// As in recurrence.h, all pointers are in device memory, and the launchers do not synchronize and allocate
// nothing.
#pragma once

#include <type_traits>

#include "core/problem.h"
#include "cuda/status.h"

namespace rnnkernels::cuda {

// Finishes time step `from` and begins time step `to`.
struct PointwiseStep {
  int from = -1, to = -1;  // -1: the time loop begins or ends here
  int64_t from_rows = 0, to_rows = 0;
  bool updates = false;  // whether the product of the operand of `from` is needed
};

// The memory between the kernels. Its elements are ComputeType<S>, with sequences stored as S.
struct StepMemory {
  void* states = nullptr;         // of state_bytes, kept from each pointwise step to the next
  const void* product = nullptr;  // [G, from_rows, H]
  void* operand = nullptr;        // [G, to_rows, H]
};

int64_t state_bytes(const ForwardProblem& problem);
int64_t state_bytes(const BackwardProblem& problem);
int64_t state_bytes(const LinearProblem& problem);

// The i-th pointwise step, i = 0 ... layout.steps. The arrays of `layout` are in host memory.
template <class Problem>
PointwiseStep pointwise_step_at(const Problem& problem, const Layout& layout, int64_t i) {
  constexpr bool kBackward = std::is_same_v<Problem, BackwardProblem>;
  PointwiseStep pointwise;
  const auto set = [&](int64_t s, int* step, int64_t* rows) {
    if (s < 0 || s >= layout.steps) return;
    *step = static_cast<int>(layout.reverse != kBackward ? layout.steps - 1 - s : s);
    *rows = layout.rows_at(*step);
  };
  set(i - 1, &pointwise.from, &pointwise.from_rows);
  set(i, &pointwise.to, &pointwise.to_rows);
  pointwise.updates = pointwise.from >= 0;
  // The last update of the backward pass only computes d_h0.
  if constexpr (kBackward) pointwise.updates &= pointwise.to >= 0 || problem.d_h0.data;
  return pointwise;
}

Status run_pointwise_step(const ForwardProblem& problem, const PointwiseStep& pointwise,
                          const StepMemory& memory, Stream stream);
Status run_pointwise_step(const BackwardProblem& problem, const PointwiseStep& pointwise,
                          const StepMemory& memory, Stream stream);
Status run_pointwise_step(const LinearProblem& problem, const PointwiseStep& pointwise,
                          const StepMemory& memory, Stream stream);

// The right factor of W in the forward pass, h_{t-1} or f(h_{t-1}), computed from the output: for `rows` rows
// from `first_row` among the rows of all steps. Writes [G, rows, H] in the stored type.
Status put_operands(const BackwardProblem& problem, int64_t first_row, int64_t rows, void* operands,
                    Stream stream);

}  // namespace rnnkernels::cuda
