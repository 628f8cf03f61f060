// Runs the recurrence's kernels of csrc/cuda on torch's current stream: the choice of the launch plan, and
// the time loop with one product of torch per step where no team holds W_hh.
#include "binding/recurrence_gpu.h"

#include <ATen/Context.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <string>
#include <type_traits>

#include "binding/host.h"
#include "cuda/layout.h"
#include "cuda/recurrence.h"
#include "cuda/steps.h"

namespace rnnkernels::binding {

namespace {

cuda::LaunchPlan plan_of(const Recurrence& problem, const at::Tensor& weight) {
  const cuda::Device* device = gpu(weight.get_device());
  TORCH_CHECK(device, "there is no GPU ", weight.get_device());
  const char* requested = std::getenv("RNNKERNELS_TEAM");
  cuda::LaunchPlan plan;
  std::string message;
  const bool planned = cuda::make_plan({problem.type, problem.networks, problem.layout.batch, problem.hidden},
                                       *device, requested ? requested : "", &plan, &message);
  TORCH_CHECK_VALUE(planned, "RNNKERNELS_TEAM ", message);
  return plan;
}

// The products of the time loop with one product per step: product = operand W^T or operand W, [rows, H] per
// network. All steps use the same memory, of `most_numbers` elements.
class StepProducts {
 public:
  StepProducts(const at::Tensor& weight, bool transposed, int64_t most_numbers)
      : factor_(transposed ? weight.transpose(-2, -1) : weight),
        operand_(at::empty({most_numbers}, weight.options())),
        product_(at::empty_like(operand_)) {
    // A library would copy a matrix with other strides for each product.
    if (weight.stride(-1) != 1 && weight.stride(-2) != 1) factor_ = factor_.contiguous();
  }

  void* operand() const { return operand_.data_ptr(); }
  const void* product() const { return product_.const_data_ptr(); }

  void multiply(int64_t rows) {
    if (rows != rows_) {
      rows_ = rows;
      std::vector<int64_t> shape = factor_.sizes().vec();
      shape[shape.size() - 2] = rows;
      const int64_t numbers = c10::multiply_integers(shape);
      left_ = operand_.narrow(0, 0, numbers).view(shape);
      out_ = product_.narrow(0, 0, numbers).view(shape);
    }
    if (factor_.dim() == 3) {
      at::bmm_out(out_, left_, factor_);
    } else {
      at::mm_out(out_, left_, factor_);
    }
  }

 private:
  at::Tensor factor_, operand_, product_, left_, out_;
  int64_t rows_ = -1;
};

template <class Problem>
void run_by_steps(const Problem& problem, const Layout& layout, const at::Tensor& weight,
                  cuda::Stream stream) {
  const at::Tensor states = empty_bytes(cuda::state_bytes(problem), weight.device());
  StepProducts products(weight, !std::is_same_v<Problem, BackwardProblem>,
                        problem.networks * layout.batch * problem.hidden);
  const cuda::StepMemory memory{states.data_ptr(), products.product(), products.operand()};
  for (int64_t i = 0; i <= layout.steps; ++i) {
    const cuda::PointwiseStep step = cuda::pointwise_step_at(problem, layout, i);
    if (step.updates) products.multiply(step.from_rows);
    check_launched(cuda::run_pointwise_step(problem, step, memory, stream));
  }
}

template <class Problem>
using Launcher = cuda::Status (*)(const Problem&, const cuda::LaunchPlan&, bool tf32, void*, cuda::Stream);

template <class Problem>
void run(const Problem& problem, const Layout& layout, const at::Tensor& weight, Launcher<Problem> launch) {
  TORCH_CHECK_VALUE(layout.steps < INT32_MAX, "sequences on CUDA must have less than 2^31 - 1 steps, got ",
                    layout.steps);
  const c10::DeviceGuard guard(weight.device());
  const cuda::Stream stream = current_stream(weight.device());
  const cuda::LaunchPlan plan = plan_of(problem, weight);
  if (plan.team == cuda::Team::kSteps) return run_by_steps(problem, layout, weight, stream);
  const bool tf32 = problem.type == ElementType::kFloat32 && at::globalContext().allowTF32CuBLAS();
  const at::Tensor workspace = empty_bytes(plan.workspace_bytes, weight.device());
  check_launched(launch(problem, plan, tf32, workspace.data_ptr(), stream));
}

}  // namespace

at::Tensor put_layout_on_gpu(const Layout& host, const at::Tensor& like, Layout* device) {
  const c10::DeviceGuard guard(like.device());
  const at::Tensor table = empty_bytes(cuda::layout_bytes(host), like.device());
  check_launched(cuda::put_layout(host, table.data_ptr(), device, current_stream(like.device())));
  return table;
}

void run_on_gpu(const ForwardProblem& problem, const Layout& layout, const at::Tensor& weight) {
  run(problem, layout, weight, &cuda::forward);
}
void run_on_gpu(const BackwardProblem& problem, const Layout& layout, const at::Tensor& weight) {
  run(problem, layout, weight, &cuda::backward);
}
void run_on_gpu(const LinearProblem& problem, const Layout& layout, const at::Tensor& weight) {
  run(problem, layout, weight, &cuda::linear);
}

void put_operands_on_gpu(const BackwardProblem& problem, int64_t first_row, const at::Tensor& operands) {
  const c10::DeviceGuard guard(operands.device());
  check_launched(cuda::put_operands(problem, first_row, operands.size(-2), operands.data_ptr(),
                                    current_stream(operands.device())));
}

}  // namespace rnnkernels::binding
