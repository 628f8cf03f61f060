// The kernels for one instruction set. CMake compiles this file once per set, with the set's flags and with
// its name in RNNKERNELS_ISA_NAME. All code that it includes is in anonymous namespaces.
#include "cpu/kernels.h"

#include "cpu/engine.h"
#include "cpu/nade.h"
#include "cpu/nade_backward.h"
#include "cpu/optimizer.h"
#include "cpu/passes.h"
#include "cpu/product.h"

#if !defined(__GNUC__)
#error "The CPU kernels need the vector extensions of GCC or Clang."
#endif

namespace rnnkernels {
namespace {

// Calls fn(zero) with a zero of the type that elements of this type are computed in.
template <class Fn>
void with_compute_type(ElementType type, Fn&& fn) {
  if (type == ElementType::kFloat64) {
    fn(double{});
  } else {
    fn(float{});
  }
}

template <class Problem>
int64_t workspace_bytes(const Problem& problem, const ThreadPlan& plan) {
  int64_t bytes = 0;
  with_element(problem.type, [&](auto stored) {
    bytes = Workspace<typename FactorOf<decltype(stored)>::type>(problem, plan, nullptr).bytes;
  });
  return bytes;
}

// Runs a pass over sequences whose elements are stored as S.
template <class S, class Pass, class Problem>
void run_pass(const Problem& problem, const ThreadPlan& plan, const Threads& threads, void* memory) {
  using E = typename FactorOf<S>::type;
  const Workspace<E> workspace(problem, plan, memory);
  Engine<E, Pass>(problem, plan, workspace, Pass(problem, workspace.decay)).run(threads);
}

template <template <class, class> class Pass, class Problem>
void run(const Problem& problem, const ThreadPlan& plan, const Threads& threads, void* memory) {
  with_element(problem.type, [&](auto stored) {
    using S = decltype(stored);
    with_cell(problem.nonlinearity, problem.form, Nonlinearities{},
              [&](auto cell) { run_pass<S, Pass<S, decltype(cell)>>(problem, plan, threads, memory); });
  });
}

void run_linear(const LinearProblem& problem, const ThreadPlan& plan, const Threads& threads, void* memory) {
  with_element(problem.type, [&](auto stored) {
    run_pass<decltype(stored), LinearPass<decltype(stored)>>(problem, plan, threads, memory);
  });
}

int64_t product_workspace(const Product& product, const cpu::ProductPlan& plan) {
  int64_t bytes = 0;
  with_compute_type(product.type, [&](auto zero) {
    bytes = ProductRun<decltype(zero)>(product, plan, nullptr).workspace_bytes();
  });
  return bytes;
}

void run_product(const Product& product, const cpu::ProductPlan& plan, const Threads& threads, void* memory) {
  with_compute_type(product.type,
                    [&](auto zero) { ProductRun<decltype(zero)>(product, plan, memory).run(threads); });
}

void activate(NonlinearityIndex nonlinearity, ElementType type, const void* in, void* out, int64_t n) {
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
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
  with_compute_type(problem.type,
                    [&](auto zero) { bytes = nade_workspace<decltype(zero)>(problem, threads); });
  return bytes;
}

void run_nade(const NadeForward& problem, const cpu::Threads& threads, void* workspace) {
  with_compute_type(problem.type, [&](auto zero) { nade<decltype(zero)>(problem, threads, workspace); });
}

int64_t nade_backward_workspace_bytes(const NadeBackward& problem, const cpu::Threads& threads) {
  int64_t bytes = 0;
  with_compute_type(problem.type,
                    [&](auto zero) { bytes = nade_backward_workspace<decltype(zero)>(problem, threads); });
  return bytes;
}

void run_nade_backward(const NadeBackward& problem, const cpu::Threads& threads, void* workspace) {
  with_compute_type(problem.type,
                    [&](auto zero) { nade_backward<decltype(zero)>(problem, threads, workspace); });
}

float read(const float* data, int64_t n, int64_t times) {
  constexpr int kChains = 8;  // more than the latency of an addition in cycles
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
                                   &run<ForwardPass, ForwardProblem>,
                                   &workspace_bytes<BackwardProblem>,
                                   &run<BackwardPass, BackwardProblem>,
                                   &workspace_bytes<LinearProblem>,
                                   &run_linear,
                                   &product_workspace,
                                   &run_product,
                                   &activate,
                                   kValuesOf<typename FactorOf<BFloat16>::type> == 2,
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
