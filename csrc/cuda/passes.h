// The passes as pointwise work on one unit of one row; core/problem.h has their equations, and cpu/passes.h
// is the CPU's version, for blocks of units. S is the stored type; everything is computed in ComputeType<S>. Cell
// is one of any_cell.h.
//
//   ForwardPass    operand x = cell.operand(h);   update h = cell.update(h, p, W x, d)
//   BackwardPass   operand u = cell.backward_operand(g + c, d, slope);   update c from W^T u
//   LinearPass     operand beta y;   update y = d y + alpha (W beta y) + r
//
// A pass provides
//   Incoming                     the inputs of a step, fetched before they are used
//   State                        the values that a thread carries from step to step
//   kFetched                     the approximate size of Incoming, in stored elements
//   kBackward                    whether the time loop has the opposite order of the forward pass, and W is
//                                transposed
//   step_at(t)                   the position of the rows of step t
//   begin(row, unit)             the state before the first step
//   fetch(step, row, unit, on)                                 the Incoming
//   operand(step, row, unit, on, d, incoming, state)           the operand of the product
//   update(step, row, unit, on, d, incoming, product, state)   returns the bit to store, if kKeepsBits
//   end(row, unit, state)        stores the last state
// `row` counts from the first row of the team, and d is the unit's decay. Without `on` (no such row or unit)
// nothing is read, written or changed, and the operand and the bit are 0. `on` selects values and does not
// branch around the whole function, so that a thread computes the expressions common to its states once.
#pragma once

#include "core/elements.h"
#include "core/problem.h"
#include "cuda/any_cell.h"
#include "cuda/device.h"
#include "cuda/plan.h"

namespace rnnkernels::cuda {

struct Step {
  int t = 0;
  int64_t position = 0;  // position of its rows in a sequence (Layout)
  int64_t first = 0;     // index of its first row among the rows of all steps
  int rows = 0;          // number of the team's rows that belong to it
};

// One run of the time loop: the rows of one network that a team computes, from first_row. Within these rows,
// offsets fit into 32 bits (kLargestRowStride).
struct Scan {
  int64_t network = 0;
  int64_t first_row = 0;
};
constexpr int64_t kLargestRowStride = int64_t{1} << 27;

// A sequence, or saved values of one, from the scan's first row. `data` is null if there is none.
template <class E>
struct ScanRows {
  E* data;
  int64_t step_stride;
  int row_stride;

  RNNKERNELS_DEVICE ScanRows(void* start, int64_t network_stride, int64_t step, int64_t row, const Scan& scan)
      : data(start ? static_cast<E*>(start) + scan.network * network_stride + scan.first_row * row : nullptr),
        step_stride(step),
        row_stride(static_cast<int>(row)) {}
  RNNKERNELS_DEVICE ScanRows(const Sequence& sequence, const Scan& scan)
      : ScanRows(sequence.data, sequence.network_stride, sequence.step_stride, sequence.row_stride, scan) {}
  RNNKERNELS_DEVICE ScanRows(const Rows& rows, const Scan& scan)
      : ScanRows(rows.data, rows.network_stride, 0, rows.row_stride, scan) {}

  RNNKERNELS_DEVICE E* at(int64_t position, int row, int unit) const {
    return data + position * step_stride + (row * row_stride + unit);
  }
  RNNKERNELS_DEVICE E* at(int row, int unit) const { return data + (row * row_stride + unit); }
};

template <class ProblemType, class StoredType>
class PassBase {
 public:
  using Problem = ProblemType;
  using S = StoredType;
  using T = ComputeType<S>;

  RNNKERNELS_DEVICE PassBase(const Problem& problem, Scan scan, int most_rows)
      : problem_(problem), scan_(scan), most_rows_(most_rows), h0_(problem.h0, scan) {}

