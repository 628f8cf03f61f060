// Recurrences for the native tests: cases, data, plain loops in double as the reference, and the plain
// structs that engines read.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/cells.h"
#include "core/elements.h"
#include "core/problem.h"
#include "native.h"

using namespace rnnkernels;

namespace {

// --- One case ----------------------------------------------------------------------------------------

struct Case {
  ElementType type;
  int nonlinearity;
  Form form;
  int64_t networks, steps, batch, hidden;
  bool packed, reverse, with_h0, per_unit_decay;
  bool keeps_decay_slope;  // in half precision only

  std::string text() const {
    char line[200];
    constexpr const char* kTypes[] = {"float32", "float64", "bfloat16", "float16"};
    std::snprintf(line, sizeof(line), "%s %s %s G%ld T%ld B%ld H%ld%s%s%s%s%s", kTypes[int(type)],
                  name_at(nonlinearity, Nonlinearities{}), form == Form::kRate ? "rate" : "current",
                  long(networks), long(steps), long(batch), long(hidden), packed ? " packed" : "",
                  reverse ? " reverse" : "", with_h0 ? " h0" : "", per_unit_decay ? " [H]" : "",
                  keeps_decay_slope ? " for the decay" : "");
    return line;
  }
};

// Sequences are stored as S; the engine computes in ComputeType<S>.
template <class S>
struct Data {
  std::vector<int64_t> rows, offsets;
  int64_t total = 0;
  std::vector<S> pre, h0, grad_output, grad_h_n;
  std::vector<ComputeType<S>> weight, decay;
};

template <class S>
Data<S> make_data(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(0, 0.95);
  using T = ComputeType<S>;
  const auto draw = [&](auto& values, int64_t n, double scale) {
    values.resize(n);
    for (auto& x : values) assign(&x, static_cast<T>(scale * normal(random)));
  };
  Data<S> data;
  int64_t n = c.batch;
  for (int64_t t = 0; t < c.steps; ++t) {
    data.rows.push_back(n);
    data.offsets.push_back(data.total);
    data.total += n;
    if (c.packed && n > 1) n -= random() % 2 * (random() % n);
  }
  draw(data.pre, c.networks * data.total * c.hidden, 1);
  draw(data.h0, c.networks * c.batch * c.hidden, 1);
  draw(data.weight, c.networks * c.hidden * c.hidden, 1 / std::sqrt(double(c.hidden)));
  // A matrix has the values of the type of the sequences, in the wider type.
  for (T& w : data.weight) {
    S stored;
    assign(&stored, w);
    w = widen(stored);
  }
  data.decay.resize(c.per_unit_decay ? c.networks * c.hidden : c.networks);
  for (T& d : data.decay) d = static_cast<T>(uniform(random));
  draw(data.grad_output, data.pre.size(), 1);
  draw(data.grad_h_n, data.h0.size(), 1);
  return data;
}

template <class S>
struct Results {
  std::vector<S> output, h_n, activation, decay_slope, d_pre, d_h0, linear;
  std::vector<ComputeType<S>> d_decay;
  std::vector<uint32_t> active;
};

// --- Plain loops -------------------------------------------------------------------------------------

// f and f' are those of core/nonlinearities.h for a double; the Python tests check them.
template <class Fn>
double with_f(int nonlinearity, Fn&& fn) {
  double result = 0;
  with_cell(nonlinearity, Form::kRate, Nonlinearities{}, [&](auto cell) {
    using F = typename decltype(cell)::Nonlinearity;
    result = fn(F{});
  });
  return result;
}
double value(int nonlinearity, double z) {
  return with_f(nonlinearity, [&](auto f) { return f.value(z); });
}
double slope(int nonlinearity, double z) {
  return with_f(nonlinearity, [&](auto f) { return f.slope(f.value(z)); });
}
bool has_kink(int nonlinearity) {
  return with_f(nonlinearity, [](auto f) { return double(f.kBinarySlope); }) != 0;
}

// Also returns the smallest |z| (rate) or |h_{t-1}| (current). Where it is tiny, rounding may change the
// slope of a ReLU, and the gradients cannot be compared.
template <class S>
Results<double> plain(const Case& c, const Data<S>& data, double* smallest) {
  const int64_t H = c.hidden;
  Results<double> r;
  r.output.resize(data.pre.size());
  r.d_pre.resize(data.pre.size());
  r.h_n.assign(data.h0.size(), 0);
  for (const S& x : data.grad_h_n) r.d_h0.push_back(widen(x));
  r.d_decay.assign(data.h0.size(), 0);
  for (size_t i = 0; c.with_h0 && i < data.h0.size(); ++i) r.h_n[i] = widen(data.h0[i]);
  *smallest = 1e30;
  for (int64_t g = 0; g < c.networks; ++g) {
    const ComputeType<S>* w = data.weight.data() + g * H * H;
    const auto d_of = [&](int64_t i) { return double(data.decay[c.per_unit_decay ? g * H + i : g]); };
    double* state = r.h_n.data() + g * c.batch * H;
    std::vector<std::vector<double>> befores(c.steps), zs(c.steps);
    for (int64_t s = 0; s < c.steps; ++s) {
      const int64_t t = c.reverse ? c.steps - 1 - s : s, n = data.rows[t];
      befores[t].assign(state, state + n * H);
      zs[t].resize(n * H);
      for (int64_t b = 0; b < n; ++b) {
        for (int64_t i = 0; i < H; ++i) {
          const int64_t at = (g * data.total + data.offsets[t] + b) * H + i;
          double z = widen(data.pre[at]);
          for (int64_t k = 0; k < H; ++k) {
            const double h = befores[t][b * H + k];
            z += w[i * H + k] * (c.form == Form::kRate ? h : value(c.nonlinearity, h));
          }
          zs[t][b * H + i] = z;
          *smallest = std::min(*smallest, std::abs(c.form == Form::kRate ? z : befores[t][b * H + i]));
          const double y = c.form == Form::kRate ? value(c.nonlinearity, z) : z;
          r.output[at] = state[b * H + i] = d_of(i) * befores[t][b * H + i] + (1 - d_of(i)) * y;
        }
      }
    }
    double* carried = r.d_h0.data() + g * c.batch * H;
    for (int64_t s = c.steps - 1; s >= 0; --s) {
      const int64_t t = c.reverse ? c.steps - 1 - s : s, n = data.rows[t];
      for (int64_t b = 0; b < n; ++b) {
        std::vector<double> u(H), delta(H);
        for (int64_t i = 0; i < H; ++i) {
          const int64_t at = (g * data.total + data.offsets[t] + b) * H + i;
          const double f_slope = c.form == Form::kRate ? slope(c.nonlinearity, zs[t][b * H + i]) : 1;
          delta[i] = widen(data.grad_output[at]) + carried[b * H + i];
          r.d_pre[at] = u[i] = (1 - d_of(i)) * f_slope * delta[i];
          const double change = befores[t][b * H + i] - r.output[at];
          r.d_decay[(g * c.batch + b) * H + i] +=
              delta[i] * (c.keeps_decay_slope ? change / (1 - d_of(i)) : change);
        }
        for (int64_t k = 0; k < H; ++k) {
          double sum = 0;
          for (int64_t i = 0; i < H; ++i) sum += w[i * H + k] * u[i];
          if (c.form == Form::kCurrent) sum *= slope(c.nonlinearity, befores[t][b * H + k]);
          carried[b * H + k] = d_of(k) * delta[k] + sum;
        }
      }
    }
  }
  return r;
}

// The linear recurrence with pre as drive, grad_output as alpha and, where there is an h0, pre as beta.
template <class S>
std::vector<double> plain_linear(const Case& c, const Data<S>& data) {
  const int64_t H = c.hidden;
  std::vector<double> y(data.pre.size());
  for (int64_t g = 0; g < c.networks; ++g) {
    std::vector<double> state(c.batch * H);
    for (size_t i = 0; c.with_h0 && i < state.size(); ++i) state[i] = widen(data.h0[g * c.batch * H + i]);
    for (int64_t s = 0; s < c.steps; ++s) {
      const int64_t t = c.reverse ? c.steps - 1 - s : s;
      for (int64_t b = 0; b < data.rows[t]; ++b) {
        const int64_t row = (g * data.total + data.offsets[t] + b) * H;
        const std::vector<double> before(state.begin() + b * H, state.begin() + (b + 1) * H);
        for (int64_t i = 0; i < H; ++i) {
          double sum = 0;
          for (int64_t k = 0; k < H; ++k) {
            sum += data.weight[(g * H + i) * H + k] * (c.with_h0 ? widen(data.pre[row + k]) : 1) * before[k];
          }
          const double d = data.decay[c.per_unit_decay ? g * H + i : g];
          y[row + i] = state[b * H + i] =
              d * before[i] + widen(data.grad_output[row + i]) * sum + widen(data.pre[row + i]);
        }
      }
    }
  }
  return y;
}

// --- Problems -------------------------------------------------------------------------------------

template <class S>
void fill_common(Recurrence& p, const Case& c, const Data<S>& data, Results<S>& r) {
  const int64_t H = c.hidden;
  p.type = c.type;
  p.nonlinearity = c.nonlinearity;
  p.form = c.form;
  p.networks = c.networks;
  p.hidden = H;
  p.layout.steps = c.steps;
  p.layout.batch = c.batch;
  p.layout.reverse = c.reverse;
  if (c.packed) {
    p.layout.rows = data.rows.data();
    p.layout.offsets = data.offsets.data();
  }
  p.weight = {data.weight.data(), H * H, H, 1};
  p.decay = data.decay.data();
  p.decay_network_stride = c.per_unit_decay ? H : 1;
  p.decay_stride = c.per_unit_decay ? 1 : 0;
  if (c.with_h0) p.h0 = {const_cast<S*>(data.h0.data()), c.batch * H, H};
  const int64_t words = (H + 31) / 32;
  p.saved.active = {r.active.data(), data.total * words, words};
  p.saved.activation = {r.activation.data(), data.total * H, H};
  if (c.keeps_decay_slope) p.saved.decay_slope = {r.decay_slope.data(), data.total * H, H};
}

template <class S>
Results<S> empty_results(const Case& c, const Data<S>& data) {
  Results<S> r;
  for (auto* sequence : {&r.output, &r.d_pre, &r.linear, &r.activation, &r.decay_slope}) {
    sequence->resize(data.pre.size());
  }
  r.active.assign(c.networks * data.total * ((c.hidden + 31) / 32), 0xdeadbeef);
  for (auto* rows : {&r.h_n, &r.d_h0}) rows->resize(data.h0.size());
  r.d_decay.resize(data.h0.size());
  return r;
}

template <class S>
Sequence sequence_of(const Case& c, const Data<S>& data, const std::vector<S>& v) {
  return {const_cast<S*>(v.data()), data.total * c.hidden, (c.packed ? 1 : c.batch) * c.hidden, c.hidden};
}
template <class E>
Rows rows_of(const Case& c, const std::vector<E>& v) {
  return {const_cast<E*>(v.data()), c.batch * c.hidden, c.hidden};
}

template <class S>
ForwardProblem forward_problem(const Case& c, const Data<S>& data, Results<S>& r) {
  ForwardProblem forward;
  fill_common(forward, c, data, r);
  forward.pre = sequence_of(c, data, data.pre);
  forward.output = sequence_of(c, data, r.output);
  forward.h_n = rows_of(c, r.h_n);
  return forward;
}

template <class S>
BackwardProblem backward_problem(const Case& c, const Data<S>& data, Results<S>& r) {
  BackwardProblem backward;
  fill_common(backward, c, data, r);
  backward.grad_output = sequence_of(c, data, data.grad_output);
  backward.grad_h_n = rows_of(c, data.grad_h_n);
  backward.output = sequence_of(c, data, r.output);
  backward.d_pre = sequence_of(c, data, r.d_pre);
  backward.d_h0 = rows_of(c, r.d_h0);
  backward.d_decay = rows_of(c, r.d_decay);
  return backward;
}

// See plain_linear.
template <class S>
LinearProblem linear_problem(const Case& c, const Data<S>& data, Results<S>& r) {
  LinearProblem linear;
  fill_common(linear, c, data, r);
  linear.drive = sequence_of(c, data, data.pre);
  linear.alpha = sequence_of(c, data, data.grad_output);
  if (c.with_h0) linear.beta = sequence_of(c, data, data.pre);
  linear.output = sequence_of(c, data, r.linear);
  return linear;
}

template <class S>
double difference(const std::vector<S>& a, const std::vector<double>& b, double least) {
  double worst = 0, largest = least;
  for (size_t i = 0; i < a.size(); ++i) {
    const double found = widen(a[i]);
    worst = std::max(worst, std::isnan(found) ? 1e9 : std::abs(found - b[i]));
    largest = std::max(largest, std::abs(b[i]));
  }
  return worst / largest;
}

template <class E>
bool same_bits(const std::vector<E>& a, const std::vector<E>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(E)) == 0);
}

