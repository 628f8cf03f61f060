// The walks as pointwise work on one unit of one row: the CPU's sweeps (cpu/sweeps.h) for a thread that owns
// scattered units. S is what is stored; everything is computed in float32.
//
// A sweep provides
//   kBackward                      whether it visits the steps in the forward walk's reverse
//   at(t)                          the rows that belong to step t
//   begin(row, unit)               the state before the first step
//   operand(step, row, unit, state)            the operand of the product; may change the state
//   update(step, row, unit, product, state)    returns a bit to keep, where kKeepsBits
//   end(row, unit, state)          hand the last state out
#pragma once

#include "core/cells.h"
#include "core/elements.h"
#include "core/problem.h"

namespace rnnkernels::cuda {

template <class S>
RNNKERNELS_INLINE S* at(const Sequence& sequence, const Layout& layout, int64_t network, int64_t t,
                        int64_t row, int64_t unit) {
  const int64_t start = layout.offsets ? layout.offsets[t] * sequence.row_stride : t * sequence.step_stride;
  return static_cast<S*>(sequence.data) + network * sequence.network_stride + start +
         row * sequence.row_stride + unit;
}
template <class S>
RNNKERNELS_INLINE S* at(const Rows& rows, int64_t network, int64_t row, int64_t unit) {
  return static_cast<S*>(rows.data) + network * rows.network_stride + row * rows.row_stride + unit;
}

struct Step {
  int64_t t = 0;
  int64_t rows = 0;
};

template <class S>
struct SweepBase {
  Recurrence problem;
  int64_t network = 0;

  RNNKERNELS_INLINE Step at_step(int64_t t) const { return {t, problem.layout.rows_at(t)}; }
  RNNKERNELS_INLINE float decay(int64_t unit) const {
    return static_cast<const float*>(
        problem.decay)[network * problem.decay_network_stride + unit * problem.decay_stride];
  }
  RNNKERNELS_INLINE float h0(int64_t row, int64_t unit) const {
    return problem.h0.data ? number(*at<const S>(problem.h0, network, row, unit)) : 0.0f;
  }
  RNNKERNELS_INLINE S* activation(const Step& step, int64_t row, int64_t unit) const {
    if (!problem.saved.activation) return nullptr;
    return static_cast<S*>(problem.saved.activation) + network * problem.saved.activation_network_stride +
           (problem.layout.first_row(step.t) + row) * problem.hidden + unit;
  }
  // The words of a row; a tile of 16 units has half a word.
  RNNKERNELS_INLINE uint32_t* words(const Step& step, int64_t row) const {
    if (!problem.saved.active) return nullptr;
    return problem.saved.active + network * problem.saved.active_network_stride +
           (problem.layout.first_row(step.t) + row) * ((problem.hidden + 31) / 32);
  }
};

template <class S, class Cell>
struct ForwardSweep : SweepBase<S> {
  static constexpr bool kBackward = false;
  static constexpr bool kKeepsBits = Cell::kKeepsBits;
  ForwardProblem forward;

  RNNKERNELS_INLINE explicit ForwardSweep(const ForwardProblem& problem)
      : SweepBase<S>{problem}, forward(problem) {}

  RNNKERNELS_INLINE bool wants_last_update() const { return true; }
  RNNKERNELS_INLINE float begin(int64_t row, int64_t unit) const { return this->h0(row, unit); }
  RNNKERNELS_INLINE float operand(const Step&, int64_t, int64_t, float& state) const {
    return Cell::operand(state);
  }
  RNNKERNELS_INLINE bool update(const Step& step, int64_t row, int64_t unit, float product,
                                float& state) const {
    const float p = number(*at<const S>(forward.pre, forward.layout, this->network, step.t, row, unit));
    float a;
    state = Cell::update(state, p, product, this->decay(unit), a);
    assign(at<S>(forward.output, forward.layout, this->network, step.t, row, unit), state);
    if constexpr (Cell::kKeepsActivation) {
      if (S* kept = this->activation(step, row, unit)) assign(kept, a);
    }
    return Cell::Nonlinearity::slope(a) != 0;
  }
  RNNKERNELS_INLINE void end(int64_t row, int64_t unit, float state) const {
    assign(at<S>(forward.h_n, this->network, row, unit), state);
  }
};

template <class S, class Cell>
struct BackwardSweep : SweepBase<S> {
  static constexpr bool kBackward = true;
  static constexpr bool kKeepsBits = false;
  BackwardProblem backward;

