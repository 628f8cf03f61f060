// The parts that both tests of the optimizers use: cases, their tensors, and plain loops in double as the
// reference.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "arrays.h"
#include "core/optimizer.h"
#include "native.h"

using namespace rnnkernels;

namespace {

constexpr double kStep = 3;  // AdamW's t

// --- One case ----------------------------------------------------------------------------------------

struct Tensors {
  ElementType type, grad_type;
  int64_t size;
  int group;
  Array param, grad, state[2], master;
  bool has_master;
  float step_count = kStep - 1;
  bool operator==(const Tensors& o) const {
    return param == o.param && state[0] == o.state[0] && state[1] == o.state[1] && master == o.master;
  }
};
using Model = std::vector<Tensors>;

struct Case {
  double p = 2;
  double max_norm = 1;
  double magnitude = 1;  // of the gradients
  double scale = 1;
  bool masters = false;
  double bad = 0;  // if not 0, the value of one element of one gradient
  NonFinite nonfinite = NonFinite::kSkip;
  bool found_inf = false, norm_is_known = false;
  std::vector<ElementType> types;
  // max_norm of a group. The second group does not clip, unless its gradients' squares are too large for a
  // float.
  double limit(int group) const { return group == 0 || magnitude > 1e15 ? max_norm : kInf; }
  std::string text() const {
    char line[160];
    std::snprintf(line, sizeof(line), "%s%s p=%g max_norm=%g |g|~%g scale=%g bad=%g%s%s%s%s",
                  format_of(types[0]).name, types.size() > 1 ? "..." : "", p, max_norm, magnitude, scale, bad,
                  nonfinite == NonFinite::kApply ? " apply" : "", masters ? " masters" : "",
                  found_inf ? " found_inf" : "", norm_is_known ? " norm known" : "");
    return line;
  }
};

Model make_model(const Case& c, int64_t largest, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Model model;
  const auto add = [&](ElementType type, ElementType grad_type, int64_t size) {
    const auto computed = type == ElementType::kFloat64 ? type : ElementType::kFloat32;
    const bool has_master = c.masters && type != computed;
    Tensors t{type,
              grad_type,
              size,
              int(model.size() % 2),
              Array(type, size),
              Array(grad_type, size),
              {Array(computed, size), Array(computed, size)},
              Array(computed, has_master ? size : 0),
              has_master};
    for (int64_t i = 0; i < size; ++i) {
      const double theta = normal(random);
      t.param.set(i, theta);
      // Of those that differ, the parameters have been written since the last step.
      if (has_master) t.master.set(i, i % 3 == 1 ? normal(random) : theta);
      t.grad.set(i, c.magnitude * std::clamp(normal(random), -3.0, 3.0));
      // Zero where gradients are huge, so that the clipped gradients are not negligible beside the states.
      t.state[0].set(i, c.magnitude > 1e15 ? 0 : 0.1 * normal(random));
      t.state[1].set(i, c.magnitude > 1e15 ? 0 : std::abs(normal(random)));
    }
    model.push_back(std::move(t));
  };
  // Sizes below a vector, of a chunk, of one more, and of several chunks; empty tensors first, in between and
  // last.
  for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{37}, kChunkElements, int64_t{0}, int64_t{0},
                             kChunkElements + 1, largest}) {
    for (const ElementType type : c.types) {
      add(type, type, size);
      if (is_half(type)) add(type, ElementType::kFloat32, size == 0 ? 0 : size / 2 + 1);
    }
  }
  if (c.bad != 0) model.back().grad.set(model.back().size / 2, c.bad);
  add(c.types[0], c.types[0], 0);
  return model;
}

// --- Plain loops -------------------------------------------------------------------------------------

double plain_norm(const Model& model, double p) {
  long double largest = 0, sum = 0;
  for (const Tensors& t : model) {
    for (int64_t i = 0; i < t.size; ++i) {
      const long double g = std::abs(t.grad.get(i));
      if (std::isnan(g)) return kNaN;
      largest = std::max(largest, g);
      sum += p == kInf ? 0 : std::pow(g, static_cast<long double>(p));  // its exponent has 15 bits
    }
  }
  return double(p == kInf || std::isinf(largest) ? largest : std::pow(sum, 1 / static_cast<long double>(p)));
}

