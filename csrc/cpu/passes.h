// The passes: pointwise work on one block of 16 units of one row. A pass reads and writes the sequences
// around the cell (core/cells.h has the equations); the engine has the time loop, the state and the product.
//
// A pass provides
//   kBackward                              whether its time loop goes against the order of the forward pass
//   network                                set by the engine; all functions below are for this network
//   at(t)                                  pointers to the rows of step t
//   begin(row, column, state)              the state before the first step
//   operand(step, row, column, state, x)   forms the operand x of the product; may change the state
//   update(step, row, column, product, state)
//   end(row, column, state)                writes the last state
//   wants_last_update()                    whether the update of the last step has an effect
//   prefetch(step, next, row, column)      asks for what update(step) and operand(next) will read or write
// `state` is a block of 16 units in registers; `x` and `product` point at 16 units. Columns from H on have
// undefined values.
#pragma once

#include <type_traits>

#include "core/cells.h"
#include "core/problem.h"
#include "cpu/simd.h"

namespace rnnkernels {
namespace {

// The rows of one step in a sequence; data is null where there is no sequence.
template <class T>
struct StepRows {
  T* data = nullptr;
  int64_t row_stride = 0;
  RNNKERNELS_INLINE T* at(int64_t row, int64_t column) const {
    return data ? data + row * row_stride + column : nullptr;
  }
};

template <class T>
StepRows<T> rows_of(const Sequence& sequence, const Layout& layout, int64_t network, int64_t t) {
  if (!sequence.data) return {};
  const int64_t start = layout.position(t) * sequence.step_stride;
  return {static_cast<T*>(sequence.data) + network * sequence.network_stride + start, sequence.row_stride};
}

template <class T>
StepRows<T> rows_of(const Rows& rows, int64_t network) {
  if (!rows.data) return {};
  return {static_cast<T*>(rows.data) + network * rows.network_stride, rows.row_stride};
}

// As load_first, but a null pointer stands for zeros, and `valid` may be 0 or less.
template <class S>
RNNKERNELS_INLINE Vec<ComputeType<S>> load_or_zero(const S* from, int64_t valid) {
  return from && valid > 0 ? load_first(from, valid) : Vec<ComputeType<S>>{};
}

template <class T>
RNNKERNELS_INLINE const T* advance(const T* p, int64_t by) {
  return p ? p + by : nullptr;
}

// The saved bits of one step: half a word for each block.
struct StepBits {
  uint32_t* words = nullptr;
  int64_t row_words = 0;
  int64_t blocks = 0;

  RNNKERNELS_INLINE uint32_t get(int64_t row, int64_t column) const {
    return words[row * row_words + column / 32] >> (column % 32);
  }
  // Two threads may have the two halves of a word, so only this block's half is written. The last block of an
  // odd number of blocks also clears the unused half.
  RNNKERNELS_INLINE void put(int64_t row, int64_t column, uint32_t bits) const {
    uint32_t* word = words + row * row_words + column / 32;
    const int64_t block = column / kBlock;
    if (block % 2 == 0 && block + 1 == blocks) {
      *word = bits;
      return;
    }
    const uint16_t half = static_cast<uint16_t>(bits);
    constexpr bool kLittle = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
    std::memcpy(reinterpret_cast<char*>(word) + ((block % 2 == 0) == kLittle ? 0 : 2), &half, 2);
  }
};

// Fetches the cache lines of a block of a row, for writing where S is not const.
template <class S>
RNNKERNELS_INLINE void prefetch_block(const StepRows<S>& rows, int64_t row, int64_t column) {
  const auto* at = rows.at(row, column);
  if (!at) return;
  for (int v = 0; v < kBlock; v += 64 / static_cast<int>(sizeof(S))) {
    __builtin_prefetch(at + v, std::is_const_v<S> ? 0 : 1);
  }
}

// The part that all passes have in common: sizes, the decay, and the places of saved values. S is the element
// type of sequences, T the type of the arithmetic.
template <class S>
struct PassBase {
  using T = ComputeType<S>;
  const Recurrence& problem;
  const T* decay;  // [G][blocks * 16], padded with zeros
  int64_t hidden;
  int64_t blocks;
  int64_t network = 0;

  PassBase(const Recurrence& recurrence, const T* padded_decay)
      : problem(recurrence),
        decay(padded_decay),
        hidden(recurrence.hidden),
        blocks((recurrence.hidden + kBlock - 1) / kBlock) {}

