// The optimizers' update rules for one element, the same lines for the CPU and for nvcc.
//
// Legend: theta parameter, g its gradient before scaling and clipping, eps (lr) learning rate, mu momentum, c
// the factor of a gradient: the clip coefficient divided by the loss scale, negative to maximize. Huge
// gradients can make c smaller than any float, so it is applied as two factors.
//
// A momentum of 0 selects instead of multiplying: without memory, an infinite velocity must not become NaN.
//
//   Nesterov   g = c g + wd theta;   v_t = mu_{t-1} v_{t-1} - eps g
//              theta_t = theta_{t-1} + mu_t mu_{t-1} v_{t-1} - (1 + mu_t) eps g
//              Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), section 3.5
//   AdamW      g = c g;   theta' = (1 - eps wd) theta_{t-1}
//              m_t = m_{t-1} + (1 - b1) (g - m_{t-1});   s_t = b2 s_{t-1} + (1 - b2) g^2
//              theta_t = theta' - eps / (1 - b1^t) m_t / (sqrt(s_t / (1 - b2^t)) + epsilon)
//              Loshchilov and Hutter 2019 (arXiv 1711.05101), as torch.optim.AdamW
//
// A rule has
//   kName              its name
//   kStates            the number of states per element
//   Settings           a group's settings in double, made by settings_of from a list of them
//   Coefficients<T>         the constants of a step for one tensor, made by coefficients; T is the type of the
//                      arithmetic
//   update             the rule for one element: returns the new theta and changes the states in place
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/config.h"

namespace rnnkernels {

// The order in which callers list a group's settings. From kOwnSettings on come those of the rule: Nesterov's
// momentum, or AdamW's beta1, beta2 and epsilon.
enum SettingIndex { kLr, kMaxNorm, kWeightDecay, kOwnSettings };
constexpr int kMostSettings = kOwnSettings + 3;

// The factor of torch's clip_grad_norm_: min(1, max_norm / (norm + 1e-6)). An infinite max_norm turns
// clipping off. A NaN norm gives NaN, because it fails the comparison.
RNNKERNELS_INLINE double clip_coefficient(double norm, double max_norm) {
  if (max_norm == __builtin_inf()) return 1.0;
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient >= 1.0 ? 1.0 : coefficient;
}

// The first factor of c, a power of two within the range of float. Down to c = 2^-252, where a float gradient
// times c is a normal number, so are the gradient times this factor and the remaining factor: nothing is
// rounded twice.
RNNKERNELS_INLINE double first_factor(double c) {
  const double size = c < 0 ? -c : c;
  return size < 0x1p-200 ? 0x1p-126 : size < 0x1p-100 ? 0x1p-100 : 1.0;
}

// A momentum, with a mask for the velocity's bits: none of them where the momentum is 0, else all. A mask
// instead of a condition, because with a condition the compiler fuses multiply-adds in the loop of one type
// and not in that of another.
template <class T>
struct Momentum {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  T factor;
  Bits kept;
  static RNNKERNELS_INLINE Momentum of(double momentum) {
    return {T(momentum), T(momentum) == T(0) ? Bits(0) : ~Bits(0)};
  }
  RNNKERNELS_INLINE T times(T velocity) const {
    return factor * __builtin_bit_cast(T, __builtin_bit_cast(Bits, velocity) & kept);
  }
};

struct NesterovRule {
  static constexpr const char* kName = "Nesterov";
  static constexpr int kStates = 1;  // velocity

  struct Settings {
    double lr, momentum, previous_momentum, weight_decay;
  };
  static RNNKERNELS_INLINE Settings settings_of(const double (&list)[kMostSettings],
                                                double previous_momentum) {
    return {list[kLr], list[kOwnSettings], previous_momentum, list[kWeightDecay]};
  }

  template <class T>
  struct Coefficients {
    T first, gradient, lr, weight_decay;
    Momentum<T> momentum, previous_momentum;
  };

  template <class T>
  static RNNKERNELS_INLINE Coefficients<T> coefficients(const Settings& s, double c, double /*step*/) {
    const double first = first_factor(c);
    return {T(first),
            T(c / first),
            T(s.lr),
            T(s.weight_decay),
            Momentum<T>::of(s.momentum),
            Momentum<T>::of(s.previous_momentum)};
  }

  // mu_t mu_{t-1} v - (1 + mu_t) eps g = mu_t v_t - eps g
  template <class T>
  static RNNKERNELS_INLINE T update(T theta, T g, T* state, const Coefficients<T>& f) {
    g = g * f.first * f.gradient;
    if (f.weight_decay != T(0)) g += f.weight_decay * theta;
    const T descent = f.lr * g;
    state[0] = f.previous_momentum.times(state[0]) - descent;
    return theta + (f.momentum.times(state[0]) - descent);
  }
};

struct AdamWRule {
  static constexpr const char* kName = "AdamW";
  static constexpr int kStates = 2;  // m and s, torch's exp_avg and exp_avg_sq

  struct Settings {
    double lr, beta1, beta2, epsilon, weight_decay;
  };
  static RNNKERNELS_INLINE Settings settings_of(const double (&list)[kMostSettings],
                                                double /*previous_momentum*/) {
    return {list[kLr], list[kOwnSettings], list[kOwnSettings + 1], list[kOwnSettings + 2],
            list[kWeightDecay]};
  }

  template <class T>
  struct Coefficients {
    T first, gradient, decay, beta1, new_m, beta2, new_s, step, root, epsilon;
  };

  // `step` is t, this step included.
  template <class T>
  static RNNKERNELS_INLINE Coefficients<T> coefficients(const Settings& s, double c, double step) {
    const double first = first_factor(c);
    const double correction1 = 1 - __builtin_pow(s.beta1, step);
    const double correction2 = 1 - __builtin_pow(s.beta2, step);
    return {T(first),       T(c / first),          T(1 - s.lr * s.weight_decay),
            T(s.beta1),     T(1 - s.beta1),        T(s.beta2),
            T(1 - s.beta2), T(s.lr / correction1), T(1 / __builtin_sqrt(correction2)),
            T(s.epsilon)};
  }

  static RNNKERNELS_INLINE float root(float x) { return __builtin_sqrtf(x); }
  static RNNKERNELS_INLINE double root(double x) { return __builtin_sqrt(x); }

  template <class T>
  static RNNKERNELS_INLINE T update(T theta, T g, T* state, const Coefficients<T>& f) {
    g = g * f.first * f.gradient;
    // The first form is exact where g = m, even if 1 - b1 has lost digits. The second has no rounding error
    // of the size of m where b1 is small, even if m was large.
    state[0] = f.new_m < T(0.5) ? state[0] + f.new_m * (g - state[0]) : f.beta1 * state[0] + f.new_m * g;
    state[1] = f.beta2 * state[1] + f.new_s * (g * g);
    const T scale = root(state[1]) * f.root + f.epsilon;
    return f.decay * theta - f.step * (state[0] / scale);
  }
};

}  // namespace rnnkernels