constexpr NesterovRule::Settings kNesterov[2] = {{0.1, 0.9, 0.5, 0.01}, {0.05, 0.7, 0.0, 0.0}};
constexpr AdamWRule::Settings kAdamW[2] = {{0.1, 0.9, 0.99, 1e-8, 0.1}, {0.05, 0.5, 0.9, 1e-6, 0.0}};

// The rules for one element: return the new theta and change the states. `summand` becomes the largest
// magnitude of the terms that state[0] is the sum of.
double plain_rule(const NesterovRule::Settings& s, double theta, double g, double* state, double* summand) {
  const double before = state[0];
  *summand = std::max(
      {std::abs(s.previous_momentum * before), std::abs(s.lr * g), std::abs(s.lr * s.weight_decay * theta)});
  g += s.weight_decay * theta;
  state[0] = s.previous_momentum * before - s.lr * g;
  return theta + s.momentum * s.previous_momentum * before - (1 + s.momentum) * s.lr * g;
}
double plain_rule(const AdamWRule::Settings& s, double theta, double g, double* state, double* summand) {
  *summand = std::max(std::abs(s.beta1 * state[0]), std::abs((1 - s.beta1) * g));
  state[0] = s.beta1 * state[0] + (1 - s.beta1) * g;
  state[1] = s.beta2 * state[1] + (1 - s.beta2) * g * g;
  const double root = std::sqrt(state[1] / (1 - std::pow(s.beta2, kStep))) + s.epsilon;
  return (1 - s.lr * s.weight_decay) * theta - s.lr * state[0] / (1 - std::pow(s.beta1, kStep)) / root;
}

// The largest error of some values, relative to the largest of the expected values and of the terms that they
// are sums of: the only element of a tensor may be the small difference of two terms.
struct Comparison {
  double error = 0, largest = 0;
  bool same_infinities = true;
  void add(double got, double wanted, double summand = 0) {
    if (!std::isfinite(wanted) || !std::isfinite(got)) {
      same_infinities = same_infinities && (std::isnan(wanted) ? std::isnan(got) : got == wanted);
      return;
    }
    error = std::max(error, std::abs(got - wanted));
    largest = std::max({largest, std::abs(wanted), std::isfinite(summand) ? std::abs(summand) : 0});
  }
  bool within(double tolerance) const { return same_infinities && error <= tolerance * largest; }
};

// The master copy's value if the parameter is that value rounded, else the parameter's.
double start_of_element(const Tensors& t, int64_t i) {
  if (!t.has_master) return t.param.get(i);
  const bool kept = half_bits(t.type, t.master.get(i)) == half_bits(t.type, t.param.get(i));
  return kept ? t.master.get(i) : t.param.get(i);
}

template <class Rule>
void check_update(const Model& before, const Model& after, const Case& c, double norm,
                  const typename Rule::Settings* settings, const std::string& where) {
  for (size_t k = 0; k < before.size(); ++k) {
    const Tensors &b = before[k], &a = after[k];
    const double tolerance = b.type == ElementType::kFloat64 ? 1e-14 : 1e-6;
    const double rounding = is_half(b.type) ? std::ldexp(1.0, -format_of(b.type).fraction_bits) : tolerance;
    const double limit = c.limit(b.group), sign = b.group == 0 ? 1 : -1;
    double coefficient = limit == kInf ? 1.0 : limit / (norm / c.scale + 1e-6);
    if (coefficient > 1) coefficient = 1;
    Comparison states[2], params, masters;
    bool rounded_once = true;
    for (int64_t i = 0; i < b.size; ++i) {
      double state[2] = {b.state[0].get(i), b.state[1].get(i)};
      const double theta = start_of_element(b, i);
      const double g = sign * coefficient / c.scale * b.grad.get(i);
      double summand = 0;
      const double wanted = plain_rule(settings[b.group], theta, g, state, &summand);
      for (int n = 0; n < Rule::kStates; ++n)
        states[n].add(a.state[n].get(i), state[n], n == 0 ? summand : 0);
      params.add(a.param.get(i), wanted, theta);
      if (!b.has_master) continue;
      Array rounded(b.type, 1), got(b.type, 1);
      rounded.set(0, a.master.get(i));
      got.set(0, a.param.get(i));
      masters.add(a.master.get(i), wanted, theta);
      rounded_once = rounded_once && rounded == got;
    }
    const bool good = states[0].within(tolerance) && states[1].within(tolerance) && params.within(rounding) &&
                      masters.within(tolerance) && rounded_once;
    expect(good, where + "tensor " + std::to_string(k) + " of " + std::to_string(b.size));
  }
}