  RNNKERNELS_INLINE Vec<T> decay_at(int64_t column) const {
    return load(decay + network * blocks * kBlock + column);
  }
  void begin_from_h0(int64_t row, int64_t column, Block<T>& state) const {
    const S* h0 = rows_of<const S>(problem.h0, network).at(row, column);
    for (int v = 0; v < kBlock; v += kLanes<T>) {
      state[v] = load_or_zero(advance(h0, v), hidden - column - v);
    }
  }
  // The rows of step t in saved values.
  template <class E>
  StepRows<E> saved_at(const Rows& saved, int64_t t) const {
    const StepRows<E> rows = rows_of<E>(saved, network);
    return {rows.at(problem.layout.first_row(t), 0), rows.row_stride};
  }
  StepBits bits_at(int64_t t) const {
    const StepRows<uint32_t> words = saved_at<uint32_t>(problem.saved.active, t);
    return {words.data, words.row_stride, blocks};
  }
};

template <class S, class Cell>
struct ForwardPass : PassBase<S> {
  static constexpr bool kBackward = false;
  using Base = PassBase<S>;
  using typename Base::T;
  const ForwardProblem& forward;

  struct Step {
    int64_t rows = 0;
    StepRows<const S> pre;
    StepRows<S> output;
    StepRows<S> activation;
    StepRows<S> decay_slope;
    StepBits bits;
  };

  ForwardPass(const ForwardProblem& problem, const T* padded_decay)
      : Base(problem, padded_decay), forward(problem) {}

  bool wants_last_update() const { return true; }

  Step at(int64_t t) const {
    Step step;
    const Layout& layout = forward.layout;
    step.rows = layout.rows_at(t);
    step.pre = rows_of<const S>(forward.pre, layout, this->network, t);
    step.output = rows_of<S>(forward.output, layout, this->network, t);
    if (Cell::kKeepsActivation) step.activation = this->template saved_at<S>(forward.saved.activation, t);
    if (kIsHalf<S>) step.decay_slope = this->template saved_at<S>(forward.saved.decay_slope, t);
    if (Cell::kKeepsBits) step.bits = this->bits_at(t);
    return step;
  }

  void begin(int64_t row, int64_t column, Block<T>& state) const { this->begin_from_h0(row, column, state); }

  RNNKERNELS_INLINE void prefetch(const Step& step, const Step&, int64_t row, int64_t column) const {
    prefetch_block(step.pre, row, column);
    prefetch_block(step.output, row, column);
    prefetch_block(step.activation, row, column);
    if constexpr (kIsHalf<S>) prefetch_block(step.decay_slope, row, column);
  }

  RNNKERNELS_INLINE void operand(const Step&, int64_t, int64_t, Block<T>& state, T* x) const {
    for (int v = 0; v < kBlock; v += kLanes<T>) store(x + v, Cell::operand(state[v]));
  }

  RNNKERNELS_INLINE void update(const Step& step, int64_t row, int64_t column, const T* product,
                                Block<T>& state) const {
    const S* pre = step.pre.at(row, column);
    S* output = step.output.at(row, column);
    S* activation = step.activation.at(row, column);
    S* decay_slope = step.decay_slope.at(row, column);
    uint32_t bits = 0;
    for (int v = 0; v < kBlock; v += kLanes<T>) {
      const int64_t valid = this->hidden - column - v;
      if (valid <= 0) break;
      Vec<T> a;
      const Vec<T> previous = state[v];
      const Vec<T> h = Cell::update(previous, load_first(pre + v, valid), load(product + v),
                                    this->decay_at(column + v), a);
      state[v] = h;
      store_first(output + v, h, valid);
      if (Cell::kKeepsActivation && activation) store_first(activation + v, a, valid);
      if (kIsHalf<S> && decay_slope) store_first(decay_slope + v, previous - a, valid);
      if (Cell::kKeepsBits && step.bits.words) bits |= bits_of<T>(slope_is_one(a)) << v;
    }
    if (Cell::kKeepsBits && step.bits.words) {
      const int64_t valid = this->hidden - column;
      step.bits.put(row, column, valid < kBlock ? bits & ((1u << valid) - 1) : bits);
    }
  }

  void end(int64_t row, int64_t column, const Block<T>& state) const {
    S* h_n = rows_of<S>(forward.h_n, this->network).at(row, column);
    for (int v = 0; v < kBlock && v < this->hidden - column; v += kLanes<T>) {
      store_first(h_n + v, state[v], this->hidden - column - v);
    }
  }

