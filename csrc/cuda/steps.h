// The recurrence where no team of blocks holds W_hh: any H, any B, any type. A library multiplies, once for
// all rows of a step, and between two products stands one pointwise kernel, a turn: it updates the states of
// the step whose product is there, and forms the operand of the next one.
//
//   turn 0 of T:  begin the states;  the operand of the first step
//   for i = 1 to T:  product = operand W^T, or operand W backward (the caller's)
//                    turn i:  update, and the next operand; the last one hands the states out
//
// As in recurrence.h: pointers are the device's, nothing waits, and everything can be captured in a graph.
#pragma once

#include <type_traits>

#include "core/problem.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

struct Turn {
  int from = -1, to = -1;  // steps; -1: the walk begins or ends here
  int64_t from_rows = 0, to_rows = 0;
  bool updates = false;  // whether there is a product to be made, from the operand of `from`
};

// Memory of a walk, of Number<S> where sequences are of S.
struct StepMemory {
  void* states = nullptr;         // state_bytes, kept from turn to turn
  const void* product = nullptr;  // [G, from_rows, H]
  void* operand = nullptr;        // [G, to_rows, H]
};

int64_t state_bytes(const ForwardProblem& problem);
int64_t state_bytes(const BackwardProblem& problem);
int64_t state_bytes(const LinearProblem& problem);

// Turn i of a walk, from 0 to layout.steps; `layout` is the host's.
template <class Problem>
Turn turn_at(const Problem& problem, const Layout& layout, int64_t i) {
  constexpr bool kBackward = std::is_same_v<Problem, BackwardProblem>;
  Turn turn;
  const auto set = [&](int64_t s, int* step, int64_t* rows) {
    if (s < 0 || s >= layout.steps) return;
    *step = static_cast<int>(layout.reverse != kBackward ? layout.steps - 1 - s : s);
    *rows = layout.rows_at(*step);
  };
  set(i - 1, &turn.from, &turn.from_rows);
  set(i, &turn.to, &turn.to_rows);
  turn.updates = turn.from >= 0;
  if constexpr (kBackward) turn.updates &= turn.to >= 0 || problem.d_h0.data;  // all that the last one makes
  return turn;
}

Status take_turn(const ForwardProblem& problem, const Turn& turn, const StepMemory& memory, Stream stream);
Status take_turn(const BackwardProblem& problem, const Turn& turn, const StepMemory& memory, Stream stream);
Status take_turn(const LinearProblem& problem, const Turn& turn, const StepMemory& memory, Stream stream);

// What W multiplied in the forward walk, h_{t-1} or f(h_{t-1}), out of the output: for so many rows from
// `first_row` on among those of all steps, into [G, rows, H] of what sequences are stored as.
Status put_operands(const BackwardProblem& problem, int64_t first_row, int64_t rows, void* operands,
                    Stream stream);

}  // namespace rnnkernels::cuda