// --- One step ----------------------------------------------------------------------------------------

// A group's settings as callers list them, by SettingIndex.
std::vector<double> listed(const NesterovRule::Settings& s, double max_norm) {
  return {s.lr, max_norm, s.weight_decay, s.momentum};
}
std::vector<double> listed(const AdamWRule::Settings& s, double max_norm) {
  return {s.lr, max_norm, s.weight_decay, s.beta1, s.beta2, s.epsilon};
}

template <class Rule>
constexpr bool kHasMomentum = std::is_same_v<Rule, NesterovRule>;
double previous_momentum(const NesterovRule::Settings& s) { return s.previous_momentum; }
double previous_momentum(const AdamWRule::Settings&) { return 0; }

// Everything that a step and a sum of powers write.
struct Outcome {
  Model model;
  double record[kRecordFields] = {-1, 3, 5, -1};
  double previous[2] = {};
  double sum = 0;
  bool operator==(const Outcome& o) const {
    return model == o.model && std::memcmp(record, o.record, sizeof(record)) == 0 &&
           std::memcmp(previous, o.previous, sizeof(previous)) == 0 &&
           std::bit_cast<uint64_t>(sum) == std::bit_cast<uint64_t>(o.sum);
  }
};

std::vector<Leaf> leaves_of(Model& model, int64_t* chunks) {
  std::vector<Leaf> leaves;
  *chunks = 0;
  for (Tensors& t : model) {
    Leaf leaf;
    leaf.param = t.param.data();
    leaf.grad = t.grad.data();
    for (int i = 0; i < 2; ++i) leaf.state[i] = t.state[i].data();
    leaf.master = t.has_master ? t.master.data() : nullptr;
    leaf.step_count = &t.step_count;
    leaf.size = t.size;
    leaf.first_chunk = *chunks;
    leaf.group = t.group;
    leaf.type = t.type;
    leaf.grad_type = t.grad_type;
    leaves.push_back(leaf);
    *chunks += chunks_of(t.size);
  }
  return leaves;
}

// Calls run(problem) with one step over the model of `outcome`. scalar(x, type) makes a Scalar of x.
template <class Rule, class MakeScalar, class Run>
void with_step(const Case& c, double norm, const typename Rule::Settings* settings, Outcome& outcome,
               MakeScalar&& scalar, Run&& run) {
  StepProblem problem;
  const std::vector<Leaf> leaves = leaves_of(outcome.model, &problem.chunks);
  GroupProblem groups[2];
  for (int i = 0; i < 2; ++i) {
    int n = 0;
    for (const double x : listed(settings[i], c.limit(i))) {
      groups[i].settings[n++] = scalar(x, ElementType::kFloat64);
    }
    outcome.previous[i] = previous_momentum(settings[i]);
    if (kHasMomentum<Rule>) groups[i].previous_momentum = outcome.previous + i;
    groups[i].maximize = i == 1;
  }
  problem.leaves = leaves.data();
  problem.count = leaves.size();
  problem.groups = groups;
  problem.group_count = 2;
  problem.norm_type = c.p;
  problem.grad_scale = scalar(c.scale, ElementType::kFloat32);
  problem.found_inf = scalar(c.found_inf, ElementType::kBFloat16);
  problem.norm_is_known = c.norm_is_known;
  problem.norm = scalar(norm, ElementType::kFloat64);
  problem.nonfinite = c.nonfinite;
  problem.record = outcome.record;
  run(problem);
}