  RNNKERNELS_INLINE explicit BackwardSweep(const BackwardProblem& problem)
      : SweepBase<S>{problem}, backward(problem) {}

  // The last update only makes d_h0.
  RNNKERNELS_INLINE bool wants_last_update() const { return backward.d_h0.data != nullptr; }
  RNNKERNELS_INLINE float begin(int64_t row, int64_t unit) const {
    if (backward.d_decay.data) *at<float>(backward.d_decay, this->network, row, unit) = 0;
    return backward.grad_h_n.data ? number(*at<const S>(backward.grad_h_n, this->network, row, unit)) : 0.0f;
  }
  // delta_t = g_t + c_t replaces the state; u_t goes into the product and out as d_pre.
  RNNKERNELS_INLINE float operand(const Step& step, int64_t row, int64_t unit, float& state) const {
    const Layout& layout = backward.layout;
    if (backward.grad_output.data) {
      state += number(*at<const S>(backward.grad_output, layout, this->network, step.t, row, unit));
    }
    float slope = 0;
    if constexpr (Cell::kKeepsBits) {
      slope = static_cast<float>((this->words(step, row)[unit / 32] >> (unit % 32)) & 1);
    }
    if constexpr (Cell::kKeepsActivation) {
      slope = Cell::Nonlinearity::slope(number(*this->activation(step, row, unit)));
    }
    const float u = Cell::backward_operand(state, this->decay(unit), slope);
    assign(at<S>(backward.d_pre, layout, this->network, step.t, row, unit), u);
    if (backward.d_decay.data) {
      const float output = number(*at<const S>(backward.output, layout, this->network, step.t, row, unit));
      *at<float>(backward.d_decay, this->network, row, unit) += state * (previous(step, row, unit) - output);
    }
    return u;
  }
  RNNKERNELS_INLINE bool update(const Step& step, int64_t row, int64_t unit, float product,
                                float& state) const {
    const float h = Cell::kReadsPrevious ? previous(step, row, unit) : 0.0f;
    state = Cell::backward_update(state, product, this->decay(unit), h);
    return false;
  }
  RNNKERNELS_INLINE void end(int64_t row, int64_t unit, float state) const {
    if (backward.d_h0.data) assign(at<S>(backward.d_h0, this->network, row, unit), state);
  }

 private:
  // h_{t-1}: of the step before where the row has one, else h0.
  RNNKERNELS_INLINE float previous(const Step& step, int64_t row, int64_t unit) const {
    const Layout& layout = backward.layout;
    const int64_t before = layout.reverse ? step.t + 1 : step.t - 1;
    if (before >= 0 && before < layout.steps && row < layout.rows_at(before)) {
      return number(*at<const S>(backward.output, layout, this->network, before, row, unit));
    }
    return this->h0(row, unit);
  }
};

// See LinearProblem.
template <class S>
struct LinearSweep : SweepBase<S> {
  static constexpr bool kBackward = false;
  static constexpr bool kKeepsBits = false;
  LinearProblem linear;

  RNNKERNELS_INLINE explicit LinearSweep(const LinearProblem& problem)
      : SweepBase<S>{problem}, linear(problem) {}

  RNNKERNELS_INLINE bool wants_last_update() const { return true; }
  RNNKERNELS_INLINE float begin(int64_t row, int64_t unit) const { return this->h0(row, unit); }
  RNNKERNELS_INLINE float operand(const Step& step, int64_t row, int64_t unit, float& state) const {
    return linear.beta.data ? coefficient(linear.beta, step, row, unit) * state : state;
  }
  RNNKERNELS_INLINE bool update(const Step& step, int64_t row, int64_t unit, float product,
                                float& state) const {
    const float alpha = linear.alpha.data ? coefficient(linear.alpha, step, row, unit) : 1.0f;
    state = LinearCell::update(state, coefficient(linear.drive, step, row, unit), product, this->decay(unit),
                               alpha);
    assign(at<S>(linear.output, linear.layout, this->network, step.t, row, unit), state);
    return false;
  }
  RNNKERNELS_INLINE void end(int64_t, int64_t, float) const {}

 private:
  RNNKERNELS_INLINE float coefficient(const Sequence& sequence, const Step& step, int64_t row,
                                      int64_t unit) const {
    return number(*at<const S>(sequence, linear.layout, this->network, step.t, row, unit));
  }
};

}  // namespace rnnkernels::cuda