template <class S>
bool same_bits(const Results<S>& a, const Results<S>& b) {
  return same_bits(a.output, b.output) && same_bits(a.h_n, b.h_n) && same_bits(a.d_pre, b.d_pre) &&
         same_bits(a.d_h0, b.d_h0) && same_bits(a.d_decay, b.d_decay) && same_bits(a.active, b.active) &&
         same_bits(a.activation, b.activation) && same_bits(a.decay_slope, b.decay_slope) &&
         same_bits(a.linear, b.linear);
}

// The results of the plain loops, and the check of an engine's results against them. Errors are relative to
// the largest magnitude of a result, but at least to `least`: a rounding, to half precision or in a product,
// has an error of the size of its inputs, even if the result is a small difference of them.
template <class S>
class Expected {
 public:
  Expected(const Case& c, const Data<S>& data, double least = sizeof(S) == 2 ? 1 : 1e-3)
      : tolerance_(kTolerances[int(c.type)]),
        least_(least),
        results_(plain(c, data, &smallest_)),
        linear_(plain_linear(c, data)) {
    compares_gradients_ = !has_kink(c.nonlinearity) || smallest_ > kSmallest[int(c.type)];
  }

  void check(const Results<S>& r, const std::string& where) const {
    near(r.output, results_.output, where + "output");
    near(r.h_n, results_.h_n, where + "h_n");
    near(r.linear, linear_, where + "output of the linear recurrence");
    if (!compares_gradients_) return;
    near(r.d_pre, results_.d_pre, where + "d_pre");
    near(r.d_h0, results_.d_h0, where + "d_h0");
    near(r.d_decay, results_.d_decay, where + "d_decay");
  }

