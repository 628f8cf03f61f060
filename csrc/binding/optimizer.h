// The operators of the optimizers as C++ functions. Their schemas, and what each argument means,
// stand in operators.cpp.
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

// Where there are kernels for a GPU: optimizer_gpu.cpp.
template <class Rule>
void step_on_gpu(const StepProblem& problem, const at::Device& device);
at::Tensor power_sum_on_gpu(const PowerSum& problem, const at::Device& device);

// The arrays of a call, each flat in memory; tensors whose elements lie otherwise are copied, and what
// is written is copied back at the end. All are on one device.
class Leaves {
 public:
  explicit Leaves(const at::Device& device) : device_(device) {}

  // One parameter with its gradient, states and (or itself) master copy. Checks them all.
  void add(int64_t index, int group, const at::Tensor& param, const at::Tensor& grad,
           std::initializer_list<at::Tensor> states, const at::Tensor& master, float* step_count);
  // A gradient alone, for the norm.
  void add_gradient(int64_t index, const at::Tensor& grad);
  // Writes the copies back and tells autograd that the parameters have changed.
  void finish(bool written);

  std::vector<Leaf> leaves;
  int64_t chunks = 0;

 private:
  void check_dense(int64_t index, const char* what, const at::Tensor& tensor) const;
  void check_like(int64_t index, const char* what, const at::Tensor& tensor, const at::Tensor& param) const;
  const at::Tensor& flat(const at::Tensor& tensor, const at::Tensor& order, bool written);
  void push(Leaf& leaf);

  at::Device device_;
  std::vector<at::Tensor> changed_;
  std::vector<at::Tensor> copies_;
  struct Back {
    at::Tensor to, from;
  };
  std::vector<Back> back_;
};

}  // namespace rnnkernels::binding
