// Turns tensors into the plain struct of a product and runs it with torch's threads and memory.
#include "binding/product.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>

#include "binding/host.h"
#include "binding/problem.h"

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

// A result with fewer columns is computed transposed: the register tile divides columns into blocks of 16,
// but rows one by one.
constexpr int64_t kFewColumns = 9;

}  // namespace

void multiply(const at::Tensor& out, const at::Tensor& left, const at::Tensor& right,
              const OptionalTensor& bias, const OptionalTensor& addend) {
  if (out.size(-1) < kFewColumns && out.size(-2) >= kFewColumns && !bias) {
    const at::Tensor transposed = at::empty_like(out.transpose(-2, -1), at::MemoryFormat::Contiguous);
    multiply(transposed, right.transpose(-2, -1), left.transpose(-2, -1));
    if (addend) {
      at::add_out(const_cast<at::Tensor&>(out), *addend, transposed.transpose(-2, -1));
    } else {
      out.copy_(transposed.transpose(-2, -1));
    }
    return;
  }
  Product product;
  product.type = element_type(out.scalar_type()).value();
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
  at::Tensor addend_units;
  if (addend) {
    addend_units = with_contiguous_units(*addend);
    product.addend = rows_of(addend_units, 3);
  }
  if (out.numel() == 0) return;
  const cpu::Kernels& kernels = active_kernels();
  const cpu::Threads threads = torch_threads();
  const cpu::ProductPlan plan =
      cpu::make_product_plan(product.networks, product.rows, product.depth, product.columns, threads);
  const at::Tensor workspace = empty_bytes(kernels.product_workspace(product, plan), out.device());
  kernels.product(product, plan, threads, workspace.data_ptr());
}

void sum_over_rows(const at::Tensor& out, const at::Tensor& rows, bool accumulate) {
  if (on_gpu(rows)) {
    const at::Tensor sum = rows.sum(-2);
    accumulate ? out.add_(sum) : out.copy_(sum);
    return;
  }
  std::vector<int64_t> shape = rows.sizes().vec();
  shape.back() = rows.size(-2);
  shape[shape.size() - 2] = 1;
  multiply(out.unsqueeze(-2), at::ones({1}, rows.options()).expand(shape), rows, {},
           accumulate ? OptionalTensor(out.unsqueeze(-2)) : OptionalTensor());
}

at::Tensor sum_like(const at::Tensor& decay, at::Tensor per_unit) {
  if (per_unit.dim() == 2 && decay.dim() < 2) {
    const at::Tensor sum = at::empty({per_unit.size(1)}, per_unit.options());
    sum_over_rows(sum, per_unit);
    per_unit = sum;
  }
  if (decay.dim() > 0) return per_unit;
  const at::Tensor sum = at::empty({1}, per_unit.options());
  sum_over_rows(sum, per_unit.unsqueeze(-1));
  return sum.squeeze(0);
}

}  // namespace rnnkernels::binding
