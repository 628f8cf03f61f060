// The nonlinearities f: one struct each, and the list from which everything else is made.
//
// A struct says:
//   kName             the name in Python
//   kBinarySlope      true if f' is 0 or 1, so that one bit is all that backward needs
//   value(z)          f(z)
//   slope(a)          f'(z), given a = f(z)
// NaN must travel through both, as it does in torch. V is a float, a double, or a vector of them.
#pragma once

#include "core/config.h"
#include "core/elementary.h"

namespace rnnkernels {

// relu(z) = max(z, 0)
struct Relu {
  static constexpr const char* kName = "relu";
  static constexpr bool kBinarySlope = true;

  // Written as a test for z <= 0, which a NaN fails and so passes on.
  template <class V>
  static RNNKERNELS_INLINE V value(V z) {
    return z <= V{} ? V{} : z;
  }
  template <class V>
  static RNNKERNELS_INLINE V slope(V a) {
    return a <= V{} ? V{} : V{} + 1;
  }
};

// tanh'(z) = 1 - tanh(z)^2
struct Tanh {
  static constexpr const char* kName = "tanh";
  static constexpr bool kBinarySlope = false;

  template <class V>
  static RNNKERNELS_INLINE V value(V z) {
    return tanh_of(z);
  }
  template <class V>
  static RNNKERNELS_INLINE V slope(V a) {
    return 1 - a * a;
  }
};

// sigmoid(z) = 1 / (1 + e^{-z}); where e^{-z} would leave the numbers, 0 or 1
struct Sigmoid {
  static constexpr const char* kName = "sigmoid";
  static constexpr bool kBinarySlope = false;

  template <class V>
  static RNNKERNELS_INLINE V value(V z) {
    using C = elementary::ConstantsOf<V>;
    const V y = -z, capped = y > C::kExpPast ? V{} + C::kExpPast : y;
    return 1 / elementary::Exponential<V>(capped < -C::kExpMost ? V{} - C::kExpMost : capped).one_plus_exp();
  }
  template <class V>
  static RNNKERNELS_INLINE V slope(V a) {
    return a * (1 - a);
  }
};

// softplus(z) = log(1 + e^z) = max(z, 0) + log(1 + e^{-|z|}); its slope is sigmoid(z) = 1 - e^{-a}
struct Softplus {
  static constexpr const char* kName = "softplus";
  static constexpr bool kBinarySlope = false;

  template <class V>
  static RNNKERNELS_INLINE V value(V z) {
    return Relu::value(z) + log_one_plus(exp_minus(elementary::magnitude(z)));
  }
  template <class V>
  static RNNKERNELS_INLINE V slope(V a) {
    return one_minus_exp_minus(a);
  }
};

template <class... F>
struct NonlinearityList {};

// To add one: its struct above, its name here, its line in rnnkernels/testing/recurrence.py and, for derivatives
// of the second order, in rnnkernels/_ops/nonlinearities.py.
using Nonlinearities = NonlinearityList<Relu, Tanh, Sigmoid, Softplus>;

template <class... F>
constexpr int count(NonlinearityList<F...>) {
  return sizeof...(F);
}

// The name of row `index`, or null past the end.
template <class... F>
const char* name_at(int index, NonlinearityList<F...>) {
  const char* const names[] = {F::kName...};
  return index >= 0 && index < static_cast<int>(sizeof...(F)) ? names[index] : nullptr;
}

}  // namespace rnnkernels
