// The kernels for one instruction set. CMake compiles this file once for each, with the set's flags
// and its name in RNNKERNELS_ISA_NAME; all of the code it includes is in anonymous namespaces.
#include "cpu/kernels.h"

#include "cpu/engine.h"
#include "cpu/nade.h"
#include "cpu/nade_backward.h"
#include "cpu/optimizer.h"
#include "cpu/product.h"
#include "cpu/passes.h"

#if !defined(__GNUC__)
#error "The CPU kernels need the vector extensions of GCC or Clang."
#endif

namespace rnnkernels {
namespace {

// Calls f with a number of a type that is computed in.
template <class Fn>
void with_number(ElementType type, Fn&& fn) {
  if (type == ElementType::kFloat64) {
    fn(double{});
  } else {
    fn(float{});
  }
}

template <class Problem>
int64_t workspace_bytes(const Problem& problem, const Plan& plan) {
  int64_t bytes = 0;
  with_element(problem.type, [&](auto stored) {
    bytes = Workspace<typename FactorOf<decltype(stored)>::type>(problem, plan, nullptr).bytes;
  });
  return bytes;
}

// Walks with a sweep over what is stored as S.
template <class S, class Sweep, class Problem>
void walk(const Problem& problem, const Plan& plan, const Threads& threads, void* memory) {
  using E = typename FactorOf<S>::type;
  const Workspace<E> workspace(problem, plan, memory);
  Engine<E, Sweep>(problem, plan, workspace, Sweep(problem, workspace.decay)).run(threads);
}

template <template <class, class> class Sweep, class Problem>
void run(const Problem& problem, const Plan& plan, const Threads& threads, void* memory) {
  with_element(problem.type, [&](auto stored) {
    using S = decltype(stored);
    with_cell(problem.nonlinearity, problem.form, Nonlinearities{},
              [&](auto cell) { walk<S, Sweep<S, decltype(cell)>>(problem, plan, threads, memory); });
  });
}

void run_linear(const LinearProblem& problem, const Plan& plan, const Threads& threads, void* memory) {
  with_element(problem.type, [&](auto stored) {
    walk<decltype(stored), LinearSweep<decltype(stored)>>(problem, plan, threads, memory);
  });
}

int64_t product_workspace(const Product& product, const cpu::ProductPlan& plan) {
  int64_t bytes = 0;
  with_number(product.type, [&](auto number) {
    bytes = ProductRun<decltype(number)>(product, plan, nullptr).workspace_bytes();
  });
  return bytes;
}

void run_product(const Product& product, const cpu::ProductPlan& plan, const Threads& threads, void* memory) {
  with_number(product.type,
              [&](auto number) { ProductRun<decltype(number)>(product, plan, memory).run(threads); });
}

void activate(NonlinearityIndex nonlinearity, ElementType type, const void* in, void* out, int64_t n) {
  with_number(type, [&](auto number) {
    using T = decltype(number);
    with_cell(nonlinearity, Form::kCurrent, Nonlinearities{}, [&](auto cell) {
      for (int64_t i = 0; i < n; i += kLanes<T>) {
        const Vec<T> h = load_first(static_cast<const T*>(in) + i, n - i);
        store_first(static_cast<T*>(out) + i, decltype(cell)::operand(h), n - i);
      }
    });
  });
}

int64_t nade_workspace_bytes(const NadeForward& problem, const cpu::Threads& threads) {
  int64_t bytes = 0;
  with_number(problem.type, [&](auto number) { bytes = nade_workspace<decltype(number)>(problem, threads); });
  return bytes;
}

void run_nade(const NadeForward& problem, const cpu::Threads& threads, void* workspace) {
  with_number(problem.type, [&](auto number) { nade<decltype(number)>(problem, threads, workspace); });
}

int64_t nade_backward_workspace_bytes(const NadeBackward& problem, const cpu::Threads& threads) {
  int64_t bytes = 0;
  with_number(problem.type,
              [&](auto number) { bytes = nade_backward_workspace<decltype(number)>(problem, threads); });
  return bytes;
}

void run_nade_backward(const NadeBackward& problem, const cpu::Threads& threads, void* workspace) {
  with_number(problem.type,
              [&](auto number) { nade_backward<decltype(number)>(problem, threads, workspace); });
}

float read(const float* data, int64_t n, int64_t times) {
  constexpr int kChains = 8;  // more than an addition takes cycles
  Vec<float> sums[kChains] = {};
  for (int64_t t = 0; t < times; ++t) {
    for (int64_t i = 0; i + kChains * kLanes<float> <= n; i += kChains * kLanes<float>) {
      RNNKERNELS_UNROLL
      for (int c = 0; c < kChains; ++c) sums[c] += load(data + i + c * kLanes<float>);
    }
  }
  float total = 0;
  for (const Vec<float>& sum : sums) {
    for (int lane = 0; lane < kLanes<float>; ++lane) total += sum[lane];
  }
  return total;
}

constexpr cpu::Kernels kKernels = {&workspace_bytes<ForwardProblem>,
                                   &run<ForwardSweep, ForwardProblem>,
                                   &workspace_bytes<BackwardProblem>,
                                   &run<BackwardSweep, BackwardProblem>,
                                   &workspace_bytes<LinearProblem>,
                                   &run_linear,
                                   &product_workspace,
                                   &run_product,
                                   &activate,
                                   kNumbers<typename FactorOf<BFloat16>::type> == 2,
                                   &optimizer_step<NesterovRule>,
                                   &optimizer_step<AdamWRule>,
                                   &power_sum,
                                   &nade_workspace_bytes,
                                   &run_nade,
                                   &nade_backward_workspace_bytes,
                                   &run_nade_backward,
                                   &read};

}  // namespace

namespace cpu::RNNKERNELS_ISA_NAME {
extern const Kernels kernels;
const Kernels kernels = kKernels;
}  // namespace cpu::RNNKERNELS_ISA_NAME

}  // namespace rnnkernels