 private:
  // By element type: float32, float64, bfloat16, float16.
  static constexpr double kTolerances[] = {2e-5, 1e-13, 2e-2, 2e-3}, kSmallest[] = {1e-5, 1e-12, 2e-2, 2e-3};
  double tolerance_, least_, smallest_ = 0;
  Results<double> results_;
  std::vector<double> linear_;
  bool compares_gradients_ = false;

  template <class E>
  void near(const std::vector<E>& found, const std::vector<double>& expected,
            const std::string& where) const {
    expect(difference(found, expected, least_) < tolerance_, where);
  }
};

// Calls fn(case) for every form, nonlinearity and layout, for each of these shapes (G, T, B, H) and element
// types.
template <class Fn>
void for_cases(const std::vector<std::array<int64_t, 4>>& shapes, const std::vector<ElementType>& types,
               Fn&& fn) {
  for (const auto& [networks, steps, batch, hidden] : shapes) {
    for (const Form form : {Form::kRate, Form::kCurrent}) {
      for (int nonlinearity = 0; nonlinearity < count(Nonlinearities{}); ++nonlinearity) {
        for (int bits = 0; bits < 8; ++bits) {
          const bool packed = bits & 1, reverse = bits & 2, with_h0 = bits & 4;
          if (packed && (batch == 0 || steps == 0)) continue;
          const bool per_unit = (bits + hidden) % 2;
          for (const ElementType type : types) {
            const bool is_half = type == ElementType::kBFloat16 || type == ElementType::kFloat16;
            fn(Case{type, nonlinearity, form, networks, steps, batch, hidden, packed, reverse, with_h0,
                    per_unit, is_half && (bits / 2 + steps) % 2 == 1});
          }
        }
      }
    }
  }
}

}  // namespace
