// The operators of the optimizers as C++ functions. operators.cpp has their schemas and describes the
// arguments.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "core/optimizer.h"

namespace rnnkernels::binding {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

void clipped_nesterov(at::TensorList params, const OptionalTensors& grads, at::TensorList velocities,
                      at::TensorList masters, at::TensorList previous_momentum, at::IntArrayRef group_ends,
                      at::ArrayRef<double> numbers, const OptionalTensors& on_device,
                      const c10::List<bool>& maximize, const at::Tensor& record, double norm_type,
                      std::string nonfinite, const std::optional<at::Tensor>& grad_scale,
                      const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm);

void clipped_adamw(at::TensorList params, const OptionalTensors& grads, at::TensorList exp_avgs,
                   at::TensorList exp_avg_sqs, at::TensorList masters, at::TensorList steps,
                   at::IntArrayRef group_ends, at::ArrayRef<double> numbers, const OptionalTensors& on_device,
                   const c10::List<bool>& maximize, const at::Tensor& record, double norm_type,
                   std::string nonfinite, const std::optional<at::Tensor>& grad_scale,
                   const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm);

at::Tensor gradient_power_sum(const OptionalTensors& grads, double norm_type, double unit);

// --- Between the files of the optimizer --------------------------------------------------------------

// In builds with kernels for a GPU, defined in optimizer_gpu.cpp.
template <class Rule>
void step_on_gpu(const StepProblem& problem, const at::Device& device);
at::Tensor power_sum_on_gpu(const PowerSum& problem, const at::Device& device);

// The tensors of a call as leaves, whose arrays have the same element at the same place. A tensor whose
// elements are not in the order of its parameter's is copied, and copied back at the end if the step writes
// it. All tensors are on one device.
class Leaves {
 public:
  explicit Leaves(const at::Device& device) : device_(device) {}

  // Checks and adds one parameter with its gradient and states. `master` is its master copy, or `param`
  // itself if it has none. `index` is the parameter's in error messages.
  void add(int64_t index, int group, const at::Tensor& param, const at::Tensor& grad,
           std::initializer_list<at::Tensor> states, const at::Tensor& master, float* step_count);
  // Checks and adds a gradient alone, for a sum of powers.
  void add_gradient(int64_t index, const at::Tensor& grad);
  // If the step has `written`: copies the copies back, and tells autograd that the parameters have changed.
  void finish(bool written);

  std::vector<Leaf> leaves;
  int64_t chunks = 0;

 private:
  void check_dense(int64_t index, const char* name, const at::Tensor& tensor) const;
  void check_like(int64_t index, const char* name, const at::Tensor& tensor, const at::Tensor& param) const;
  // The tensor itself if its elements are in the order of `order`, else a copy that is.
  const at::Tensor& flat(const at::Tensor& tensor, const at::Tensor& order, bool written);
  void push(Leaf& leaf);

  struct Copy {
    at::Tensor original, copy;
  };
  at::Device device_;
  std::vector<at::Tensor> changed_;  // parameters
  std::vector<at::Tensor> copies_;   // all of them, so that they live as long as the leaves
  std::vector<Copy> copied_back_;
};

}  // namespace rnnkernels::binding
