// rnnkernels::clipped_nesterov_, clipped_adamw_ and gradient_power_sum: check the arguments, collect them in
// the kernels' structs, run a kernel. On a GPU, device values are never read on the host, so nothing
// synchronizes.
#include "binding/optimizer.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>

#include "binding/arguments.h"
#include "binding/host.h"

namespace rnnkernels::binding {

namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// The name of a setting in error messages, and its interval [least, below); that of max_norm is (0, inf].
struct Setting {
  const char* name;
  double below = kNoLimit, least = 0;
};
// The settings of each rule, by SettingIndex.
constexpr Setting kNesterovSettings[] = {{"lr"}, {"max_norm"}, {"weight_decay"}, {"momentum", 1}};
constexpr Setting kAdamWSettings[] = {{"lr"},          {"max_norm"},    {"weight_decay"},
                                      {"betas[0]", 1}, {"betas[1]", 1}, {"eps"}};

void check_count(const char* name, size_t got, const char* like, size_t wanted) {
  TORCH_CHECK_VALUE(got == wanted, name, " must be as many as ", like, ", ", wanted, ", got ", got);
}

void check_setting(const Setting& setting, double value, bool is_max_norm, int64_t group) {
  if (is_max_norm) {
    TORCH_CHECK_VALUE(value > 0, setting.name, " must lie in (0, inf], got ", value, " in group ", group);
  } else {
    TORCH_CHECK_VALUE(value >= setting.least && value < setting.below, setting.name, " must lie in [",
                      setting.least, ", ", setting.below, "), got ", value, " in group ", group);
  }
}

// The `size` elements of a tensor, which kernels read and write in place.
template <class T>
T* elements_of(const at::Tensor& tensor, const char* name, int64_t size, const at::Device& device) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  TORCH_CHECK_VALUE(tensor.device() == device && tensor.scalar_type() == type && tensor.is_contiguous() &&
                        tensor.numel() == size,
                    name, " must be a ", type, " tensor of ", size, size == 1 ? " element" : " elements",
                    " on ", device, ", got ", tensor.scalar_type(), " ", tensor.sizes(), " on ",
                    tensor.device());
  return tensor.data_ptr<T>();
}

// One of the optimizer steps of cpu::Kernels.
using CpuStep = bool (*cpu::Kernels::*)(const StepProblem&, const cpu::Threads&, double*);

// Checks and collects the arguments that both rules have.
class Step {
 public:
  Step(at::TensorList params, const at::Tensor& record)
      : on_gpu_(on_gpu(params.empty() ? record : params[0])),
        device_(params.empty() ? record.device() : params[0].device()),
        leaves_(device_) {
    problem_.record = elements_of<double>(record, "record", kRecordFields, device_);
  }
  const at::Device& device() const { return device_; }

  template <size_t kSettings>
  void add_groups(const Setting (&settings)[kSettings], at::ArrayRef<double> numbers,
                  const OptionalTensors& on_device, const c10::List<bool>& maximize, int64_t count) {
    check_count("maximize", maximize.size(), "groups", count);
    TORCH_CHECK_VALUE(numbers.size() == count * kSettings, "numbers must be [groups, ", kSettings, "], got ",
                      numbers.size(), " of them for ", count, " groups");
    TORCH_CHECK_VALUE(on_device.empty() || on_device.size() == numbers.size(),
                      "on_device must be empty or as long as numbers, got ", on_device.size());
    groups_.resize(count);
    for (int64_t group = 0; group < count; ++group) {
      groups_[group].maximize = maximize.get(group);
      for (size_t i = 0; i < kSettings; ++i) {
        const int64_t at = group * kSettings + i;
        const std::optional<at::Tensor> tensor = on_device.empty() ? std::nullopt : on_device.get(at);
        const Scalar scalar = scalar_of(settings[i].name, tensor, numbers[at]);
        if (!scalar.on_device) check_setting(settings[i], scalar.value, i == kMaxNorm, group);
        groups_[group].settings[i] = scalar;
      }
    }
  }
  GroupProblem& group(int64_t i) { return groups_[i]; }

