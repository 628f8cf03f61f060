// The nonlinearities f: one struct each, and the list of them.
//
// A struct has
//   kName             the name in Python
//   kBinarySlope      whether f' is 0 or 1, so that backward needs only one bit
//   value(z)          f(z)
//   slope(a)          f'(z), given a = f(z)
// Both functions return NaN for NaN, as torch does. V is a float, a double, or a vector of them.
#pragma once

#include "core/config.h"
#include "core/elementary_functions.h"

namespace rnnkernels {

// relu(z) = max(z, 0)
struct Relu {
  static constexpr const char* kName = "relu";
  static constexpr bool kBinarySlope = true;

  // NaN fails the test z <= 0, so it is returned.
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

// sigmoid(z) = 1 / (1 + e^{-z}), and 0 or 1 where e^{-z} would overflow or underflow
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

// All nonlinearities; NonlinearityIndex counts them in this order. CONTRIBUTING.md says how to add one.
using Nonlinearities = NonlinearityList<Relu, Tanh, Sigmoid, Softplus>;

template <class... F>
constexpr int count(NonlinearityList<F...>) {
  return sizeof...(F);
}

// The name of the nonlinearity `index`, or null past the end.
template <class... F>
const char* name_at(int index, NonlinearityList<F...>) {
  const char* const names[] = {F::kName...};
  return index >= 0 && index < static_cast<int>(sizeof...(F)) ? names[index] : nullptr;
}

}  // namespace rnnkernels