 private:
  static RNNKERNELS_INLINE auto slope_is_one(Vec<T> a) { return Cell::Nonlinearity::slope(a) != Vec<T>{}; }
};

template <class S, class Cell>
struct BackwardPass : PassBase<S> {
  static constexpr bool kBackward = true;
  using Base = PassBase<S>;
  using typename Base::T;
  const BackwardProblem& backward;

  struct Step {
    int64_t rows = 0;
    int64_t carried_rows = 0;  // how many of them continue the state of the previous step
    StepRows<const S> grad_output;
    StepRows<const S> output;
    StepRows<const S> previous;
    StepRows<const S> h0;
    StepRows<S> d_pre;
    StepRows<S> activation;
    StepRows<S> decay_slope;
    StepBits bits;

    RNNKERNELS_INLINE const S* previous_at(int64_t row, int64_t column) const {
      return row < carried_rows ? previous.at(row, column) : h0.at(row, column);
    }
  };

  BackwardPass(const BackwardProblem& problem, const T* padded_decay)
      : Base(problem, padded_decay), backward(problem) {}

  // The last update only computes d_h0.
  bool wants_last_update() const { return backward.d_h0.data != nullptr; }

  Step at(int64_t t) const {
    Step step;
    const Layout& layout = backward.layout;
    step.rows = layout.rows_at(t);
    step.grad_output = rows_of<const S>(backward.grad_output, layout, this->network, t);
    step.output = rows_of<const S>(backward.output, layout, this->network, t);
    step.d_pre = rows_of<S>(backward.d_pre, layout, this->network, t);
    step.h0 = rows_of<const S>(backward.h0, this->network);
    const int64_t previous = layout.previous_step(t);
    step.carried_rows = layout.carried_rows(t);
    if (previous >= 0) step.previous = rows_of<const S>(backward.output, layout, this->network, previous);
    if (Cell::kKeepsActivation) step.activation = this->template saved_at<S>(backward.saved.activation, t);
    if (kIsHalf<S>) step.decay_slope = this->template saved_at<S>(backward.saved.decay_slope, t);
    if (Cell::kKeepsBits) step.bits = this->bits_at(t);
    return step;
  }

  void begin(int64_t row, int64_t column, Block<T>& state) const {
    const S* grad_h_n = rows_of<const S>(backward.grad_h_n, this->network).at(row, column);
    T* d_decay = rows_of<T>(backward.d_decay, this->network).at(row, column);
    for (int v = 0; v < kBlock; v += kLanes<T>) {
      const int64_t valid = this->hidden - column - v;
      state[v] = load_or_zero(advance(grad_h_n, v), valid);
      if (d_decay && valid > 0) store_first(d_decay + v, Vec<T>{}, valid);
    }
  }

  RNNKERNELS_INLINE void prefetch(const Step& step, const Step& next, int64_t row, int64_t column) const {
    if constexpr (Cell::kReadsPrevious) prefetch_block(step.previous, row, column);
    if (row >= next.rows) return;
    prefetch_block(next.grad_output, row, column);
    prefetch_block(next.d_pre, row, column);
    if constexpr (Cell::kKeepsActivation) prefetch_block(next.activation, row, column);
  }

  // delta_t = g_t + c_t replaces the state c_t; u_t is the operand and is written as d_pre.
  RNNKERNELS_INLINE void operand(const Step& step, int64_t row, int64_t column, Block<T>& state, T* x) const {
    const S* grad = step.grad_output.at(row, column);
    S* d_pre = step.d_pre.at(row, column);
    uint32_t bits = 0;
    if (Cell::kKeepsBits) bits = step.bits.get(row, column);
    for (int v = 0; v < kBlock; v += kLanes<T>) {
      const int64_t valid = this->hidden - column - v;
      if (valid <= 0) break;
      Vec<T> slope{};
      if constexpr (Cell::kKeepsBits) slope = from_bits<T>(bits >> v);
      if constexpr (Cell::kKeepsActivation) {
        slope = Cell::Nonlinearity::slope(load_first(step.activation.at(row, column) + v, valid));
      }
      const Vec<T> delta = state[v] + load_or_zero(advance(grad, v), valid);
      const Vec<T> u = Cell::backward_operand(delta, this->decay_at(column + v), slope);
      state[v] = delta;
      store(x + v, u);
      store_first(d_pre + v, u, valid);
    }
    if (backward.d_decay.data) add_d_decay(step, row, column, state);
  }

