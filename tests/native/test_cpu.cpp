// The CPU kernels of the recurrence without torch: every instruction set that runs here, over layouts, sizes,
// element types and numbers of threads, against plain loops in double. All memory has exactly the size that
// the kernels may touch, so the address sanitizer finds an access out of bounds; the thread sanitizer finds a
// missing barrier.
#include <cstdlib>

#include "cpu/kernels.h"
#include "native.h"
#include "recurrences.h"

namespace {

template <class S>
Results<S> run_kernels(const cpu::Kernels& kernels, const Case& c, const Data<S>& data, int promised) {
  Results<S> r = empty_results(c, data);
  const cpu::Threads threads{promised, true, &run_threads, 256 * 1024};
  const cpu::ThreadPlan plan =
      cpu::make_thread_plan(c.networks, c.steps, c.batch, c.hidden, sizeof(ComputeType<S>), threads);
  const ForwardProblem forward = forward_problem(c, data, r);
  with_memory(kernels.forward_workspace(forward, plan),
              [&](void* memory) { kernels.forward(forward, plan, threads, memory); });
  const BackwardProblem backward = backward_problem(c, data, r);
  with_memory(kernels.backward_workspace(backward, plan),
              [&](void* memory) { kernels.backward(backward, plan, threads, memory); });
  const LinearProblem linear = linear_problem(c, data, r);
  with_memory(kernels.linear_workspace(linear, plan),
              [&](void* memory) { kernels.linear(linear, plan, threads, memory); });
  return r;
}

template <class S>
void check(const Case& c, unsigned seed) {
  const Data<S> data = make_data<S>(c, seed);
  const Expected<S> expected(c, data);
  int sets = 0;
  const auto* set = cpu::instruction_sets(&sets);
  for (int s = 0; s < sets; ++s) {
    if (!set[s].runs_here()) continue;
    Results<S> first;
    for (const auto& [promised, real] : {std::pair{1, 1}, {2, 2}, {3, 3}, {4, 2}, {5, 1}}) {
      real_threads = real;
      const Results<S> r = run_kernels(*set[s].kernels, c, data, promised);
      const std::string where = c.text() + " on " + set[s].name + ", " + std::to_string(promised) +
                                " threads promised, " + std::to_string(real) + " running: ";
      if (promised == 1) {
        first = r;
        expected.check(r, where);
      } else {
        expect(same_bits(r, first), where + "same bits as one thread");
      }
    }
  }
}

// A packed batch of many sequences, of which few are long: steps times rows exceeds 63 bits, but the memory
// does not.
void check_plan_of_a_large_problem() {
  const cpu::Threads threads{8, true, &run_threads};
  const int64_t many = int64_t{1} << 24;
  expect(cpu::make_thread_plan(1, many, many, 1024, 4, threads).slices() == 8, "all threads have work");
}

}  // namespace

// test_cpu [n]: runs every n-th case only (a sanitizer makes them slow).
int main(int argc, char** argv) {
  Cases cases(argc, argv);
  check_plan_of_a_large_problem();
  for_cases({{1, 0, 3, 5},
             {1, 4, 0, 5},
             {1, 1, 1, 1},
             {1, 5, 3, 7},
             {2, 4, 13, 16},
             {1, 6, 9, 33},
             {3, 3, 2, 50},
             {1, 3, 26, 64},
             {1, 7, 1, 190},
             {1, 9, 3, 200},
             {2, 5, 13, 100},
             {1, 4, 2, 257}},
            {ElementType::kFloat32, ElementType::kFloat64, ElementType::kBFloat16, ElementType::kFloat16},
            [&](const Case& c) {
              if (!cases.takes_next()) return;
              with_element(c.type, [&](auto stored) { check<decltype(stored)>(c, cases.index()); });
            });
  return cases.finish();
}