  // Calls add_leaf(leaves, index, group, gradient) for each parameter that has a gradient.
  template <class AddLeaf>
  void add_leaves(int64_t params, at::IntArrayRef group_ends, const OptionalTensors& grads,
                  const AddLeaf& add_leaf) {
    check_count("grads", grads.size(), "params", params);
    TORCH_CHECK_VALUE(!group_ends.empty() && group_ends.back() == params,
                      "group_ends must end with the number of params, ", params);
    leaves_.leaves.reserve(params);
    for (int64_t i = 0, group = 0; i < params; ++i) {
      while (i >= group_ends[group]) ++group;
      const std::optional<at::Tensor> grad = grads.get(i);
      if (grad) add_leaf(leaves_, i, static_cast<int>(group), *grad);
    }
  }

  void set_norm(double norm_type, const std::string& nonfinite, const std::optional<at::Tensor>& grad_scale,
                const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm) {
    TORCH_CHECK_VALUE(norm_type > 0, "norm_type must be positive, got ", norm_type);
    TORCH_CHECK_VALUE(nonfinite == "skip" || nonfinite == "raise" || nonfinite == "apply",
                      "nonfinite must be 'skip', 'raise' or 'apply', got '", nonfinite, "'");
    problem_.norm_type = norm_type;
    problem_.nonfinite = nonfinite == "skip"    ? NonFinite::kSkip
                         : nonfinite == "raise" ? NonFinite::kRaise
                                                : NonFinite::kApply;
    problem_.grad_scale = scalar_of("grad_scale", grad_scale, 1);
    problem_.found_inf = scalar_of("found_inf", found_inf, 0);
    problem_.norm_is_known = norm.has_value();
    problem_.norm = scalar_of("norm", norm, 0);
  }

  // `on_cpu` is the rule's step on the CPU.
  template <class Rule>
  void run(CpuStep on_cpu) {
    problem_.leaves = leaves_.leaves.data();
    problem_.count = leaves_.leaves.size();
    problem_.chunks = leaves_.chunks;
    problem_.groups = groups_.data();
    problem_.group_count = groups_.size();
#if defined(RNNKERNELS_GPU)
    if (on_gpu_) {
      step_on_gpu<Rule>(problem_, device_);
      return leaves_.finish(true);  // the copies of a skipped step are unchanged
    }
#endif
    std::vector<double> partial(problem_.chunks);
    leaves_.finish((active_kernels().*on_cpu)(problem_, torch_threads(), partial.data()));
  }

 private:
  bool on_gpu_;
  at::Device device_;
  Leaves leaves_;
  StepProblem problem_;
  std::vector<GroupProblem> groups_;
  std::vector<at::Tensor> kept_;

  // The value of a tensor, or `otherwise` if there is none. A value on a GPU is not read but pointed to.
  Scalar scalar_of(const char* name, const std::optional<at::Tensor>& tensor, double otherwise) {
    if (!tensor) return {otherwise};
    TORCH_CHECK_VALUE(tensor->numel() == 1, name, " must have one element, got ", tensor->sizes());
    if (!on_gpu_ || (tensor->device() != device_ && tensor->device().is_cpu())) {
      return {tensor->item<double>()};
    }
    TORCH_CHECK_VALUE(tensor->device() == device_, name, " must be on the CPU or on ", device_, ", got ",
                      tensor->device());
    const bool known = element_type(tensor->scalar_type()).has_value();
    kept_.push_back(known ? *tensor : tensor->to(at::kDouble));
    return {0, kept_.back().const_data_ptr(), element_type(kept_.back().scalar_type()).value()};
  }
};

}  // namespace

