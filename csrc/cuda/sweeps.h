// The walks as pointwise work on one unit of one row: the CPU's sweeps (cpu/sweeps.h) for a thread that owns
// scattered units. S is what is stored; everything is computed in Number<S>. Cell is one of any_cell.h.
//
// A sweep provides
//   Incoming                     what comes from memory for a step, fetched ahead of its use
//   State                        what a thread carries from step to step
//   kBackward                    whether it visits the steps in the forward walk's reverse
//   at_step(t)                   where step t's rows lie
//   fetch(step, row, unit)
//   begin(row, unit)             the state before the first step
//   operand(step, row, unit, d, incoming, state)            the operand of the product
//   update(step, row, unit, d, incoming, product, state)    returns a bit to keep, where kKeepsBits
//   end(row, unit, state)        hand the last state out
// `row` counts from the first row of the team on, d is the unit's decay.
#pragma once

#include "core/elements.h"
#include "core/problem.h"
#include "cuda/any_cell.h"
#include "cuda/device.h"
#include "cuda/plan.h"

namespace rnnkernels::cuda {

struct Step {
  int64_t t = 0;
  int64_t first = 0;  // of its rows among those of all steps
  int rows = 0;       // of the team's
};

// Rows of one network that a team walks. Within them an offset has 32 bits (largest_row_stride).
struct Walk {
  int64_t network = 0;
  int64_t first_row = 0;
};
constexpr int64_t kLargestRowStride = int64_t{1} << 27;

template <class ProblemType, class S>
class SweepBase {
 public:
  using Problem = ProblemType;
  using T = Number<S>;

  RNNKERNELS_DEVICE SweepBase(const Problem& problem, Walk walk, int most_rows)
      : problem_(problem), walk_(walk), most_rows_(most_rows) {}

