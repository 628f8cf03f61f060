// The optimizers' update rules for one element, the same lines for the CPU and for nvcc.
//
// Legend: theta parameter, g its gradient as it comes, eps (lr) learning rate, mu momentum, c what a
// gradient is multiplied with: the clip coefficient, over the loss scale, negative to maximize. Huge
// gradients can make c smaller than a float may be, so it comes in two factors.
//
// A momentum of 0 chooses rather than multiplies: an infinite velocity must not become NaN in a rule
// that has no memory.
//
//   Nesterov   g = c g + wd theta;   v_t = mu_{t-1} v_{t-1} - eps g
//              theta_t = theta_{t-1} + mu_t mu_{t-1} v_{t-1} - (1 + mu_t) eps g
//              Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), section 3.5
//   AdamW      g = c g;   theta' = (1 - eps wd) theta_{t-1}
//              m_t = m_{t-1} + (1 - b1) (g - m_{t-1});   s_t = b2 s_{t-1} + (1 - b2) g^2
//              theta_t = theta' - eps / (1 - b1^t) m_t / (sqrt(s_t / (1 - b2^t)) + epsilon)
//              Loshchilov and Hutter 2019 (arXiv 1711.05101), as torch.optim.AdamW
//
// A rule has `kStates` numbers of memory an element, `Settings` (what the caller gives, in double; out of a
// list of them, by `settings_of`) and `Factors` (what an element needs, made once for a tensor). T is the
// type of the arithmetic.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/config.h"

namespace rnnkernels {

// A group's settings in the order in which callers list them; the rule's own are Nesterov's momentum, or
// AdamW's beta1, beta2 and epsilon.
enum SettingIndex { kLr, kMaxNorm, kWeightDecay, kOwnSettings };
constexpr int kMostSettings = kOwnSettings + 3;

// What clip_grad_norm_ multiplies with: max_norm / (norm + 1e-6), at most 1. Infinity turns clipping
// off. A norm that is not a number gives none, because the comparison fails.
RNNKERNELS_INLINE double clip_coefficient(double norm, double max_norm) {
  if (max_norm == __builtin_inf()) return 1.0;
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient >= 1.0 ? 1.0 : coefficient;
}

// The first factor of c, a power of two that a float can be. Where a float gradient times c is a normal
// number, so is the gradient times this, and what is left of c (to 2^-252): nothing is rounded twice.
RNNKERNELS_INLINE double first_factor(double c) {
  const double size = c < 0 ? -c : c;
  return size < 0x1p-200 ? 0x1p-126 : size < 0x1p-100 ? 0x1p-100 : 1.0;
}

// A momentum and what of a velocity it is multiplied with: every bit, or none where it is 0. Not a
// condition, for with one the compiler rounds otherwise in one type's loop than in another's.
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
  struct Factors {
    T first, gradient, lr, weight_decay;
    Momentum<T> momentum, previous_momentum;
  };

  template <class T>
  static RNNKERNELS_INLINE Factors<T> factors(const Settings& s, double c, double /*step*/) {
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
  static RNNKERNELS_INLINE T update(T theta, T g, T* state, const Factors<T>& f) {
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
  struct Factors {
    T first, gradient, decay, beta1, new_m, beta2, new_s, step, root, epsilon;
  };

  // `step` is t, this step included.
  template <class T>
  static RNNKERNELS_INLINE Factors<T> factors(const Settings& s, double c, double step) {
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
  static RNNKERNELS_INLINE T update(T theta, T g, T* state, const Factors<T>& f) {
    g = g * f.first * f.gradient;
    // The first form has no error where g = m, however little 1 - b1 has of its digits. The second has
    // none of m's where b1 is small, however large m was.
    state[0] = f.new_m < T(0.5) ? state[0] + f.new_m * (g - state[0]) : f.beta1 * state[0] + f.new_m * g;
    state[1] = f.beta2 * state[1] + f.new_s * (g * g);
    const T scale = root(state[1]) * f.root + f.epsilon;
    return f.decay * theta - f.step * (state[0] / scale);
  }
};

}  // namespace rnnkernels
