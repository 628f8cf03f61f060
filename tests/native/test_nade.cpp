// The CPU kernels of NADE without torch: every instruction set that runs here, over sizes, fractions of
// ones, incoming gradients and numbers of threads, against plain loops in double. All memory has exactly the
// size that the kernels may touch; see test_cpu.cpp.
#include <array>
#include <cstdlib>

#include "cpu/kernels.h"
#include "nades.h"

namespace {

template <class T>
Results<T> run_kernels(const cpu::Kernels& kernels, const Case& c, const Data<T>& data, int promised) {
  Results<T> r = empty_results<T>(c);
  const cpu::Threads threads{promised, true, &run_threads, 1};
  for (const NadeForward& forward : {forward_problem(c, data, r), drawn_problem(c, data, r)}) {
    with_memory(kernels.nade_workspace(forward, threads),
                [&](void* memory) { kernels.nade(forward, threads, memory); });
  }
  const NadeBackward backward = backward_problem(c, data, r);
  with_memory(kernels.nade_backward_workspace(backward, threads),
              [&](void* memory) { kernels.nade_backward(backward, threads, memory); });
  return r;
}

template <class T>
void check(const Case& c, unsigned seed) {
  const Data<T> data = make_data<T>(c, seed);
  int sets = 0;
  const auto* set = cpu::instruction_sets(&sets);
  for (int s = 0; s < sets; ++s) {
    if (!set[s].runs_here()) continue;
    Results<T> first;
    for (const auto& [promised, real] : {std::pair{1, 1}, {2, 2}, {3, 3}, {4, 2}, {5, 1}}) {
      real_threads = real;
      const Results<T> r = run_kernels(*set[s].kernels, c, data, promised);
      const std::string where = c.text() + " on " + set[s].name + ", " + std::to_string(promised) +
                                " threads promised, " + std::to_string(real) + " running: ";
      if (promised == 1) {
        first = r;
        check_results(c, data, r, where);
      } else {
        expect(same_bits(r, first), where + "same bits as one thread");
      }
    }
  }
}

}  // namespace

// test_nade [n]: runs every n-th case only (a sanitizer makes them slow).
int main(int argc, char** argv) {
  Cases cases(argc, argv);
  for_cases({{0, 3, 4},
             {1, 1, 1},
             {1, 64, 3},
             {3, 2, 5},
             {5, 7, 16},
             {16, 8, 32},
             {17, 9, 33},
             {40, 65, 31},
             {33, 88, 150},
             {2, 130, 70},
             {300, 12, 20},
             {4200, 3, 2}},
            cases, [&](const Case& c, auto zero) { check<decltype(zero)>(c, cases.index()); });
  return cases.finish();
}