  RNNKERNELS_DEVICE Step at_step(int64_t t) const { return {t, problem_.layout.first_row(t), rows_at(t)}; }
  // How many steps, from step 0 on, have rows of the team.
  RNNKERNELS_DEVICE int64_t steps() const {
    if (!problem_.layout.rows) return problem_.layout.steps;
    int64_t low = 0, high = problem_.layout.steps;  // the first of them without lies in [low, high]
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (problem_.layout.rows[middle] > walk_.first_row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  RNNKERNELS_DEVICE T decay(int unit) const {
    return static_cast<const T*>(
        problem_.decay)[walk_.network * problem_.decay_network_stride + unit * problem_.decay_stride];
  }

 protected:
  const Problem& problem_;
  const Walk walk_;
  const int most_rows_;

  RNNKERNELS_DEVICE int rows_at(int64_t t) const {
    const int64_t rows = problem_.layout.rows_at(t) - walk_.first_row;
    return rows < 0 ? 0 : rows < most_rows_ ? static_cast<int>(rows) : most_rows_;
  }
  template <class E>
  static RNNKERNELS_DEVICE E* offset(void* base, int64_t start, int row, int64_t row_stride, int unit) {
    return static_cast<E*>(base) + start + (row * static_cast<int>(row_stride) + unit);
  }
  RNNKERNELS_DEVICE S* at(const Sequence& sequence, const Step& step, int row, int unit) const {
    const int64_t start =
        (problem_.layout.offsets ? step.first * sequence.row_stride : step.t * sequence.step_stride) +
        walk_.network * sequence.network_stride + walk_.first_row * sequence.row_stride;
    return offset<S>(sequence.data, start, row, sequence.row_stride, unit);
  }
  template <class E>
  RNNKERNELS_DEVICE E* at(const Rows& rows, int row, int unit) const {
    const int64_t start = walk_.network * rows.network_stride + walk_.first_row * rows.row_stride;
    return offset<E>(rows.data, start, row, rows.row_stride, unit);
  }
  RNNKERNELS_DEVICE T h0(int row, int unit) const {
    return problem_.h0.data ? number(*at<const S>(problem_.h0, row, unit)) : T{};
  }
  RNNKERNELS_DEVICE S* activation(const Step& step, int row, int unit) const {
    if (!problem_.saved.activation) return nullptr;
    const int64_t start = walk_.network * problem_.saved.activation_network_stride +
                          (step.first + walk_.first_row) * problem_.hidden;
    return offset<S>(problem_.saved.activation, start, row, problem_.hidden, unit);
  }

 public:
  // The words of a row; a tile of 16 units has half a word.
  RNNKERNELS_DEVICE uint32_t* words(const Step& step, int row) const {
    if (!problem_.saved.active) return nullptr;
    return problem_.saved.active + walk_.network * problem_.saved.active_network_stride +
           (step.first + walk_.first_row + row) * ((problem_.hidden + 31) / 32);
  }
};

template <class S, class Cell>
class ForwardSweep : public SweepBase<ForwardProblem, S> {
  using Base = SweepBase<ForwardProblem, S>;
  using Base::at, Base::problem_;

 public:
  using typename Base::T;
  static constexpr bool kBackward = false;
  static constexpr bool kKeepsBits = Cell::kKeepsBits;
  struct Incoming {
    T p{};
  };
  struct State {
    T h{};
  };
  RNNKERNELS_DEVICE ForwardSweep(const ForwardProblem& problem, Walk walk, int most_rows)
      : Base(problem, walk, most_rows), cell_(problem.nonlinearity) {}

  RNNKERNELS_DEVICE bool wants_last_update() const { return true; }
  RNNKERNELS_DEVICE State begin(int row, int unit) const { return {this->h0(row, unit)}; }
  RNNKERNELS_DEVICE Incoming fetch(const Step& step, int row, int unit) const {
    return {number(*at(problem_.pre, step, row, unit))};
  }
  RNNKERNELS_DEVICE T operand(const Step&, int, int, T, const Incoming&, State& state) const {
    return cell_.operand(state.h);
  }
  RNNKERNELS_DEVICE bool update(const Step& step, int row, int unit, T d, const Incoming& incoming, T product,
                                State& state) const {
    T a;
    state.h = cell_.update(state.h, incoming.p, product, d, a);
    assign(at(problem_.output, step, row, unit), state.h);
    if constexpr (Cell::kKeepsActivation) {
      if (S* kept = this->activation(step, row, unit)) assign(kept, a);
    }
    return Cell::kKeepsBits && cell_.slope(a) != 0;
  }
  RNNKERNELS_DEVICE void end(int row, int unit, const State& state) const {
    assign(Base::template at<S>(problem_.h_n, row, unit), state.h);
  }

 private:
  const Cell cell_;
};

template <class S, class Cell>
class BackwardSweep : public SweepBase<BackwardProblem, S> {
  using Base = SweepBase<BackwardProblem, S>;
  using Base::at, Base::problem_;

 public:
  using typename Base::T;
  static constexpr bool kBackward = true;
  static constexpr bool kKeepsBits = false;
  struct Incoming {
    T g{};
    T kept{};  // of forward: f'(z_t) or f(z_t) (rate), h_{t-1} (current)
  };
  struct State {
    T c{}, d_decay{};
  };
  RNNKERNELS_DEVICE BackwardSweep(const BackwardProblem& problem, Walk walk, int most_rows)
      : Base(problem, walk, most_rows), cell_(problem.nonlinearity) {}

  // The last update only makes d_h0.
  RNNKERNELS_DEVICE bool wants_last_update() const { return problem_.d_h0.data != nullptr; }
  RNNKERNELS_DEVICE State begin(int row, int unit) const {
    const Rows& c = problem_.grad_h_n;
    return {c.data ? number(*Base::template at<const S>(c, row, unit)) : T{}, T{}};
  }
  RNNKERNELS_DEVICE Incoming fetch(const Step& step, int row, int unit) const {
    Incoming incoming;
    if (problem_.grad_output.data) incoming.g = number(*at(problem_.grad_output, step, row, unit));
    if constexpr (Cell::kKeepsBits) {
      incoming.kept = static_cast<T>((this->words(step, row)[unit / 32] >> (unit % 32)) & 1);
    }
    if constexpr (Cell::kKeepsActivation) incoming.kept = number(*this->activation(step, row, unit));
    if constexpr (Cell::kReadsPrevious) incoming.kept = previous(step, row, unit);
    return incoming;
  }
  // delta_t = g_t + c_t replaces the state; u_t goes into the product and out as d_pre. What d_decay takes
  // is not fetched ahead: few ask for it, and it would cost all others registers.
  RNNKERNELS_DEVICE T operand(const Step& step, int row, int unit, T d, const Incoming& incoming,
                              State& state) const {
    state.c += incoming.g;
    T slope = incoming.kept;
    if constexpr (Cell::kKeepsActivation) slope = cell_.slope(slope);
    const T u = cell_.backward_operand(state.c, d, slope);
    assign(at(problem_.d_pre, step, row, unit), u);
    if (problem_.d_decay.data) {
      const int here = device::opaque(unit);
      const T output = number(*at(problem_.output, step, row, here));
      state.d_decay += state.c * (previous(step, row, here) - output);
    }
    return u;
  }
  RNNKERNELS_DEVICE bool update(const Step&, int, int, T d, const Incoming& incoming, T product,
                                State& state) const {
    state.c = cell_.backward_update(state.c, product, d, incoming.kept);
    return false;
  }
  RNNKERNELS_DEVICE void end(int row, int unit, const State& state) const {
    if (problem_.d_h0.data) assign(Base::template at<S>(problem_.d_h0, row, unit), state.c);
    if (problem_.d_decay.data) *Base::template at<T>(problem_.d_decay, row, unit) = state.d_decay;
  }

 private:
  const Cell cell_;

  // h_{t-1}: of the step before where the row has one, else h0.
  RNNKERNELS_DEVICE T previous(const Step& step, int row, int unit) const {
    const Layout& layout = problem_.layout;
    const int64_t before = layout.reverse ? step.t + 1 : step.t - 1;
    if (before >= 0 && before < layout.steps && row < this->rows_at(before)) {
      return number(*at(problem_.output, this->at_step(before), row, unit));
    }
    return this->h0(row, unit);
  }
};

// See LinearProblem.
template <class S>
class LinearSweep : public SweepBase<LinearProblem, S> {
  using Base = SweepBase<LinearProblem, S>;
  using Base::at, Base::problem_;

 public:
  using typename Base::T;
  static constexpr bool kBackward = false;
  static constexpr bool kKeepsBits = false;
  struct Incoming {
    T r{}, alpha{}, beta{};
  };
  struct State {
    T y{};
  };
  using Base::Base;

  RNNKERNELS_DEVICE bool wants_last_update() const { return true; }
  RNNKERNELS_DEVICE State begin(int row, int unit) const { return {this->h0(row, unit)}; }
  RNNKERNELS_DEVICE Incoming fetch(const Step& step, int row, int unit) const {
    const auto or_one = [&](const Sequence& x) { return x.data ? number(*at(x, step, row, unit)) : T{1}; };
    return {number(*at(problem_.drive, step, row, unit)), or_one(problem_.alpha), or_one(problem_.beta)};
  }
  RNNKERNELS_DEVICE T operand(const Step&, int, int, T, const Incoming& incoming, State& state) const {
    return incoming.beta * state.y;
  }
  RNNKERNELS_DEVICE bool update(const Step& step, int row, int unit, T d, const Incoming& incoming, T product,
                                State& state) const {
    state.y = LinearCell::update(state.y, incoming.r, product, d, incoming.alpha);
    assign(at(problem_.output, step, row, unit), state.y);
    return false;
  }
  RNNKERNELS_DEVICE void end(int, int, const State&) const {}
};

}  // namespace rnnkernels::cuda