void clipped_nesterov(at::TensorList params, const OptionalTensors& grads, at::TensorList velocities,
                      at::TensorList masters, at::TensorList previous_momentum, at::IntArrayRef group_ends,
                      at::ArrayRef<double> numbers, const OptionalTensors& on_device,
                      const c10::List<bool>& maximize, const at::Tensor& record, double norm_type,
                      std::string nonfinite, const std::optional<at::Tensor>& grad_scale,
                      const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm) {
  const int64_t count = group_ends.size();
  check_count("velocities", velocities.size(), "params", params.size());
  check_count("masters", masters.size(), "params", params.size());
  check_count("previous_momentum", previous_momentum.size(), "groups", count);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;  // for the copies of Leaves
  Step step(params, record);
  step.add_groups(kNesterovSettings, numbers, on_device, maximize, count);
  for (int64_t i = 0; i < count; ++i) {
    step.group(i).previous_momentum =
        elements_of<double>(previous_momentum[i], "previous_momentum", 1, step.device());
  }
  step.set_norm(norm_type, nonfinite, grad_scale, found_inf, norm);
  step.add_leaves(params.size(), group_ends, grads,
                  [&](Leaves& leaves, int64_t i, int group, const at::Tensor& grad) {
                    leaves.add(i, group, params[i], grad, {velocities[i]}, masters[i], nullptr);
                  });
  step.run<NesterovRule>(&cpu::Kernels::nesterov);
}

void clipped_adamw(at::TensorList params, const OptionalTensors& grads, at::TensorList exp_avgs,
                   at::TensorList exp_avg_sqs, at::TensorList masters, at::TensorList steps,
                   at::IntArrayRef group_ends, at::ArrayRef<double> numbers, const OptionalTensors& on_device,
                   const c10::List<bool>& maximize, const at::Tensor& record, double norm_type,
                   std::string nonfinite, const std::optional<at::Tensor>& grad_scale,
                   const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm) {
  check_count("exp_avgs", exp_avgs.size(), "params", params.size());
  check_count("exp_avg_sqs", exp_avg_sqs.size(), "params", params.size());
  check_count("masters", masters.size(), "params", params.size());
  check_count("steps", steps.size(), "params", params.size());
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  Step step(params, record);
  step.add_groups(kAdamWSettings, numbers, on_device, maximize, group_ends.size());
  step.set_norm(norm_type, nonfinite, grad_scale, found_inf, norm);
  step.add_leaves(
      params.size(), group_ends, grads, [&](Leaves& leaves, int64_t i, int group, const at::Tensor& grad) {
        float* const step_count = elements_of<float>(steps[i], "step", 1, step.device());
        leaves.add(i, group, params[i], grad, {exp_avgs[i], exp_avg_sqs[i]}, masters[i], step_count);
      });
  step.run<AdamWRule>(&cpu::Kernels::adamw);
}

at::Tensor gradient_power_sum(const OptionalTensors& grads, double norm_type, double unit) {
  TORCH_CHECK_VALUE(norm_type > 0, "norm_type must be positive, got ", norm_type);
  TORCH_CHECK_VALUE(unit > 0 && unit < kNoLimit, "unit must be positive and finite, got ", unit);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const auto first = std::find_if(grads.begin(), grads.end(), [](const auto& grad) {
    return static_cast<std::optional<at::Tensor>>(grad).has_value();
  });
  TORCH_CHECK_VALUE(first != grads.end(), "grads must have a gradient");
  const at::Tensor like = static_cast<std::optional<at::Tensor>>(*first).value();
  Leaves leaves(like.device());
  for (int64_t i = 0; i < static_cast<int64_t>(grads.size()); ++i) {
    const std::optional<at::Tensor> grad = grads.get(i);
    if (grad) leaves.add_gradient(i, *grad);
  }
  PowerSum sum;
  sum.leaves = leaves.leaves.data();
  sum.count = leaves.leaves.size();
  sum.chunks = leaves.chunks;
  sum.norm_type = norm_type;
  sum.unit = unit;
#if defined(RNNKERNELS_GPU)
  if (on_gpu(like)) return power_sum_on_gpu(sum, like.device());
#endif
  std::vector<double> partial(leaves.chunks);
  return at::empty({}, at::kDouble).fill_(active_kernels().power_sum(sum, torch_threads(), partial.data()));
}

}  // namespace rnnkernels::binding