  RNNKERNELS_DEVICE Step step_at(int t) const {
    const Layout& layout = problem_.layout;
    return {t, layout.position(t), layout.first_row(t), rows_at(t)};
  }
  // The number of steps that have rows of the team; they start at step 0.
  RNNKERNELS_DEVICE int steps() const {
    const auto all = static_cast<int>(problem_.layout.steps);
    if (!problem_.layout.rows) return all;
    int low = 0, high = all;  // the first step without such rows is in [low, high]
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (problem_.layout.rows[middle] > scan_.first_row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  RNNKERNELS_DEVICE T decay(int unit) const {
    return static_cast<const T*>(
        problem_.decay)[scan_.network * problem_.decay_network_stride + unit * problem_.decay_stride];
  }

 protected:
  const Problem& problem_;
  const Scan scan_;
  const int most_rows_;
  const ScanRows<S> h0_;

  RNNKERNELS_DEVICE int rows_at(int64_t t) const {
    const int64_t rows = problem_.layout.rows_at(t) - scan_.first_row;
    return rows < 0 ? 0 : rows < most_rows_ ? static_cast<int>(rows) : most_rows_;
  }
  RNNKERNELS_DEVICE T h0(int row, int unit) const { return h0_.data ? widen(*h0_.at(row, unit)) : T{}; }

  // Values saved for the backward pass.
  template <class E>
  RNNKERNELS_DEVICE ScanRows<E> saved(const Rows& rows) const {
    return {rows.data, rows.network_stride, rows.row_stride, rows.row_stride, scan_};
  }

  // Returns the stored type: a conversion would wait for the load.
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
class ForwardPass : public PassBase<ForwardProblem, S> {
  using Base = PassBase<ForwardProblem, S>;

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
  RNNKERNELS_DEVICE ForwardPass(const ForwardProblem& problem, Scan scan, int most_rows)
      : Base(problem, scan, most_rows),
        cell_(problem.nonlinearity),
        pre_(problem.pre, scan),
        output_(problem.output, scan),
        activation_(Base::template saved<S>(problem.saved.activation)) {}

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
    const T previous = state.h;
    const T h = cell_.update(previous, T{widen(incoming.p)}, product, d, a);
    state.h = on ? h : state.h;
    this->store(output_.at(step.position, row, unit), h, on);
    if constexpr (Cell::kKeepsActivation) {
      this->store(activation_.at(step.first, row, unit), a, on && activation_.data);
    }
    if constexpr (kIsHalf<S>) {
      // Opaque: its place must take no registers from one step to the next.
      const Rows& slope = this->problem_.saved.decay_slope;
      if (slope.data) {
        const int here = device::opaque(unit);
        this->store(this->template saved<S>(slope).at(step.first, row, here), previous - a, on);
      }
    }
    return Cell::kKeepsBits && on && cell_.slope(a) != 0;
  }
  RNNKERNELS_DEVICE void end(int row, int unit, const State& state) const {
    this->store(ScanRows<S>(this->problem_.h_n, this->scan_).at(row, unit), state.h, true);
  }
  // Whether bits are stored, and the words of a row, one per 32 units.
  RNNKERNELS_DEVICE bool keeps() const { return this->problem_.saved.active.data != nullptr; }
  RNNKERNELS_DEVICE uint32_t* words(const Step& step, int row) const {
    const int here = device::opaque(row);  // as above
    return this->template saved<uint32_t>(this->problem_.saved.active).at(step.first, here, 0);
  }

 private:
  const Cell cell_;
  const ScanRows<S> pre_, output_, activation_;
};

template <class S, class Cell>
class BackwardPass : public PassBase<BackwardProblem, S> {
  using Base = PassBase<BackwardProblem, S>;

 public:
  using typename Base::T;
  static constexpr int kFetched = Cell::kKeepsBits ? 2 : 3;
  static constexpr bool kBackward = true;
  static constexpr bool kKeepsBits = false;
  struct Incoming {
    S g{};
    S kept{};           // f(z_t) (rate) or h_{t-1} (current)
    uint32_t bits = 0;  // f'(z_t) of 32 units (rate, f with a binary slope)
  };
  struct State {
    T c{}, d_decay{};
  };
  RNNKERNELS_DEVICE BackwardPass(const BackwardProblem& problem, Scan scan, int most_rows)
      : Base(problem, scan, most_rows),
        cell_(problem.nonlinearity),
        grad_output_(problem.grad_output, scan),
        output_(problem.output, scan),
        d_pre_(problem.d_pre, scan),
        activation_(Base::template saved<S>(problem.saved.activation)),
        words_(Base::template saved<uint32_t>(problem.saved.active)) {}

  // The last update only computes d_h0.
  RNNKERNELS_DEVICE bool wants_last_update() const { return this->problem_.d_h0.data != nullptr; }
  RNNKERNELS_DEVICE State begin(int row, int unit) const {
    const ScanRows<S> c(this->problem_.grad_h_n, this->scan_);
    return {c.data ? widen(*c.at(row, unit)) : T{}, T{}};
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
  // delta_t = g_t + c_t replaces the state; u_t is the operand and is stored as d_pre. The inputs of d_decay
  // are not fetched in advance: that would cost every call registers, and few calls need d_decay.
  RNNKERNELS_DEVICE T operand(const Step& step, int row, int unit, bool on, T d, const Incoming& incoming,
                              State& state) const {
    state.c += on ? T{widen(incoming.g)} : T{};
    T slope{};
    if constexpr (Cell::kKeepsBits) slope = static_cast<T>((incoming.bits >> (unit % 32)) & 1);
    if constexpr (Cell::kKeepsActivation) slope = cell_.slope(T{widen(incoming.kept)});
    const T u = on ? cell_.backward_operand(state.c, d, slope) : T{};
    this->store(d_pre_.at(step.position, row, unit), u, on);
    if (this->problem_.d_decay.data) {
      const int here = device::opaque(unit);
      state.d_decay += on ? state.c * decay_slope(step, row, here, on) : T{};
    }
    return u;
  }
  RNNKERNELS_DEVICE bool update(const Step&, int, int, bool on, T d, const Incoming& incoming, T product,
                                State& state) const {
    const T c = cell_.backward_update(state.c, product, d, T{widen(incoming.kept)});
    state.c = on ? c : state.c;
    return false;
  }
  RNNKERNELS_DEVICE void end(int row, int unit, const State& state) const {
    const ScanRows<S> d_h0(this->problem_.d_h0, this->scan_);
    this->store(d_h0.at(row, unit), state.c, d_h0.data);
    const ScanRows<T> d_decay(this->problem_.d_decay, this->scan_);
    if (d_decay.data) *d_decay.at(row, unit) = state.d_decay;
  }

 private:
  const Cell cell_;
  const ScanRows<S> grad_output_, output_, d_pre_, activation_;
  const ScanRows<uint32_t> words_;

  // h_{t-1} - y_t; or h_{t-1} - h_t, which is 1-d times as much, if that was not saved.
  RNNKERNELS_DEVICE T decay_slope(const Step& step, int row, int unit, bool on) const {
    if constexpr (kIsHalf<S>) {
      const Rows& slope = this->problem_.saved.decay_slope;
      if (slope.data) {
        return widen(this->load(this->template saved<S>(slope).at(step.first, row, unit), on));
      }
    }
    const T output = widen(this->load(output_.at(step.position, row, unit), on));
    return widen(previous(step, row, unit, on)) - output;
  }

 public:
  // h_{t-1}: the output of the previous step if the row has one, else h0.
  RNNKERNELS_DEVICE S previous(const Step& step, int row, int unit, bool on) const {
    const Layout& layout = this->problem_.layout;
    const int before = layout.reverse ? step.t + 1 : step.t - 1;
    const bool exists = before >= 0 && before < layout.steps;
    const bool goes_on = exists && row < this->rows_at(before);
    const S* const state = goes_on ? output_.at(layout.position(before), row, unit) : this->h0_.at(row, unit);
    return this->load(state, on && (goes_on || this->h0_.data));
  }
};

// The linear recurrence of the tangent and of the adjoint (LinearProblem).
template <class S>
class LinearPass : public PassBase<LinearProblem, S> {
  using Base = PassBase<LinearProblem, S>;

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
  RNNKERNELS_DEVICE LinearPass(const LinearProblem& problem, Scan scan, int most_rows)
      : Base(problem, scan, most_rows),
        drive_(problem.drive, scan),
        alpha_(problem.alpha, scan),
        beta_(problem.beta, scan),
        output_(problem.output, scan) {}

  RNNKERNELS_DEVICE bool wants_last_update() const { return true; }
  RNNKERNELS_DEVICE State begin(int row, int unit) const { return {this->h0(row, unit)}; }
  RNNKERNELS_DEVICE Incoming fetch(const Step& step, int row, int unit, bool on) const {
    const auto of = [&](const ScanRows<S>& x) {
      return this->load(x.at(step.position, row, unit), on && x.data);
    };
    return {of(drive_), of(alpha_), of(beta_)};
  }
  RNNKERNELS_DEVICE T operand(const Step&, int, int, bool on, T, const Incoming& incoming,
                              State& state) const {
    const T beta = beta_.data ? T{widen(incoming.beta)} : T{1};
    return on ? beta * state.y : T{};
  }
  RNNKERNELS_DEVICE bool update(const Step& step, int row, int unit, bool on, T d, const Incoming& incoming,
                                T product, State& state) const {
    const T alpha = alpha_.data ? T{widen(incoming.alpha)} : T{1};
    const T y = LinearCell::update(state.y, T{widen(incoming.r)}, product, d, alpha);
    state.y = on ? y : state.y;
    this->store(output_.at(step.position, row, unit), y, on);
    return false;
  }
  RNNKERNELS_DEVICE void end(int, int, const State&) const {}

 private:
  const ScanRows<S> drive_, alpha_, beta_, output_;
};

// Calls fn(null pointer to the pass) for the pass that computes `problem`, with sequences stored as S.
template <class S, class Fn>
void with_pass(const ForwardProblem& problem, const Fn& fn) {
  with_any_cell(problem.nonlinearity, problem.form, [&](auto* cell) {
    fn(static_cast<ForwardPass<S, std::remove_pointer_t<decltype(cell)>>*>(nullptr));
  });
}
template <class S, class Fn>
void with_pass(const BackwardProblem& problem, const Fn& fn) {
  with_any_cell(problem.nonlinearity, problem.form, [&](auto* cell) {
    fn(static_cast<BackwardPass<S, std::remove_pointer_t<decltype(cell)>>*>(nullptr));
  });
}
template <class S, class Fn>
void with_pass(const LinearProblem&, const Fn& fn) {
  fn(static_cast<LinearPass<S>*>(nullptr));
}

}  // namespace rnnkernels::cuda
