// Tests of the CUDA kernels of the optimizers on the emulated GPU, through their launchers: rules, norms,
// element types and sizes against plain loops. The results must have the same bits for any number of blocks,
// any order of the threads and any alignment of the arrays, and whether the settings are in host memory or in
// device memory.
#include <bit>
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

std::vector<double> numbers_of(const NesterovRule::Settings& s, double max_norm) {
  return {s.lr, max_norm, s.weight_decay, s.momentum};
}
std::vector<double> numbers_of(const AdamWRule::Settings& s, double max_norm) {
  return {s.lr, max_norm, s.weight_decay, s.beta1, s.beta2, s.epsilon};
}
double previous_momentum(const NesterovRule::Settings& s) { return s.previous_momentum; }
double previous_momentum(const AdamWRule::Settings&) { return 0; }

// Makes scalars, in host memory or in device memory.
class Numbers {
 public:
  explicit Numbers(bool on_device) : on_device_(on_device) {}
  Scalar operator()(double x, ElementType type = ElementType::kFloat64) {
    if (!on_device_) return {x};
    arrays_.push_back(std::make_unique<Array>(type, 1));
    arrays_.back()->set(0, x);
    return {kNaN, arrays_.back()->data(), type};
  }

 private:
  bool on_device_;
  std::vector<std::unique_ptr<Array>> arrays_;
};

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
  StepProblem problem;
  const std::vector<Leaf> leaves = leaves_of(outcome.model, &problem.chunks);
  Numbers number(way.on_device);
  GroupProblem groups[2];
  for (int i = 0; i < 2; ++i) {
    int n = 0;
    for (const double x : numbers_of(settings[i], c.limit(i))) groups[i].settings[n++] = number(x);
    outcome.previous[i] = previous_momentum(settings[i]);
    if (Rule::kStates == 1) groups[i].previous_momentum = outcome.previous + i;
    groups[i].maximize = i == 1;
  }
  problem.leaves = leaves.data();
  problem.count = leaves.size();
  problem.groups = groups;
  problem.group_count = 2;
  problem.norm_type = c.p;
  problem.grad_scale = number(c.scale, ElementType::kFloat32);
  problem.found_inf = number(c.found_inf, ElementType::kBFloat16);
  problem.norm_is_known = c.norm_is_known;
  problem.norm = number(norm);
  problem.nonfinite = c.nonfinite;
  problem.record = outcome.record;
  with_memory(cuda::workspace_bytes(problem), [&](void* workspace) {
    expect(cuda::optimizer_step<Rule>(problem, way.blocks, workspace, nullptr) == 0, "a step is launched");
  });
}

void run_power_sum(const Case& c, const Way& way, double unit, Outcome& outcome) {
  PowerSum problem;
  const std::vector<Leaf> leaves = leaves_of(outcome.model, &problem.chunks);
  problem.leaves = leaves.data();
  problem.count = leaves.size();
  problem.norm_type = c.p;
  problem.unit = unit;
  with_memory(cuda::workspace_bytes(problem), [&](void* workspace) {
    expect(cuda::power_sum(problem, &outcome.sum, way.blocks, workspace, nullptr) == 0, "a sum is launched");
  });
}

template <class Rule>
void check_outcome(const Case& c, const Model& before, double norm, double unit, const Outcome& o,
                   const typename Rule::Settings* settings, const std::string& where) {
  const bool finite = std::isfinite(norm);
  const bool skipped = c.found_inf || (!finite && c.nonfinite != NonFinite::kApply);
  const bool raises = skipped && !c.found_inf && c.nonfinite == NonFinite::kRaise;
  const double got = o.record[kNorm] * c.scale, of_sum = c.p == kInf ? o.sum : norm_of(o.sum, c.p, unit);
  expect(finite ? std::abs(got - norm) <= 1e-13 * norm : !std::isfinite(got), where + "norm");
  expect(finite ? std::abs(of_sum - norm) <= 1e-13 * norm : !std::isfinite(of_sum), where + "sum of powers");
  expect(o.record[kSkipped] == 3 + (skipped && !raises), where + "steps skipped");
  expect(o.record[kTaken] == 5 + !skipped, where + "steps taken");
  expect(o.record[kRaises] == raises, where + "whether to raise");
  for (int i = 0; i < 2 && Rule::kStates == 1; ++i) {
    const double wanted = skipped ? previous_momentum(settings[i]) : numbers_of(settings[i], 0).back();
    expect(o.previous[i] == wanted, where + "the momentum that is to be the previous one");
  }
  for (const Tensors& t : o.model) expect(t.step_count == kStep - skipped, where + "the count of a step");
  if (skipped) {
    expect(o.model == before, where + "nothing written");
  } else {
    check_update<Rule>(before, o.model, c, norm, settings, where);
  }
}

template <class Rule>
void check(const Case& c, unsigned seed, int orders, const typename Rule::Settings* settings) {
  const Model before = make_model(c, 2 * kChunk + 77, seed);
  const double norm = plain_norm(before, c.p),
               unit = c.magnitude == 1 || c.magnitude == 0 ? 1 : 3 * c.magnitude;
  Outcome first;
  for (int order = 0; order < orders; ++order) {
    const Way& way = kWays[order % std::size(kWays)];
    const std::string where = std::string(Rule::kStates == 1 ? "Nesterov " : "AdamW ") + c.text() + ", " +
                              std::to_string(way.blocks) + " blocks, order " + std::to_string(order) + ": ";
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
        check<NesterovRule>(c, cases.number(), cases.orders, kNesterov);
      } else {
        check<AdamWRule>(c, cases.number(), cases.orders, kAdamW);
      }
    }
  }
  return cases.finish();
}
