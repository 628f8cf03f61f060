// The parts that both tests of NADE use: cases, their arrays, and plain loops in double as the reference.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/nade.h"
#include "native.h"

using namespace rnnkernels;

namespace {

enum class Ones { kNone, kFew, kHalf, kAll };
const char* const kOnesNames[] = {"no ones", "few ones", "half ones", "all ones"};

// The incoming gradients.
enum Grads { kOfLogProb = 1, kOfLogits = 2 };

struct Case {
  ElementType type;
  int64_t rows, visible, hidden;
  Ones ones;
  int grads;          // kOfLogProb, kOfLogits, or both
  bool of_rows_only;  // only d_visible_bias is wanted

  std::string text() const {
    char line[200];
    std::snprintf(line, sizeof(line), "float%d N%ld D%ld H%ld, %s, gradients %d%s",
                  type == ElementType::kFloat32 ? 32 : 64, long(rows), long(visible), long(hidden),
                  kOnesNames[static_cast<int>(ones)], grads, of_rows_only ? ", d_visible_bias alone" : "");
    return line;
  }
};

// Calls check(case, zero) with a zero of the case's type, for the cases that the test runs.
template <class Check>
void for_cases(std::initializer_list<std::array<int64_t, 3>> shapes, Cases& cases, const Check& check) {
  for (const auto& [rows, visible, hidden] : shapes) {
    for (const ElementType type : {ElementType::kFloat32, ElementType::kFloat64}) {
      for (const Ones ones : {Ones::kNone, Ones::kFew, Ones::kHalf, Ones::kAll}) {
        if (!cases.takes_next()) continue;
        const int index = cases.index();
        const Case c{type, rows, visible, hidden, ones, 1 + index % 3, index % 7 == 0};
        type == ElementType::kFloat32 ? check(c, float()) : check(c, double());
      }
    }
  }
}

// --- Arrays, each with exactly the elements that a kernel may touch ----------------------------------

template <class T>
struct Data {
  std::vector<uint8_t> v;
  std::vector<T> visible_bias, hidden_bias, encoder, decoder, uniform, grad_log_prob, grad_logits;
};

template <class T>
Data<T> make_data(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const auto drawn = [&](int64_t n, double scale) {
    std::vector<T> x(n);
    for (T& each : x) each = static_cast<T>(scale * normal(random));
    return x;
  };
  const double fractions[] = {0, 0.05, 0.5, 1};
  const int64_t units = c.rows * c.visible, weights = c.visible * c.hidden;
  Data<T> data;
  for (int64_t i = 0; i < units; ++i) {
    data.v.push_back(uniform(random) < fractions[static_cast<int>(c.ones)]);
    data.uniform.push_back(static_cast<T>(0.999 * uniform(random)));
  }
  // With these biases, samples have about as many ones as v.
  data.visible_bias = drawn(units, 1);
  for (T& b : data.visible_bias) b += static_cast<T>(std::array{-9, -3, 0, 9}[static_cast<int>(c.ones)]);
  data.hidden_bias = drawn(c.rows * c.hidden, 1);
  data.encoder = drawn(weights, 0.3);
  data.decoder = drawn(weights, 1 / std::sqrt(double(c.hidden)));
  data.grad_log_prob = drawn(c.rows, 1);
  data.grad_logits = drawn(units, 1);
  return data;
}

template <class T>
struct Results {
  std::vector<T> logits, log_prob, drawn_logits, drawn_log_prob;
  std::vector<uint8_t> drawn;
  std::vector<T> d_visible_bias, d_hidden_bias, d_encoder, d_decoder;
};

template <class T>
std::vector<T> unset(int64_t n) {
  return std::vector<T>(n, std::numeric_limits<T>::quiet_NaN());
}

template <class T>
Results<T> empty_results(const Case& c) {
  const int64_t units = c.rows * c.visible, weights = c.visible * c.hidden;
  const int64_t others = c.of_rows_only ? 0 : 1;
  return {unset<T>(units),
          unset<T>(c.rows),
          unset<T>(units),
          unset<T>(c.rows),
          std::vector<uint8_t>(units, 2),
          unset<T>(units),
          unset<T>(others * c.rows * c.hidden),
          unset<T>(others * weights),
          unset<T>(others * weights)};
}

template <class T>
Nade nade_of(const Case& c, const Data<T>& data) {
  return {
      c.type, c.rows, c.visible, c.hidden, data.hidden_bias.data(), data.encoder.data(), data.decoder.data()};
}

template <class T>
NadeForward forward_problem(const Case& c, const Data<T>& data, Results<T>& r) {
  NadeForward problem{nade_of(c, data)};
  problem.visible_bias = data.visible_bias.data();
  problem.v = data.v.data();
  problem.logits = r.logits.data();
  problem.log_prob = r.log_prob.data();
  return problem;
}

template <class T>
NadeForward drawn_problem(const Case& c, const Data<T>& data, Results<T>& r) {
  NadeForward problem{nade_of(c, data)};
  problem.visible_bias = data.visible_bias.data();
  problem.uniform = data.uniform.data();
  problem.drawn = r.drawn.data();
  problem.logits = r.drawn_logits.data();
  problem.log_prob = r.drawn_log_prob.data();
  return problem;
}

// The backward of forward_problem, whose results are in `r`.
template <class T>
NadeBackward backward_problem(const Case& c, const Data<T>& data, Results<T>& r) {
  NadeBackward problem{nade_of(c, data)};
  problem.v = data.v.data();
  problem.logits = r.logits.data();
  if (c.grads & kOfLogProb) problem.grad_log_prob = data.grad_log_prob.data();
  if (c.grads & kOfLogits) problem.grad_logits = data.grad_logits.data();
  problem.d_visible_bias = r.d_visible_bias.data();
  if (c.of_rows_only) return problem;
  problem.d_hidden_bias = r.d_hidden_bias.data();
  problem.d_encoder = r.d_encoder.data();
  problem.d_decoder = r.d_decoder.data();
  return problem;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
template <class T>
bool same_bits(const Results<T>& a, const Results<T>& b) {
  return same_bits(a.logits, b.logits) && same_bits(a.log_prob, b.log_prob) && same_bits(a.drawn, b.drawn) &&
         same_bits(a.drawn_logits, b.drawn_logits) && same_bits(a.drawn_log_prob, b.drawn_log_prob) &&
         same_bits(a.d_visible_bias, b.d_visible_bias) && same_bits(a.d_hidden_bias, b.d_hidden_bias) &&
         same_bits(a.d_encoder, b.d_encoder) && same_bits(a.d_decoder, b.d_decoder);
}

// --- Plain loops -------------------------------------------------------------------------------------

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

template <class T>
struct Expected {
  std::vector<double> logits, log_prob, d_visible_bias, d_hidden_bias, d_encoder, d_decoder;

  Expected(const Case& c, const Data<T>& data, const std::vector<uint8_t>& v)
      : d_encoder(c.visible * c.hidden), d_decoder(c.visible * c.hidden), c_(c), data_(data), v_(v) {
    for (int64_t n = 0; n < c.rows; ++n) add_row(n);
  }

 private:
  const Case& c_;
  const Data<T>& data_;
  const std::vector<uint8_t>& v_;

  void add_row(int64_t n) {
    const int64_t D = c_.visible, H = c_.hidden;
    std::vector<double> a(data_.hidden_bias.begin() + n * H, data_.hidden_bias.begin() + (n + 1) * H);
    std::vector<std::vector<double>> h(D, std::vector<double>(H));
    std::vector<double> dl(D), da(H);
    double log_prob = 0;
    for (int64_t i = 0; i < D; ++i) {
      const double one = v_[n * D + i];
      double l = data_.visible_bias[n * D + i];
      for (int64_t j = 0; j < H; ++j) {
        h[i][j] = sigmoid(a[j]);
        l += data_.decoder[i * H + j] * h[i][j];
        a[j] += one * data_.encoder[i * H + j];
      }
      logits.push_back(l);
      const double sign = 1 - 2 * one;  // so that nothing cancels where p is near 0 or 1
      log_prob -= softplus(sign * l);
      if (c_.grads & kOfLogProb) dl[i] -= data_.grad_log_prob[n] * sign * sigmoid(sign * l);
      if (c_.grads & kOfLogits) dl[i] += data_.grad_logits[n * D + i];
    }
    this->log_prob.push_back(log_prob);
    d_visible_bias.insert(d_visible_bias.end(), dl.begin(), dl.end());
    for (int64_t i = D - 1; i >= 0; --i) {
      for (int64_t j = 0; j < H; ++j) {
        d_encoder[i * H + j] += v_[n * D + i] * da[j];
        d_decoder[i * H + j] += dl[i] * h[i][j];
        da[j] += dl[i] * data_.decoder[i * H + j] * h[i][j] * (1 - h[i][j]);
      }
    }
    d_hidden_bias.insert(d_hidden_bias.end(), da.begin(), da.end());
  }
};

// Errors are relative to the largest magnitude.
template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& wanted, const std::string& what) {
  const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-13;
  double largest = 1e-30, error = got.size() == wanted.size() ? 0 : 1e30;
  for (const double x : wanted) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < std::min(got.size(), wanted.size()); ++i) {
    const double each = std::abs(got[i] - wanted[i]);
    error = each <= error ? error : each;  // keeps a NaN
  }
  expect(error <= tolerance * largest, what);
}

