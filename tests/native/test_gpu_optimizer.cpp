// Tests of the CUDA kernels of the optimizers on the emulated GPU, through their launchers: rules, norms,
// element types and sizes against plain loops. The results must have the same bits for any number of blocks,
// any order of the threads and any alignment of the arrays, and whether the settings are in host memory or in
// device memory.
#include <cstdlib>

#include "cuda/optimizer.h"
#include "emulation/emulation.h"
#include "optimizers.h"

namespace {

// One way to run a case.
struct Way {
  int64_t blocks;
  int64_t moved;   // elements by which the arrays are moved away from an aligned address
  bool on_device;  // whether the settings are in device memory
};
constexpr Way kWays[] = {{3, 0, false}, {1, 1, true}, {2, 0, true}, {4, 3, false}};

// Makes scalars, in host memory or in device memory.
class Numbers {
 public:
  explicit Numbers(bool on_device) : on_device_(on_device) {}
  Scalar operator()(double x, ElementType type) {
    if (!on_device_) return {x};
    arrays_.push_back(std::make_unique<Array>(type, 1));
    arrays_.back()->set(0, x);
    return {kNaN, arrays_.back()->data(), type};
  }

 private:
  bool on_device_;
  std::vector<std::unique_ptr<Array>> arrays_;
};

Model moved(const Model& model, int64_t elements) {
  Model copy = model;
  for (Tensors& t : copy) {
    for (Array* array : {&t.param, &t.grad, &t.state[0], &t.state[1], &t.master})
      *array = array->moved(elements);
  }
  return copy;
}

template <class Rule>
void run_step(const Case& c, const Way& way, double norm, const typename Rule::Settings* settings,
              Outcome& outcome) {
  Numbers number(way.on_device);
  with_step<Rule>(c, norm, settings, outcome, number, [&](const StepProblem& problem) {
    with_memory(cuda::workspace_bytes(problem), [&](void* workspace) {
      expect(cuda::optimizer_step<Rule>(problem, way.blocks, workspace, nullptr) == 0, "a step is launched");
    });
  });
}

void run_power_sum(const Case& c, const Way& way, double unit, Outcome& outcome) {
  with_power_sum(c, unit, outcome.model, [&](const PowerSum& problem) {
    with_memory(cuda::workspace_bytes(problem), [&](void* workspace) {
      expect(cuda::power_sum(problem, &outcome.sum, way.blocks, workspace, nullptr) == 0,
             "a sum is launched");
    });
  });
}

template <class Rule>
void check(const Case& c, unsigned seed, int orders, const typename Rule::Settings* settings) {
  const Model before = make_model(c, 2 * kChunkElements + 77, seed);
  const double norm = plain_norm(before, c.p),
               unit = c.magnitude == 1 || c.magnitude == 0 ? 1 : 3 * c.magnitude;
  Outcome first;
  for (int order = 0; order < orders; ++order) {
    const Way& way = kWays[order % std::size(kWays)];
    const std::string where = std::string(Rule::kName) + " " + c.text() + ", " + std::to_string(way.blocks) +
                              " blocks, order " + std::to_string(order) + ": ";
    emulation::set_seed(5 * order);
    Outcome outcome;
    outcome.model = moved(before, way.moved);
    try {
      run_power_sum(c, way, unit, outcome);
      run_step<Rule>(c, way, norm, settings, outcome);
    } catch (const emulation::Fault& fault) {
      expect(false, where + fault.what());
      continue;
    }
    if (order == 0) {
      first = outcome;
      check_outcome<Rule>(c, before, norm, unit, outcome, settings, where);
    } else {
      expect(outcome == first, where + "the same bits as in the first order");
    }
  }
}

}  // namespace

// test_gpu_optimizer [n [orders]]: runs every n-th case, each in the given number of orders.
int main(int argc, char** argv) {
  Cases cases(argc, argv);
  for (const Case& c : make_cases()) {
    for (const bool nesterov : {true, false}) {
      if (!cases.takes_next()) continue;
      if (nesterov) {
        check<NesterovRule>(c, cases.index(), cases.orders, kNesterov);
      } else {
        check<AdamWRule>(c, cases.index(), cases.orders, kAdamW);
      }
    }
  }
  return cases.finish();
}
