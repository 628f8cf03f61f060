// The walks as pointwise work on one unit of one row: the CPU's sweeps (cpu/passes.h) for a thread that owns
// scattered units. S is what is stored; everything is computed in Number<S>. Cell is one of any_cell.h.
//
// A sweep provides
//   Incoming                     what comes from memory for a step, fetched ahead of its use
//   State                        what a thread carries from step to step
//   kFetched                     how much that takes, about
//   kBackward                    whether it visits the steps in the forward walk's reverse
//   at_step(t)                   where step t's rows lie
//   fetch(step, row, unit, on)
//   begin(row, unit)             the state before the first step
//   operand(step, row, unit, on, d, incoming, state)           the operand of the product
//   update(step, row, unit, on, d, incoming, product, state)   returns a bit to keep, where kKeepsBits
//   end(row, unit, state)        hand the last state out
// `row` counts from the first row of the team on, d is the unit's decay. Where it is not `on`, nothing is
// read, written or changed, the operand and the bit are 0: a choice instead of a branch around it all, so
// that what the numbers of a thread have in common is worked out once.
#pragma once

#include "core/elements.h"
#include "core/problem.h"
#include "cuda/any_cell.h"
#include "cuda/device.h"
#include "cuda/plan.h"

namespace rnnkernels::cuda {

struct Step {
  int t = 0;
  int64_t position = 0;  // of its rows in a sequence (Layout)
  int64_t first = 0;     // of its rows among those of all steps
  int rows = 0;          // of the team's
};

// Rows of one network that a team walks. Within them an offset has 32 bits (kLargestRowStride).
struct Walk {
  int64_t network = 0;
  int64_t first_row = 0;
};
constexpr int64_t kLargestRowStride = int64_t{1} << 27;

// A sequence, or what is kept of one, from the walk's first row on. Null where there is none.
template <class E>
struct WalkRows {
  E* data;
  int64_t step_stride;
  int row_stride;

  RNNKERNELS_DEVICE WalkRows(void* start, int64_t network_stride, int64_t step, int64_t row, const Walk& walk)
      : data(start ? static_cast<E*>(start) + walk.network * network_stride + walk.first_row * row : nullptr),
        step_stride(step),
        row_stride(static_cast<int>(row)) {}
  RNNKERNELS_DEVICE WalkRows(const Sequence& sequence, const Walk& walk)
      : WalkRows(sequence.data, sequence.network_stride, sequence.step_stride, sequence.row_stride, walk) {}
  RNNKERNELS_DEVICE WalkRows(const Rows& rows, const Walk& walk)
      : WalkRows(rows.data, rows.network_stride, 0, rows.row_stride, walk) {}

  RNNKERNELS_DEVICE E* at(int64_t position, int row, int unit) const {
    return data + position * step_stride + (row * row_stride + unit);
  }
  RNNKERNELS_DEVICE E* at(int row, int unit) const { return data + (row * row_stride + unit); }
};

template <class ProblemType, class StoredType>
class SweepBase {
 public:
  using Problem = ProblemType;
  using S = StoredType;
  using T = Number<S>;

  RNNKERNELS_DEVICE SweepBase(const Problem& problem, Walk walk, int most_rows)
      : problem_(problem), walk_(walk), most_rows_(most_rows), h0_(problem.h0, walk) {}

