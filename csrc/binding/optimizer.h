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

void clipped_nesterov_cpu(at::TensorList params, const OptionalTensors& grads, at::TensorList velocities,
                          at::TensorList masters, at::TensorList previous_momentum,
                          at::IntArrayRef group_ends, at::ArrayRef<double> numbers,
                          const OptionalTensors& on_device, const c10::List<bool>& maximize,
                          const at::Tensor& record, double norm_type, std::string nonfinite,
                          const std::optional<at::Tensor>& grad_scale,
                          const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm);

void clipped_adamw_cpu(at::TensorList params, const OptionalTensors& grads, at::TensorList exp_avgs,
                       at::TensorList exp_avg_sqs, at::TensorList masters, at::TensorList steps,
                       at::IntArrayRef group_ends, at::ArrayRef<double> numbers,
                       const OptionalTensors& on_device, const c10::List<bool>& maximize,
                       const at::Tensor& record, double norm_type, std::string nonfinite,
                       const std::optional<at::Tensor>& grad_scale,
                       const std::optional<at::Tensor>& found_inf, const std::optional<at::Tensor>& norm);

at::Tensor gradient_power_sum_cpu(const OptionalTensors& grads, double norm_type, double unit);

// --- Between the two of optimizer.cpp and leaves.cpp --------------------------------------------------

// The arrays of a call, each flat in memory; tensors whose elements lie otherwise are copied, and what
// is written is copied back at the end.
class Leaves {
 public:
  // One parameter with its gradient, states and (or itself) master copy. Checks them all.
  void add(int64_t index, int group, const at::Tensor& param, const at::Tensor& grad,
           std::initializer_list<at::Tensor> states, const at::Tensor& master, double step);
  // A gradient alone, for the norm.
  void add_gradient(int64_t index, const at::Tensor& grad);
  // Writes the copies back and tells autograd that the parameters have changed.
  void finish(bool written);

  std::vector<Leaf> leaves;
  std::vector<double> partial;  // workspace, [chunks]
  int64_t chunks = 0;
  void make_workspace() { partial.resize(chunks); }

 private:
  const at::Tensor& flat(const at::Tensor& tensor, const at::Tensor& order, bool written);
  void push(Leaf& leaf);

  std::vector<at::Tensor> changed_;
  std::vector<at::Tensor> copies_;
  struct Back {
    at::Tensor to, from;
  };
  std::vector<Back> back_;
};

}  // namespace rnnkernels::binding