template <class T>
void check_results(const Case& c, const Data<T>& data, const Results<T>& r, const std::string& where) {
  const Expected<T> expected(c, data, data.v), drawn(c, data, r.drawn);
  expect_near(r.logits, expected.logits, where + "logits");
  expect_near(r.log_prob, expected.log_prob, where + "log_prob");
  expect_near(r.d_visible_bias, expected.d_visible_bias, where + "d_visible_bias");
  if (!c.of_rows_only) {
    expect_near(r.d_hidden_bias, expected.d_hidden_bias, where + "d_hidden_bias");
    expect_near(r.d_encoder, expected.d_encoder, where + "d_encoder");
    expect_near(r.d_decoder, expected.d_decoder, where + "d_decoder");
  }
  expect_near(r.drawn_logits, drawn.logits, where + "logits of the sample");
  expect_near(r.drawn_log_prob, drawn.log_prob, where + "log_prob of the sample");
  for (int64_t i = 0; i < c.rows * c.visible; ++i) {
    const double p = sigmoid(r.drawn_logits[i]), u = data.uniform[i];
    // Where both are nearly the same, a rounding decides.
    const bool fits = std::abs(u - p) < 1e-6 ? r.drawn[i] <= 1 : r.drawn[i] == (u < p);
    if (!fits) return expect(false, where + "sample at " + std::to_string(i));
  }
}

}  // namespace