  RNNKERNELS_INLINE void update(const Step& step, int64_t row, int64_t column, const T* product,
                                Block<T>& state) const {
    const S* previous = Cell::kReadsPrevious ? step.previous_at(row, column) : nullptr;
    for (int v = 0; v < kBlock; v += kLanes<T>) {
      Vec<T> h{};
      if constexpr (Cell::kReadsPrevious) {
        h = load_or_zero(advance(previous, v), this->hidden - column - v);
      }
      state[v] = Cell::backward_update(state[v], load(product + v), this->decay_at(column + v), h);
    }
  }

  void end(int64_t row, int64_t column, const Block<T>& state) const {
    S* d_h0 = rows_of<S>(backward.d_h0, this->network).at(row, column);
    if (!d_h0) return;
    for (int v = 0; v < kBlock && v < this->hidden - column; v += kLanes<T>) {
      store_first(d_h0 + v, state[v], this->hidden - column - v);
    }
  }

 private:
  // In both forms h_t = d h_{t-1} + (1-d) y_t, and y_t does not depend on d, so that
  // dh_t/dd = h_{t-1} - y_t = (h_{t-1} - h_t) / (1-d). The caller divides a sum of differences of outputs.
  void add_d_decay(const Step& step, int64_t row, int64_t column, const Block<T>& delta) const {
    T* sum = rows_of<T>(backward.d_decay, this->network).at(row, column);
    const S* previous = step.previous_at(row, column);
    const S* output = step.output.at(row, column);
    const S* decay_slope = step.decay_slope.at(row, column);
    for (int v = 0; v < kBlock && v < this->hidden - column; v += kLanes<T>) {
      const int64_t valid = this->hidden - column - v;
      const Vec<T> change = kIsHalf<S> && decay_slope
                                ? load_first(decay_slope + v, valid)
                                : load_or_zero(advance(previous, v), valid) - load_first(output + v, valid);
      store_first(sum + v, load_first(sum + v, valid) + delta[v] * change, valid);
    }
  }
};

// y_t = d y_{t-1} + alpha_t * (W (beta_t * y_{t-1})) + r_t, with alpha and beta of the step t that is
// computed.
template <class S>
struct LinearPass : PassBase<S> {
  static constexpr bool kBackward = false;
  using Base = PassBase<S>;
  using typename Base::T;
  const LinearProblem& linear;

  struct Step {
    int64_t rows = 0;
    StepRows<const S> drive;
    StepRows<const S> alpha;
    StepRows<const S> beta;
    StepRows<S> output;
  };

  LinearPass(const LinearProblem& problem, const T* padded_decay)
      : Base(problem, padded_decay), linear(problem) {}

  bool wants_last_update() const { return true; }

  Step at(int64_t t) const {
    Step step;
    const Layout& layout = linear.layout;
    step.rows = layout.rows_at(t);
    step.drive = rows_of<const S>(linear.drive, layout, this->network, t);
    step.alpha = rows_of<const S>(linear.alpha, layout, this->network, t);
    step.beta = rows_of<const S>(linear.beta, layout, this->network, t);
    step.output = rows_of<S>(linear.output, layout, this->network, t);
    return step;
  }

  void begin(int64_t row, int64_t column, Block<T>& state) const { this->begin_from_h0(row, column, state); }

  RNNKERNELS_INLINE void prefetch(const Step& step, const Step& next, int64_t row, int64_t column) const {
    prefetch_block(step.drive, row, column);
    prefetch_block(step.alpha, row, column);
    prefetch_block(step.output, row, column);
    prefetch_block(next.beta, row, column);
  }

  RNNKERNELS_INLINE void operand(const Step& step, int64_t row, int64_t column, Block<T>& state, T* x) const {
    const S* beta = step.beta.at(row, column);
    for (int v = 0; v < kBlock; v += kLanes<T>) {
      const Vec<T> y = state[v];
      store(x + v, beta ? load_or_zero(beta + v, this->hidden - column - v) * y : y);
    }
  }

  RNNKERNELS_INLINE void update(const Step& step, int64_t row, int64_t column, const T* product,
                                Block<T>& state) const {
    const S* drive = step.drive.at(row, column);
    const S* alpha = step.alpha.at(row, column);
    S* output = step.output.at(row, column);
    for (int v = 0; v < kBlock; v += kLanes<T>) {
      const int64_t valid = this->hidden - column - v;
      if (valid <= 0) break;
      const Vec<T> y =
          LinearCell::update(state[v], load_first(drive + v, valid), load(product + v),
                             this->decay_at(column + v), alpha ? load_first(alpha + v, valid) : Vec<T>{} + 1);
      state[v] = y;
      store_first(output + v, y, valid);
    }
  }

  void end(int64_t, int64_t, const Block<T>&) const {}
};

}  // namespace
}  // namespace rnnkernels
