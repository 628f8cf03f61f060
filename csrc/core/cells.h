// The cells: the work on one unit between two products with the recurrent matrix.
//
// Every pass is the same time loop: form an operand from the state, multiply it by a matrix that never
// changes, update the state. A cell has the two pointwise halves of each pass:
//
//   forward    state h.  operand(h) -> x;             product s = W x;    update(h, p, s) -> h'
//   backward   state c.  operand(c, g) -> delta, u;   product s = W^T u;  update(delta, s) -> c'
//   linear     state y.  operand beta y;              product s = W beta y;  update(y, r, s) -> y'
//
// V is a float, a double or a vector of them. The CPU and the GPU compile the same lines.
#pragma once

#include "core/config.h"
#include "core/nonlinearities.h"
#include "core/problem.h"

namespace rnnkernels {

// d x, but exactly 0 where d is 0: a unit without memory must not turn an infinite past into NaN.
template <class V>
RNNKERNELS_INLINE V keep(V d, V x) {
  return d == V{} ? V{} : d * x;
}

// slope x. A slope that is 0 or 1 selects instead of multiplying, because in torch the gradient of an
// inactive unit is 0 even where an infinite one comes in.
template <class F, class V>
RNNKERNELS_INLINE V times_slope(V slope, V x) {
  if constexpr (F::kBinarySlope) {
    return slope == V{} ? V{} : x;
  } else {
    return slope * x;
  }
}

// rate:  h_t = d h_{t-1} + (1-d) f(p_t + W h_{t-1})
template <class F>
struct RateCell {
  using Nonlinearity = F;
  static constexpr bool kKeepsBits = F::kBinarySlope;         // backward needs one bit of z_t
  static constexpr bool kKeepsActivation = !F::kBinarySlope;  // backward needs f(z_t)
  static constexpr bool kReadsPrevious = false;               // backward needs h_{t-1}

  template <class V>
  static RNNKERNELS_INLINE V operand(V h) {
    return h;
  }
  // Writes f(z) to `a`.
  template <class V>
  static RNNKERNELS_INLINE V update(V h, V p, V product, V d, V& a) {
    a = F::value(p + product);
    return keep(d, h) + (1 - d) * a;
  }
  // u from delta; `slope` is f'(z_t).
  template <class V>
  static RNNKERNELS_INLINE V backward_operand(V delta, V d, V slope) {
    return times_slope<F>(slope, (1 - d) * delta);
  }
  template <class V>
  static RNNKERNELS_INLINE V backward_update(V delta, V product, V d, V /*previous*/) {
    return keep(d, delta) + product;
  }
};

// current:  h_t = d h_{t-1} + (1-d) (p_t + W f(h_{t-1}))
template <class F>
struct CurrentCell {
  using Nonlinearity = F;
  static constexpr bool kKeepsBits = false;
  static constexpr bool kKeepsActivation = false;
  static constexpr bool kReadsPrevious = true;

  template <class V>
  static RNNKERNELS_INLINE V operand(V h) {
    return F::value(h);
  }
  template <class V>
  static RNNKERNELS_INLINE V update(V h, V p, V product, V d, V& a) {
    a = p + product;
    return keep(d, h) + (1 - d) * a;
  }
  template <class V>
  static RNNKERNELS_INLINE V backward_operand(V delta, V d, V /*slope*/) {
    return (1 - d) * delta;
  }
  // `previous` is h_{t-1}.
  template <class V>
  static RNNKERNELS_INLINE V backward_update(V delta, V product, V d, V previous) {
    return keep(d, delta) + times_slope<F>(F::slope(F::value(previous)), product);
  }
};

// y_t = d y_{t-1} + alpha_t * (W (beta_t * y_{t-1})) + r_t
struct LinearCell {
  template <class V>
  static RNNKERNELS_INLINE V update(V y, V r, V product, V d, V alpha) {
    return keep(d, y) + (alpha * product + r);
  }
};

// Calls fn with the cell of a nonlinearity and a form. Returns false if there is no such nonlinearity.
template <class Fn, class... F>
bool with_cell(NonlinearityIndex nonlinearity, Form form, NonlinearityList<F...>, Fn&& fn) {
  int index = 0;
  const auto try_next = [&](auto rate, auto current) {
    if (index++ != nonlinearity) return false;
    if (form == Form::kRate) {
      fn(rate);
    } else {
      fn(current);
    }
    return true;
  };
  return (try_next(RateCell<F>{}, CurrentCell<F>{}) || ...);
}

}  // namespace rnnkernels
