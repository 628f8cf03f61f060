// rnnkernels::clipped_nesterov_, clipped_adamw_ and gradient_power_sum: check, collect, run.
#include "binding/optimizer.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <limits>

#include "binding/machine.h"

namespace rnnkernels::binding {

namespace {

// The record of all steps, float64 [4] on the device of the parameters.
enum RecordField { kNorm, kSkipped, kTaken, kBad };

double read(const char* what, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.numel() == 1, what, " must have one element, got ", tensor.sizes());
  return tensor.item<double>();
}

void check_count(const char* what, size_t got, const char* of_what, size_t wanted) {
  TORCH_CHECK_VALUE(got == wanted, what, " must be as many as ", of_what, ", ", wanted, ", got ", got);
}

// Setting `field` of group `group`: a number, or the tensor that stands in for it.
class SettingsReader {
 public:
  SettingsReader(at::ArrayRef<double> numbers, const OptionalTensors& tensors, int64_t groups, int64_t fields)
      : numbers_(numbers), tensors_(tensors), fields_(fields) {
    TORCH_CHECK_VALUE(static_cast<int64_t>(numbers.size()) == groups * fields, "numbers must be [groups, ",
                      fields, "], got ", numbers.size(), " of them for ", groups, " groups");
    TORCH_CHECK_VALUE(tensors.empty() || tensors.size() == numbers.size(),
                      "on_device must be empty or as long as numbers, got ", tensors.size());
  }
  double operator()(int64_t group, int64_t field, const char* name, double least, double below) const {
    const double value = get(group, field, name);
    TORCH_CHECK_VALUE(value >= least && value < below, name, " must lie in [", least, ", ", below, "), got ",
                      value, " in group ", group);
    return value;
  }
  // max_norm alone may be infinite.
  double max_norm(int64_t group, int64_t field) const {
    const double value = get(group, field, "max_norm");
    TORCH_CHECK_VALUE(value > 0, "max_norm must lie in (0, inf], got ", value, " in group ", group);
    return value;
  }

 private:
  double get(int64_t group, int64_t field, const char* name) const {
    const int64_t at = group * fields_ + field;
    if (tensors_.empty()) return numbers_[at];
    const std::optional<at::Tensor> tensor = tensors_.get(at);
    return tensor ? read(name, *tensor) : numbers_[at];
  }

  at::ArrayRef<double> numbers_;
  const OptionalTensors& tensors_;
  int64_t fields_;
};

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

template <class Settings>
void fill_common(Group<Settings>& group, const SettingsReader& read_setting, int64_t index,
                 const c10::List<bool>& maximize) {
  group.settings.lr = read_setting(index, 0, "lr", 0, kNoLimit);
  group.max_norm = read_setting.max_norm(index, 1);
  group.settings.weight_decay = read_setting(index, 2, "weight_decay", 0, kNoLimit);
  group.maximize = maximize.get(index);
}

// What both rules have in common: everything but the settings and the states.
template <class Rule, class AddLeaf>
bool run_step(Verdict (*kernel)(const OptimizerStep<Rule>&, const cpu::Threads&),
              const std::vector<Group<typename Rule::Settings>>& groups, at::IntArrayRef group_ends,
              at::TensorList params, const OptionalTensors& grads, const at::Tensor& record, double norm_type,
              const std::string& nonfinite, const std::optional<at::Tensor>& grad_scale,
              const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm,
              const AddLeaf& add_leaf) {
  check_count("grads", grads.size(), "params", params.size());
  TORCH_CHECK_VALUE(!group_ends.empty() && group_ends.back() == static_cast<int64_t>(params.size()),
                    "group_ends must end with the number of params, ", params.size());
  TORCH_CHECK_VALUE(norm_type > 0, "norm_type must be positive, got ", norm_type);
  TORCH_CHECK_VALUE(nonfinite == "skip" || nonfinite == "raise" || nonfinite == "apply",
                    "nonfinite must be 'skip', 'raise' or 'apply', got '", nonfinite, "'");
  TORCH_CHECK_VALUE(record.device().is_cpu() && record.scalar_type() == at::kDouble &&
                        record.is_contiguous() && record.numel() == 4,
                    "record must be a float64 tensor [4] on the CPU, got ", record.scalar_type(), " ",
                    record.sizes());
  const at::AutoDispatchBelowADInplaceOrView no_autograd;  // copies to and from odd layouts
  Leaves leaves;
  leaves.leaves.reserve(params.size());
  for (int64_t i = 0, group = 0; i < static_cast<int64_t>(params.size()); ++i) {
    while (i >= group_ends[group]) ++group;
    const std::optional<at::Tensor> grad = grads.get(i);
    if (grad) add_leaf(leaves, i, static_cast<int>(group), *grad);
  }
  leaves.make_workspace();

  OptimizerStep<Rule> step;
  step.leaves = leaves.leaves.data();
  step.count = leaves.leaves.size();
  step.chunks = leaves.chunks;
  step.groups = groups.data();
  step.norm_type = norm_type;
  step.scale = grad_scale ? read("grad_scale", *grad_scale) : 1.0;
  step.found_inf = found_inf && read("found_inf", *found_inf) != 0;
  step.nonfinite = nonfinite == "apply" ? NonFinite::kApply : NonFinite::kSkip;
  const double known = norm ? read("norm", *norm) : 0;
  if (norm) step.norm = &known;
  step.partial = leaves.partial.data();
  const Verdict verdict = kernel(step, torch_threads());
  leaves.finish(!verdict.skipped);

  double* fields = record.data_ptr<double>();
  const bool raises = verdict.skipped && !step.found_inf && nonfinite == "raise";
  fields[kNorm] = verdict.norm;
  fields[kSkipped] += verdict.skipped && !raises;
  fields[kTaken] += !verdict.skipped;
  fields[kBad] = raises;
  return !verdict.skipped;
}

float& number_in(const at::Tensor& tensor, const char* what) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.numel() == 1,
                    what, " must be a float32 tensor of one element on the CPU, got ", tensor.scalar_type(),
                    " ", tensor.sizes(), " on ", tensor.device());
  return *tensor.data_ptr<float>();
}

}  // namespace