  RNNKERNELS_DEVICE Step at_step(int t) const {
    const Layout& layout = problem_.layout;
    return {t, layout.position(t), layout.first_row(t), rows_at(t)};
  }
  // How many steps, from step 0 on, have rows of the team.
  RNNKERNELS_DEVICE int steps() const {
    const auto all = static_cast<int>(problem_.layout.steps);
    if (!problem_.layout.rows) return all;
    int low = 0, high = all;  // the first of them without lies in [low, high]
    while (low < high) {
      const int middle = low + (high - low) / 2;
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
  const WalkRows<S> h0_;

  RNNKERNELS_DEVICE int rows_at(int64_t t) const {
    const int64_t rows = problem_.layout.rows_at(t) - walk_.first_row;
    return rows < 0 ? 0 : rows < most_rows_ ? static_cast<int>(rows) : most_rows_;
  }
  RNNKERNELS_DEVICE T h0(int row, int unit) const { return h0_.data ? number(*h0_.at(row, unit)) : T{}; }

  // What is kept for backward.
  RNNKERNELS_DEVICE WalkRows<S> activation() const {
    const Saved& saved = problem_.saved;
    return {saved.activation, saved.activation_network_stride, problem_.hidden, problem_.hidden, walk_};
  }
  RNNKERNELS_DEVICE WalkRows<uint32_t> words() const {
    const int64_t words = (problem_.hidden + 31) / 32;
    return {problem_.saved.active, problem_.saved.active_network_stride, words, words, walk_};
  }

  // As it is stored, so that who fetches ahead does not wait for it.
  static RNNKERNELS_DEVICE S load(const S* from, bool on) {
    S x{};
    if (on) x = *from;
    return x;
  }
  static RNNKERNELS_DEVICE void store(S* to, T x, bool on) {
    if (!on) return;
    if constexpr (sizeof(S) == 2) {
      to->bits = device::rounded<S>(x);
    } else {
      *to = x;
    }
  }
};

template <class S, class Cell>
class ForwardSweep : public SweepBase<ForwardProblem, S> {
  using Base = SweepBase<ForwardProblem, S>;

 public:
  using typename Base::T;
  static constexpr int kFetched = 1;
  static constexpr bool kBackward = false;
  static constexpr bool kKeepsBits = Cell::kKeepsBits;
  struct Incoming {
    S p{};
  };
  struct State {
    T h{};
  };
  RNNKERNELS_DEVICE ForwardSweep(const ForwardProblem& problem, Walk walk, int most_rows)
      : Base(problem, walk, most_rows),
        cell_(problem.nonlinearity),
        pre_(problem.pre, walk),
        output_(problem.output, walk),
        activation_(Base::activation()),
        words_(Base::words()) {}

  RNNKERNELS_DEVICE bool wants_last_update() const { return true; }
  RNNKERNELS_DEVICE State begin(int row, int unit) const { return {this->h0(row, unit)}; }
  RNNKERNELS_DEVICE Incoming fetch(const Step& step, int row, int unit, bool on) const {
    return {this->load(pre_.at(step.position, row, unit), on)};
  }
  RNNKERNELS_DEVICE T operand(const Step&, int, int, bool on, T, const Incoming&, State& state) const {
    return on ? cell_.operand(state.h) : T{};
  }
  RNNKERNELS_DEVICE bool update(const Step& step, int row, int unit, bool on, T d, const Incoming& incoming,
                                T product, State& state) const {
    T a;
    const T h = cell_.update(state.h, T{number(incoming.p)}, product, d, a);
    state.h = on ? h : state.h;
    this->store(output_.at(step.position, row, unit), h, on);
    if constexpr (Cell::kKeepsActivation) {
      this->store(activation_.at(step.first, row, unit), a, on && activation_.data);
    }
    return Cell::kKeepsBits && on && cell_.slope(a) != 0;
  }
  RNNKERNELS_DEVICE void end(int row, int unit, const State& state) const {
    this->store(WalkRows<S>(this->problem_.h_n, this->walk_).at(row, unit), state.h, true);
  }
  // Whether bits are kept, and where those of a row go, a word for 32 units.
  RNNKERNELS_DEVICE bool keeps() const { return words_.data != nullptr; }
  RNNKERNELS_DEVICE uint32_t* words(const Step& step, int row) const { return words_.at(step.first, row, 0); }

 private:
  const Cell cell_;
  const WalkRows<S> pre_, output_, activation_;
  const WalkRows<uint32_t> words_;
};

template <class S, class Cell>
class BackwardSweep : public SweepBase<BackwardProblem, S> {
  using Base = SweepBase<BackwardProblem, S>;

 public:
  using typename Base::T;
  static constexpr int kFetched = Cell::kKeepsBits ? 2 : 3;
  static constexpr bool kBackward = true;
  static constexpr bool kKeepsBits = false;
  struct Incoming {
    S g{};
    S kept{};           // of forward: f(z_t) (rate), h_{t-1} (current)
    uint32_t bits = 0;  // f'(z_t), among others' (rate, f with a binary slope)
  };
  struct State {
    T c{}, d_decay{};
  };
  RNNKERNELS_DEVICE BackwardSweep(const BackwardProblem& problem, Walk walk, int most_rows)
      : Base(problem, walk, most_rows),
        cell_(problem.nonlinearity),
        grad_output_(problem.grad_output, walk),
        output_(problem.output, walk),
        d_pre_(problem.d_pre, walk),
        activation_(Base::activation()),
        words_(Base::words()) {}

  // The last update only makes d_h0.
  RNNKERNELS_DEVICE bool wants_last_update() const { return this->problem_.d_h0.data != nullptr; }
  RNNKERNELS_DEVICE State begin(int row, int unit) const {
    const WalkRows<S> c(this->problem_.grad_h_n, this->walk_);
    return {c.data ? number(*c.at(row, unit)) : T{}, T{}};
  }
  RNNKERNELS_DEVICE Incoming fetch(const Step& step, int row, int unit, bool on) const {
    Incoming incoming;
    incoming.g = this->load(grad_output_.at(step.position, row, unit), on && grad_output_.data);
    if constexpr (Cell::kKeepsBits) {
      if (on) incoming.bits = *words_.at(step.first, row, unit / 32);
    }
    if constexpr (Cell::kKeepsActivation) {
      incoming.kept = this->load(activation_.at(step.first, row, unit), on);
    }
    if constexpr (Cell::kReadsPrevious) incoming.kept = previous(step, row, unit, on);
    return incoming;
  }
  // delta_t = g_t + c_t replaces the state; u_t goes into the product and out as d_pre. What d_decay takes
  // is not fetched ahead: few ask for it, and it would cost all others registers.
  RNNKERNELS_DEVICE T operand(const Step& step, int row, int unit, bool on, T d, const Incoming& incoming,
                              State& state) const {
    state.c += on ? T{number(incoming.g)} : T{};
    T slope{};
    if constexpr (Cell::kKeepsBits) slope = static_cast<T>((incoming.bits >> (unit % 32)) & 1);
    if constexpr (Cell::kKeepsActivation) slope = cell_.slope(T{number(incoming.kept)});
    const T u = on ? cell_.backward_operand(state.c, d, slope) : T{};
    this->store(d_pre_.at(step.position, row, unit), u, on);
    if (this->problem_.d_decay.data) {
      const int here = device::opaque(unit);
      const T output = number(this->load(output_.at(step.position, row, here), on));
      const T change = number(previous(step, row, here, on)) - output;
      state.d_decay += on ? state.c * change : T{};
    }
    return u;
  }
  RNNKERNELS_DEVICE bool update(const Step&, int, int, bool on, T d, const Incoming& incoming, T product,
                                State& state) const {
    const T c = cell_.backward_update(state.c, product, d, T{number(incoming.kept)});
    state.c = on ? c : state.c;
    return false;
  }
  RNNKERNELS_DEVICE void end(int row, int unit, const State& state) const {
    const WalkRows<S> d_h0(this->problem_.d_h0, this->walk_);
    this->store(d_h0.at(row, unit), state.c, d_h0.data);
    const WalkRows<T> d_decay(this->problem_.d_decay, this->walk_);
    if (d_decay.data) *d_decay.at(row, unit) = state.d_decay;
  }

 private:
  const Cell cell_;
  const WalkRows<S> grad_output_, output_, d_pre_, activation_;
  const WalkRows<uint32_t> words_;

 public:
  // h_{t-1}: of the step before where the row has one, else h0.
  RNNKERNELS_DEVICE S previous(const Step& step, int row, int unit, bool on) const {
    const Layout& layout = this->problem_.layout;
    const int before = layout.reverse ? step.t + 1 : step.t - 1;
    const bool exists = before >= 0 && before < layout.steps;
    const bool goes_on = exists && row < this->rows_at(before);
    const S* const state = goes_on ? output_.at(layout.position(before), row, unit) : this->h0_.at(row, unit);
    return this->load(state, on && (goes_on || this->h0_.data));
  }
};

// See LinearProblem.
template <class S>
class LinearSweep : public SweepBase<LinearProblem, S> {
  using Base = SweepBase<LinearProblem, S>;

 public:
  using typename Base::T;
  static constexpr int kFetched = 3;
  static constexpr bool kBackward = false;
  static constexpr bool kKeepsBits = false;
  struct Incoming {
    S r{}, alpha{}, beta{};
  };
  struct State {
    T y{};
  };
  RNNKERNELS_DEVICE LinearSweep(const LinearProblem& problem, Walk walk, int most_rows)
      : Base(problem, walk, most_rows),
        drive_(problem.drive, walk),
        alpha_(problem.alpha, walk),
        beta_(problem.beta, walk),
        output_(problem.output, walk) {}

  RNNKERNELS_DEVICE bool wants_last_update() const { return true; }
  RNNKERNELS_DEVICE State begin(int row, int unit) const { return {this->h0(row, unit)}; }
  RNNKERNELS_DEVICE Incoming fetch(const Step& step, int row, int unit, bool on) const {
    const auto of = [&](const WalkRows<S>& x) {
      return this->load(x.at(step.position, row, unit), on && x.data);
    };
    return {of(drive_), of(alpha_), of(beta_)};
  }
  RNNKERNELS_DEVICE T operand(const Step&, int, int, bool on, T, const Incoming& incoming,
                              State& state) const {
    const T beta = beta_.data ? T{number(incoming.beta)} : T{1};
    return on ? beta * state.y : T{};
  }
  RNNKERNELS_DEVICE bool update(const Step& step, int row, int unit, bool on, T d, const Incoming& incoming,
                                T product, State& state) const {
    const T alpha = alpha_.data ? T{number(incoming.alpha)} : T{1};
    const T y = LinearCell::update(state.y, T{number(incoming.r)}, product, d, alpha);
    state.y = on ? y : state.y;
    this->store(output_.at(step.position, row, unit), y, on);
    return false;
  }
  RNNKERNELS_DEVICE void end(int, int, const State&) const {}

 private:
  const WalkRows<S> drive_, alpha_, beta_, output_;
};

}  // namespace rnnkernels::cuda
