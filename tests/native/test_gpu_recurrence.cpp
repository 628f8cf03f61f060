// Tests of the CUDA kernels of the recurrence on the emulated GPU, through their launchers: all teams,
// passes, forms and layouts against plain loops, each in several orders of the threads.
#include <cstdlib>

#include "cuda/recurrence.h"
#include "emulation/emulation.h"
#include "native.h"
#include "recurrences.h"

using namespace rnnkernels;

namespace {

// The small device has few multiprocessors, so that a team of a grid runs more than one scan.
constexpr cuda::Device kDevice = {"emulated", 90, 16, 232448, 16},
                       kSmallDevice = {"emulated", 90, 5, 232448, 16};

// The emulated GPU uses the host's memory, so layouts need no copy.
template <class S>
Results<S> run_kernels(const Case& c, const Data<S>& data, const cuda::LaunchPlan& plan) {
  Results<S> r = empty_results(c, data);
  std::vector<uint64_t> workspace(plan.workspace_bytes / sizeof(uint64_t), ~uint64_t{0});
  const ForwardProblem forward = forward_problem(c, data, r);
  const BackwardProblem backward = backward_problem(c, data, r);
  const LinearProblem linear = linear_problem(c, data, r);
  expect(cuda::forward(forward, plan, false, workspace.data(), nullptr) == 0, "forward is launched");
  expect(cuda::backward(backward, plan, false, workspace.data(), nullptr) == 0, "backward is launched");
  expect(cuda::linear(linear, plan, false, workspace.data(), nullptr) == 0, "the linear pass is launched");
  return r;
}

template <class S>
void check(const Case& c, const char* team, unsigned seed, int orders) {
  cuda::LaunchPlan plan;
  std::string message;
  const cuda::Device& device = std::string(team) == "grid" ? kSmallDevice : kDevice;
  const bool planned =
      cuda::make_plan({c.type, c.networks, c.batch, c.hidden}, device, team, &plan, &message);
  expect(planned, c.text() + ": " + message);
  if (!planned) return;
  const Data<S> data = make_data<S>(c, seed);
  const Expected<S> expected(c, data, sizeof(S) == 2 ? 1 : 0.1);
  Results<S> first;
  for (int order = 0; order < orders; ++order) {
    const std::string where = c.text() + ", " + text(plan) + ", order " + std::to_string(order) + ": ";
    emulation::set_seed(3 * order);
    try {
      const Results<S> r = run_kernels(c, data, plan);
      if (order == 0) {
        first = r;
        expected.check(r, where);
      } else {
        expect(same_bits(r, first), where + "the same bits as in the first order");
      }
    } catch (const emulation::Fault& fault) {
      expect(false, where + fault.what());
    }
  }
}

struct Part {
  std::vector<const char*> teams;
  std::vector<std::array<int64_t, 4>> shapes;  // G, T, B, H
};

}  // namespace

// test_gpu_recurrence [n [orders]]: runs every n-th case, each in the given number of orders.
int main(int argc, char** argv) {
  Cases cases(argc, argv);
  const Part parts[] = {
      {{"block"},
       {{1, 0, 3, 5},
        {1, 3, 0, 5},
        {1, 1, 1, 1},
        {1, 4, 3, 7},
        {2, 3, 9, 16},
        {1, 4, 8, 33},
        {2, 3, 11, 50},
        {1, 3, 17, 64}}},
      {{"cluster2", "cluster4", "grid"},
       {{1, 0, 3, 5}, {1, 1, 1, 1}, {1, 4, 3, 33}, {2, 3, 9, 50}, {1, 5, 17, 64}}},
      {{"cluster8"}, {{1, 3, 2, 70}}},
      {{"cluster16"}, {{1, 3, 2, 130}}},
  };
  for (const Part& part : parts) {
    for (const char* team : part.teams) {
      for_cases(part.shapes, {ElementType::kFloat32, ElementType::kBFloat16, ElementType::kFloat16},
                [&](const Case& c) {
                  if (!cases.takes_next()) return;
                  with_element(c.type, [&](auto element) {
                    check<decltype(element)>(c, team, cases.index(), cases.orders);
                  });
                });
    }
  }
  return cases.finish();
}
