// The CPU's optimizer kernels without torch: every instruction set that runs here, over rules, norms, element
// types, sizes and numbers of threads, one step each against plain loops in double. All memory has exactly
// the size that the kernels may touch; see test_cpu.cpp.
#include <tuple>

#include "cpu/kernels.h"
#include "optimizers.h"

namespace {

using Step = decltype(cpu::Kernels::nesterov);

Scalar on_host(double x, ElementType) { return {x}; }

template <class Rule>
void check(const Case& c, unsigned seed, const cpu::InstructionSet& set, Step step,
           const typename Rule::Settings* settings) {
  const Model before = make_model(c, 9 * kChunkElements + 77, seed);
  const double norm = plain_norm(before, c.p),
               unit = c.magnitude == 1 || c.magnitude == 0 ? 1 : 3 * c.magnitude;
  Outcome first;
  for (const auto& [promised, real, may_wait] :
       {std::tuple{1, 1, true}, {2, 2, true}, {3, 3, true}, {4, 2, true}, {5, 1, true}, {3, 3, false}}) {
    real_threads = real;
    const cpu::Threads threads{promised, may_wait, &run_threads};
    const std::string where = std::string(Rule::kName) + " " + c.text() + " on " + set.name + ", " +
                              std::to_string(promised) + " threads promised, " + std::to_string(real) +
                              " running: ";
    Outcome outcome;
    outcome.model = before;
    with_power_sum(c, unit, outcome.model, [&](const PowerSum& problem) {
      std::vector<double> partial(problem.chunks);
      outcome.sum = set.kernels->power_sum(problem, threads, partial.data());
    });
    with_step<Rule>(c, norm, settings, outcome, on_host, [&](const StepProblem& problem) {
      std::vector<double> partial(problem.chunks);
      const bool taken = step(problem, threads, partial.data());
      expect(taken == !is_skipped(c, norm), where + "whether the step was taken");
    });
    if (promised == 1) {
      first = outcome;
      check_outcome<Rule>(c, before, norm, unit, outcome, settings, where);
    } else {
      expect(outcome == first, where + "same bits as one thread");
    }
  }
}

}  // namespace

// test_optimizer [n]: runs every n-th case only (a sanitizer makes them slow).
int main(int argc, char** argv) {
  Cases cases(argc, argv);
  int sets = 0;
  const auto* set = cpu::instruction_sets(&sets);
  for (const Case& c : make_cases()) {
    if (!cases.takes_next()) continue;
    for (int s = 0; s < sets; ++s) {
      if (!set[s].runs_here()) continue;
      check<NesterovRule>(c, cases.index(), set[s], set[s].kernels->nesterov, kNesterov);
      check<AdamWRule>(c, cases.index(), set[s], set[s].kernels->adamw, kAdamW);
    }
  }
  return cases.finish();
}