// Calls run(problem) with the sum of powers over the gradients of a model.
template <class Run>
void with_power_sum(const Case& c, double unit, Model& model, Run&& run) {
  PowerSum problem;
  const std::vector<Leaf> leaves = leaves_of(model, &problem.chunks);
  problem.leaves = leaves.data();
  problem.count = leaves.size();
  problem.norm_type = c.p;
  problem.unit = unit;
  run(problem);
}

// Whether a step is skipped, from its norm.
bool is_skipped(const Case& c, double norm) {
  return c.found_inf || (!std::isfinite(norm) && c.nonfinite != NonFinite::kApply);
}

template <class Rule>
void check_outcome(const Case& c, const Model& before, double norm, double unit, const Outcome& o,
                   const typename Rule::Settings* settings, const std::string& where) {
  const bool finite = std::isfinite(norm), skipped = is_skipped(c, norm);
  const bool raises = skipped && !c.found_inf && c.nonfinite == NonFinite::kRaise;
  const double got = o.record[kNorm] * c.scale, of_sum = c.p == kInf ? o.sum : norm_of(o.sum, c.p, unit);
  expect(finite ? std::abs(got - norm) <= 1e-13 * norm : !std::isfinite(got), where + "norm");
  expect(finite ? std::abs(of_sum - norm) <= 1e-13 * norm : !std::isfinite(of_sum), where + "sum of powers");
  expect(o.record[kSkipped] == 3 + (skipped && !raises), where + "steps skipped");
  expect(o.record[kTaken] == 5 + !skipped, where + "steps taken");
  expect(o.record[kRaises] == raises, where + "whether to raise");
  for (int i = 0; i < 2 && kHasMomentum<Rule>; ++i) {
    const double wanted = skipped ? previous_momentum(settings[i]) : listed(settings[i], 0).back();
    expect(o.previous[i] == wanted, where + "previous momentum for the next step");
  }
  for (const Tensors& t : o.model) expect(t.step_count == kStep - skipped, where + "count of steps");
  if (skipped) {
    expect(o.model == before, where + "nothing written");
  } else {
    check_update<Rule>(before, o.model, c, norm, settings, where);
  }
}

std::vector<Case> make_cases() {
  using enum ElementType;
  const std::vector<ElementType> all = {kFloat32, kFloat64, kBFloat16, kFloat16};
  std::vector<Case> cases;
  for (const double p : {1.0, 2.0, 3.0, kInf}) {
    for (const Format& f : kFormats) cases.push_back({.p = p, .types = {f.type}});
    cases.push_back({.p = p, .max_norm = 1e9, .masters = true, .types = all});
    cases.push_back({.p = p, .max_norm = kInf, .scale = 16, .types = all});
    cases.push_back({.p = p, .norm_is_known = true, .types = all});
    cases.push_back({.p = p, .found_inf = true, .types = all});
    for (const double bad : {kNaN, kInf, -kInf}) {
      for (const NonFinite what : {NonFinite::kSkip, NonFinite::kApply, NonFinite::kRaise}) {
        cases.push_back({.p = p, .masters = true, .bad = bad, .nonfinite = what, .types = all});
      }
    }
    // Powers beyond float64's range on both sides; clip coefficients below float's range.
    cases.push_back({.p = p, .max_norm = 1, .magnitude = 1e290, .types = {kFloat64}});
    cases.push_back({.p = p, .max_norm = 1e-210, .magnitude = 1e-200, .types = {kFloat64}});
    cases.push_back({.p = p, .magnitude = 1e38, .types = {kFloat32, kBFloat16}});
    cases.push_back({.p = p, .magnitude = 0, .types = all});
  }
  cases.push_back({.p = 100, .max_norm = 1e-5, .magnitude = 1e-4, .types = {kFloat32}});
  cases.push_back({.p = 20, .magnitude = 1e30, .types = {kFloat32}});
  return cases;
}

}  // namespace