void clipped_nesterov_cpu(at::TensorList params, const OptionalTensors& grads, at::TensorList velocities,
                          at::TensorList masters, at::TensorList previous_momentum,
                          at::IntArrayRef group_ends, at::ArrayRef<double> numbers,
                          const OptionalTensors& on_device, const c10::List<bool>& maximize,
                          const at::Tensor& record, double norm_type, std::string nonfinite,
                          const std::optional<at::Tensor>& grad_scale,
                          const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm) {
  const int64_t count = group_ends.size();
  check_count("velocities", velocities.size(), "params", params.size());
  check_count("masters", masters.size(), "params", params.size());
  check_count("previous_momentum", previous_momentum.size(), "groups", count);
  check_count("maximize", maximize.size(), "groups", count);
  const SettingsReader read_setting(numbers, on_device, count, 4);
  std::vector<Group<NesterovRule::Settings>> groups(count);
  std::vector<double*> previous(count);
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor& before = previous_momentum[i];
    TORCH_CHECK_VALUE(before.device().is_cpu() && before.scalar_type() == at::kDouble && before.numel() == 1,
                      "previous_momentum must be a float64 tensor of one element on the CPU, got ",
                      before.scalar_type(), " ", before.sizes(), " on ", before.device());
    fill_common(groups[i], read_setting, i, maximize);
    groups[i].settings.momentum = read_setting(i, 3, "momentum", 0, 1);
    previous[i] = before.data_ptr<double>();
    groups[i].settings.previous_momentum = *previous[i];
  }
  const bool taken = run_step<NesterovRule>(
      active_kernels().nesterov, groups, group_ends, params, grads, record, norm_type, nonfinite, grad_scale,
      found_inf, norm, [&](Leaves& leaves, int64_t i, int group, const at::Tensor& grad) {
        leaves.add(i, group, params[i], grad, {velocities[i]}, masters[i], 0);
      });
  for (int64_t i = 0; taken && i < count; ++i) *previous[i] = groups[i].settings.momentum;
}

void clipped_adamw_cpu(at::TensorList params, const OptionalTensors& grads, at::TensorList exp_avgs,
                       at::TensorList exp_avg_sqs, at::TensorList masters, at::TensorList steps,
                       at::IntArrayRef group_ends, at::ArrayRef<double> numbers,
                       const OptionalTensors& on_device, const c10::List<bool>& maximize,
                       const at::Tensor& record, double norm_type, std::string nonfinite,
                       const std::optional<at::Tensor>& grad_scale,
                       const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm) {
  const int64_t count = group_ends.size();
  check_count("exp_avgs", exp_avgs.size(), "params", params.size());
  check_count("exp_avg_sqs", exp_avg_sqs.size(), "params", params.size());
  check_count("masters", masters.size(), "params", params.size());
  check_count("steps", steps.size(), "params", params.size());
  check_count("maximize", maximize.size(), "groups", count);
  const SettingsReader read_setting(numbers, on_device, count, 6);
  std::vector<Group<AdamWRule::Settings>> groups(count);
  for (int64_t i = 0; i < count; ++i) {
    fill_common(groups[i], read_setting, i, maximize);
    groups[i].settings.beta1 = read_setting(i, 3, "betas[0]", 0, 1);
    groups[i].settings.beta2 = read_setting(i, 4, "betas[1]", 0, 1);
    groups[i].settings.epsilon = read_setting(i, 5, "eps", 0, kNoLimit);
  }
  std::vector<float*> counted;
  const bool taken = run_step<AdamWRule>(
      active_kernels().adamw, groups, group_ends, params, grads, record, norm_type, nonfinite, grad_scale,
      found_inf, norm, [&](Leaves& leaves, int64_t i, int group, const at::Tensor& grad) {
        counted.push_back(&number_in(steps[i], "step"));
        leaves.add(i, group, params[i], grad, {exp_avgs[i], exp_avg_sqs[i]}, masters[i], *counted.back() + 1);
      });
  for (size_t i = 0; taken && i < counted.size(); ++i) *counted[i] += 1;
}

at::Tensor gradient_power_sum_cpu(const OptionalTensors& grads, double norm_type, double unit) {
  TORCH_CHECK_VALUE(norm_type > 0, "norm_type must be positive, got ", norm_type);
  TORCH_CHECK_VALUE(unit > 0 && unit < kNoLimit, "unit must be positive and finite, got ", unit);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  Leaves leaves;
  for (int64_t i = 0; i < static_cast<int64_t>(grads.size()); ++i) {
    const std::optional<at::Tensor> grad = grads.get(i);
    if (grad) leaves.add_gradient(i, *grad);
  }
  leaves.make_workspace();
  PowerSum sum;
  sum.leaves = leaves.leaves.data();
  sum.count = leaves.leaves.size();
  sum.chunks = leaves.chunks;
  sum.norm_type = norm_type;
  sum.unit = unit;
  sum.partial = leaves.partial.data();
  const double result = active_kernels().power_sum(sum, torch_threads());
  return at::empty({}, at::kDouble).fill_(result);
}

}  // namespace rnnkernels::binding
