// rnnkernels::product: check, allocate, run; and its gradients, which are products again.
#include "binding/product.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <torch/csrc/autograd/custom_function.h>

#include "binding/machine.h"

namespace rnnkernels::binding {

namespace {

Matrix matrix_of(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.dim() > 2 ? tensor.stride(0) : 0, tensor.stride(-2),
          tensor.stride(-1)};
}

Rows rows_of(const at::Tensor& tensor, int64_t dimensions) {
  return {tensor.mutable_data_ptr(), tensor.dim() > dimensions - 1 ? tensor.stride(0) : 0,
          dimensions > 2 ? tensor.stride(-2) : 0};
}

std::vector<c10::SymInt> checked_shape(const at::Tensor& left, const at::Tensor& right,
                                       const OptionalTensor& bias) {
  TORCH_CHECK_VALUE(left.scalar_type() == at::kFloat || left.scalar_type() == at::kDouble,
                    "left must be float32 or float64, got ", left.scalar_type());
  TORCH_CHECK_VALUE(left.dim() >= 1, "left must be [..., K], got a scalar");
  TORCH_CHECK_VALUE(right.dim() == 2, "right must be [K, N], got ", right.sym_sizes());
  const c10::SymInt depth = left.sym_size(-1), columns = right.sym_size(1);
  check_like("right", right, {depth, columns}, "[K, N]", left, "left");
  if (bias) check_like("bias", *bias, {columns}, "[N]", left, "left");
  std::vector<c10::SymInt> shape = left.sym_sizes().vec();
  shape.back() = columns;
  return shape;
}

at::Tensor call(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("rnnkernels::product", "")
                             .typed<decltype(product_cpu)>();
  return op.call(left, right, bias);
}

// With G the gradient of the result: d_left = G right^T, d_right = left^T G, d_bias = sum over rows of G.
class Differentiable : public torch::autograd::Function<Differentiable> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& left,
                            const at::Tensor& right, const OptionalTensor& bias) {
    context->save_for_backward({left, right});
    context->saved_data["has_bias"] = bias.has_value();
    const at::AutoDispatchBelowADInplaceOrView below;
    return call(left, right, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &left = saved[0], &right = saved[1], &grad = grads[0];
    torch::autograd::variable_list result(3);
    if (!grad.defined()) return result;
    const at::Tensor rows = all_rows(grad);
    if (context->needs_input_grad(0)) result[0] = call(grad, right.t(), {});
    if (context->needs_input_grad(1)) {
      result[1] = call(all_rows(left).t(), rows, {});
    }
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(2)) {
      result[2] = call(ones_for(rows), rows, {}).squeeze(0);
    }
    return result;
  }
};

}  // namespace

void multiply(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
              const OptionalTensor& bias, bool accumulate) {
  Product product;
  product.scalar = out.scalar_type() == at::kFloat ? Scalar::kFloat32 : Scalar::kFloat64;
  product.networks = out.dim() > 2 ? out.size(0) : 1;
  product.rows = out.size(-2);
  product.depth = left.size(-1);
  product.columns = out.size(-1);
  product.left = matrix_of(left);
  product.right = matrix_of(right);
  at::Tensor bias_units;
  if (bias) {
    bias_units = bias->contiguous();
    product.bias = rows_of(bias_units, 2);
  }
  product.out = rows_of(out, 3);
  product.accumulate = accumulate;
  if (out.numel() == 0) return;
  const cpu::Kernels& kernels = active_kernels();
  const cpu::Threads threads = torch_threads();
  const cpu::ProductPlan plan =
      cpu::make_product_plan(product.networks, product.rows, product.depth, product.columns, threads);
  const at::Tensor workspace =
      at::empty({kernels.product_workspace(product, plan)}, out.options().dtype(at::kByte));
  kernels.product(product, plan, threads, workspace.data_ptr());
}

at::Tensor product_cpu(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias) {
  const at::Tensor result = at::empty_symint(checked_shape(left, right, bias), left.options());
  if (result.numel() > 0) multiply(all_rows(result), all_rows(left), right, bias);
  return result;
}

at::Tensor product_meta(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias) {
  return at::empty_symint(checked_shape(left, right, bias), left.options());
}

at::Tensor product_autograd(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias) {
  if (has_tangent(left) || has_tangent(right) || (bias && has_tangent(*bias))) {
    return product_transformed(left, right, bias);
  }
  return Differentiable::apply(left, right, bias);
}

at::Tensor product_transformed(const at::Tensor& left, const at::Tensor& right, const OptionalTensor& bias) {
  const at::Tensor result = at::matmul(left, right);
  return bias ? at::add(result, *bias) : result;
}

}  // namespace rnnkernels::binding
