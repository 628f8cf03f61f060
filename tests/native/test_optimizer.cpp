// The optimizer kernels without torch: every instruction set that runs here, over rules, norms, element
// types, sizes and numbers of threads, one step at a time against plain loops in double. All memory is of
// exactly the size that the kernels may touch; see test_cpu.cpp.
#include <bit>
#include <cstdlib>
#include <tuple>

#include "cpu/kernels.h"
#include "optimizers.h"

namespace {

template <class Rule>
Verdict run_step(Verdict (*kernel)(const OptimizerStep<Rule>&, const cpu::Threads&), const Case& c,
                 Model& model, double norm, const typename Rule::Settings* settings,
                 const cpu::Threads& threads) {
  OptimizerStep<Rule> step;
  const std::vector<Leaf> leaves = leaves_of(model, &step.chunks);
  std::vector<double> partial(step.chunks);
  const Group<typename Rule::Settings> groups[2] = {{settings[0], c.limit(0), false},
                                                    {settings[1], c.limit(1), true}};
  step.leaves = leaves.data();
  step.count = leaves.size();
  step.groups = groups;
  step.norm_type = c.p;
  step.scale = c.scale;
  step.nonfinite = c.nonfinite;
  step.found_inf = c.found_inf;
  if (c.norm_is_known) step.norm = &norm;
  step.partial = partial.data();
  return kernel(step, threads);
}

double run_power_sum(const cpu::Kernels& kernels, const Case& c, Model& model, double unit,
                     const cpu::Threads& threads) {
  PowerSum sum;
  const std::vector<Leaf> leaves = leaves_of(model, &sum.chunks);
  std::vector<double> partial(sum.chunks);
  sum.leaves = leaves.data();
  sum.count = leaves.size();
  sum.norm_type = c.p;
  sum.unit = unit;
  sum.partial = partial.data();
  return kernels.power_sum(sum, threads);
}

template <class Rule>
void check(const Case& c, unsigned seed, const cpu::InstructionSet& set,
           Verdict (*kernel)(const OptimizerStep<Rule>&, const cpu::Threads&),
           const typename Rule::Settings* settings) {
  const Model before = make_model(c, 9 * kChunkElements + 77, seed);
  const double norm = plain_norm(before, c.p),
               unit = c.magnitude == 1 || c.magnitude == 0 ? 1 : 3 * c.magnitude;
  const bool finite = std::isfinite(norm);
  Model first;
  double first_norm = 0, first_sum = 0;
  for (const auto& [promised, real, may_wait] :
       {std::tuple{1, 1, true}, {2, 2, true}, {3, 3, true}, {4, 2, true}, {5, 1, true}, {3, 3, false}}) {
    real_threads = real;
    const cpu::Threads threads{promised, may_wait, &run_threads};
    Model model = before;
    const std::string where = std::string(Rule::kStates == 1 ? "Nesterov " : "AdamW ") + c.text() + " on " +
                              set.name + ", " + std::to_string(promised) + " threads (" +
                              std::to_string(real) + " came): ";
    const Verdict verdict = run_step<Rule>(kernel, c, model, norm, settings, threads);
    const double sum = run_power_sum(*set.kernels, c, model, unit, threads);
    if (promised > 1) {
      expect(model == first && std::bit_cast<uint64_t>(verdict.norm) == std::bit_cast<uint64_t>(first_norm) &&
                 std::bit_cast<uint64_t>(sum) == std::bit_cast<uint64_t>(first_sum),
             where + "same bits as one thread");
      continue;
    }
    first = model;
    first_norm = verdict.norm;
    first_sum = sum;
    const double got = c.p == kInf ? sum : norm_of(sum, c.p, unit);
    expect(finite ? std::abs(verdict.norm * c.scale - norm) <= 1e-13 * norm : !std::isfinite(verdict.norm),
           where + "norm");
    expect(finite ? std::abs(got - norm) <= 1e-13 * norm : !std::isfinite(got), where + "sum of powers");
    expect(verdict.finite == finite, where + "finite");
    expect(verdict.skipped == (c.found_inf || (!finite && c.nonfinite != NonFinite::kApply)),
           where + "skipped");
    if (verdict.skipped) {
      expect(model == before, where + "nothing written");
    } else {
      check_update<Rule>(before, model, c, norm, settings, where);
    }
  }
}

}  // namespace

// test_optimizer [n]: every n-th case only (a sanitizer makes them slow).
int main(int argc, char** argv) {
  Cases cases(argc, argv);
  int sets = 0;
  const auto* set = cpu::instruction_sets(&sets);
  for (const Case& c : make_cases()) {
    if (!cases.takes_next()) continue;
    for (int s = 0; s < sets; ++s) {
      if (!set[s].runs_here()) continue;
      check<NesterovRule>(c, cases.number(), set[s], set[s].kernels->nesterov, kNesterov);
      check<AdamWRule>(c, cases.number(), set[s], set[s].kernels->adamw, kAdamW);
    }
  }
  return cases.finish();
}
