// Tensors of an optimizer step as leaves: checks, and copies of the tensors whose layouts differ.
#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/util/Exception.h>

#include "binding/arguments.h"
#include "binding/optimizer.h"

namespace rnnkernels::binding {

namespace {

ElementType type_of(int64_t index, const char* name, const at::Tensor& tensor) {
  const std::optional<ElementType> type = element_type(tensor.scalar_type());
  TORCH_CHECK_VALUE(type, name, " ", index, " must be float32, float64, bfloat16 or float16, got ",
                    tensor.scalar_type());
  return *type;
}

// Raises ValueError if elements of a tensor that the step writes share memory, as those of an expanded one
// do.
void check_apart(int64_t index, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(at::has_internal_overlap(tensor) != at::MemOverlap::Yes, name, " ", index,
                    " must have memory for each element, got strides ", tensor.strides(), " for shape ",
                    tensor.sizes());
}

// Whether two tensors of the same shape have their elements at the same places; the stride of a dimension of
// size 1 does not matter.
bool same_order(const at::Tensor& a, const at::Tensor& b) {
  const auto sizes = a.sizes(), of_a = a.strides(), of_b = b.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != 1 && of_a[i] != of_b[i]) return false;
  }
  return true;
}

// Whether the values of a tensor are in its memory. torch may instead have noted that they are to be negated,
// or that all are zero.
bool is_literal(const at::Tensor& tensor) { return !tensor.is_neg() && !tensor._is_zerotensor(); }

// A tensor whose strides give the order of a leaf's elements: the parameter itself if it has no gaps, else a
// contiguous tensor of its shape, without memory.
at::Tensor order_of(const at::Tensor& tensor) {
  if (tensor.is_non_overlapping_and_dense()) return tensor;
  return at::empty(tensor.sizes(), tensor.options().device(at::kMeta));
}

}  // namespace

void Leaves::check_dense(int64_t index, const char* name, const at::Tensor& tensor) const {
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, name, " ", index, " must be dense, got layout ",
                    tensor.layout());
  TORCH_CHECK_VALUE(tensor.device() == device_, name, " ", index, " must be on the device of the others, ",
                    device_, ", got ", tensor.device());
}

void Leaves::check_like(int64_t index, const char* name, const at::Tensor& tensor,
                        const at::Tensor& param) const {
  check_dense(index, name, tensor);
  TORCH_CHECK_VALUE(tensor.sizes() == param.sizes(), name, " ", index,
                    " must have the shape of its parameter, ", param.sizes(), ", got ", tensor.sizes());
}

// Only called for tensors with elements.
const at::Tensor& Leaves::flat(const at::Tensor& tensor, const at::Tensor& order, bool written) {
  // NOLINTNEXTLINE(bugprone-return-const-ref-from-parameter): the tensors outlive the step
  if (same_order(tensor, order) && is_literal(tensor)) return tensor;
  const at::Tensor copy = at::empty_strided(tensor.sizes(), order.strides(), tensor.options()).copy_(tensor);
  if (written) copied_back_.push_back({tensor, copy});
  copies_.push_back(copy);
  return copies_.back();
}

void Leaves::push(Leaf& leaf) {
  leaf.first_chunk = chunks;
  chunks += chunks_of(leaf.size);
  leaves.push_back(leaf);
}

void Leaves::add(int64_t index, int group, const at::Tensor& param, const at::Tensor& grad,
                 std::initializer_list<at::Tensor> states, const at::Tensor& master, float* step_count) {
  check_dense(index, "parameter", param);
  check_like(index, "the gradient of parameter", grad, param);
  Leaf leaf;
  leaf.group = group;
  leaf.step_count = step_count;
  leaf.size = param.numel();
  leaf.type = type_of(index, "parameter", param);
  leaf.grad_type = type_of(index, "the gradient of parameter", grad);
  TORCH_CHECK_VALUE(leaf.grad_type == leaf.type ||
                        (leaf.grad_type == ElementType::kFloat32 && leaf.type != ElementType::kFloat64),
                    "the gradient of parameter ", index, " must have its dtype, ", param.scalar_type(),
                    ", got ", grad.scalar_type());
  const auto state_dtype = param.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const bool has_master = !master.is_same(param);
  const auto check_state = [&](const char* name, const at::Tensor& state) {
    check_like(index, name, state, param);
    TORCH_CHECK_VALUE(state.scalar_type() == state_dtype, name, " ", index, " must be ", state_dtype,
                      ", got ", state.scalar_type());
    check_apart(index, name, state);
  };
  for (const at::Tensor& state : states) check_state("the state of parameter", state);
  if (has_master) check_state("the master copy of parameter", master);
  check_apart(index, "parameter", param);
  if (leaf.size == 0) return push(leaf);

  const at::Tensor order = order_of(param);
  leaf.param = flat(param, order, true).data_ptr();
  leaf.grad = flat(grad, order, false).const_data_ptr();
  for (int i = 0; const at::Tensor& state : states) leaf.state[i++] = flat(state, order, true).data_ptr();
  if (has_master) leaf.master = flat(master, order, true).data_ptr();
  changed_.push_back(param);
  push(leaf);
}

void Leaves::add_gradient(int64_t index, const at::Tensor& grad) {
  check_dense(index, "gradient", grad);
  Leaf leaf;
  leaf.type = leaf.grad_type = type_of(index, "gradient", grad);
  leaf.size = grad.numel();
  if (leaf.size == 0) return;
  leaf.grad = flat(grad, order_of(grad), false).const_data_ptr();
  push(leaf);
}

void Leaves::finish(bool written) {
  if (!written) return;
  for (const auto& [original, copy] : copied_back_) original.copy_(copy);
  for (const at::Tensor& param : changed_) {
    if (!param.is_inference()) param.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace rnnkernels::binding
