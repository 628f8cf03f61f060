// Turns tensors into the structs that the kernels read, and runs a pass on the device.
#include "binding/problem.h"

#include <ATen/ops/empty.h>

#include "binding/host.h"
#if defined(RNNKERNELS_GPU)
#include "binding/recurrence_gpu.h"
#include "cuda/passes.h"
#endif

namespace rnnkernels::binding {

namespace {

// Whether the row stride exceeds the limit of the CUDA kernels. The CPU kernels compute offsets in 64 bits.
bool has_far_rows([[maybe_unused]] const at::Tensor& tensor) {
#if defined(RNNKERNELS_GPU)
  return on_gpu(tensor) && tensor.stride(-2) > cuda::kLargestRowStride;
#else
  return false;
#endif
}

}  // namespace

LayoutStorage::LayoutStorage(const Sizes& sizes, const OptionalTensor& batch_sizes, bool reverse,
                             [[maybe_unused]] const at::Tensor& like)
    : rows(batch_sizes) {
  layout.steps = sizes.steps.expect_int();
  layout.batch = sizes.batch.expect_int();
  layout.reverse = reverse;
  if (rows) {
    layout.rows = rows->const_data_ptr<int64_t>();
    offsets.reserve(layout.steps);
    for (int64_t t = 0, offset = 0; t < layout.steps; ++t) {
      offsets.push_back(offset);
      offset += layout.rows[t];
    }
    layout.offsets = offsets.data();
  }
  problem = layout;
#if defined(RNNKERNELS_GPU)
  if (rows && on_gpu(like)) on_device = put_layout_on_gpu(layout, like, &problem);
#endif
}

at::Tensor with_contiguous_units(const at::Tensor& tensor) {
  if (!tensor.defined() || (tensor.stride(-1) == 1 && !has_far_rows(tensor))) return tensor;
  // Expanded dimensions stay expanded: the gradient of a sum or a mean has them.
  at::Tensor once = tensor;
  for (int64_t dim = 0; dim < tensor.dim() - 1; ++dim) {
    if (tensor.stride(dim) == 0 && tensor.size(dim) > 1) once = once.narrow(dim, 0, 1);
  }
  return once.contiguous().expand(tensor.sizes());
}

Sequence sequence_of(const at::Tensor& tensor, const Sizes& sizes) {
  if (!tensor.defined()) return {};
  Sequence sequence;
  sequence.data = tensor.data_ptr();
  sequence.network_stride = sizes.grouped ? tensor.stride(0) : 0;
  sequence.row_stride = tensor.stride(-2);
  sequence.step_stride = tensor.stride(sizes.packed ? -2 : -3);
  return sequence;
}

Rows rows_of(const at::Tensor& tensor, const Sizes& sizes) {
  if (!tensor.defined()) return {};
  return {tensor.data_ptr(), sizes.grouped ? tensor.stride(0) : 0, tensor.stride(-2)};
}

void fill_recurrence(Recurrence& problem, const Sizes& sizes, const RecurrenceSpec& spec,
                     const LayoutStorage& layout, const at::Tensor& like, const at::Tensor& h0,
                     const at::Tensor& weight_hh, const at::Tensor& decay) {
  problem.type = element_type(like.scalar_type()).value();
  problem.nonlinearity = spec.nonlinearity;
  problem.form = spec.form;
  problem.networks = sizes.networks.expect_int();
  problem.hidden = sizes.hidden.expect_int();
  problem.layout = layout.problem;
  problem.weight = {weight_hh.const_data_ptr(), sizes.grouped ? weight_hh.stride(0) : 0, weight_hh.stride(-2),
                    weight_hh.stride(-1)};
  problem.decay = decay.const_data_ptr();
  problem.decay_stride = decay.dim() > 0 ? decay.stride(-1) : 0;
  problem.decay_network_stride = decay.dim() > 1 ? decay.stride(0) : 0;
  problem.h0 = rows_of(h0, sizes);
}

at::Tensor empty_saved(const Sizes& sizes, const SavedParts& parts, const at::Tensor& like) {
  return at::empty_symint(saved_shape(parts, sizes),
                          like.options().dtype(saved_type(parts, like.scalar_type())));
}

void fill_saved(Recurrence& problem, const Sizes& sizes, const SavedParts& parts, const at::Tensor& saved) {
  if (parts.none()) return;
  const Rows rows = rows_of(saved, sizes);
  const int64_t hidden = sizes.hidden.expect_int();
  int64_t before = 0;  // elements of a row before decay_slope
  if (parts.active) {
    const int64_t elements_of_word = parts.words_alone() ? 1 : 2;
    problem.saved.active = {rows.data, rows.network_stride / elements_of_word,
                            rows.row_stride / elements_of_word};
    before = (hidden + 31) / 32 * elements_of_word;
  }
  if (parts.activation) {
    problem.saved.activation = rows;
    before = hidden;
  }
  if (parts.decay_slope) {
    problem.saved.decay_slope = {static_cast<char*>(rows.data) + before * saved.element_size(),
                                 rows.network_stride, rows.row_stride};
  }
}

namespace {

template <class Problem>
void run_with(const Problem& problem, [[maybe_unused]] const LayoutStorage& layout,
              const at::Tensor& weight_hh,
              int64_t (*cpu::Kernels::*workspace_bytes)(const Problem&, const cpu::ThreadPlan&),
              void (*cpu::Kernels::*kernel)(const Problem&, const cpu::ThreadPlan&, const cpu::Threads&,
                                            void*)) {
  if (problem.networks == 0 || problem.layout.batch == 0) return;  // nothing to write
#if defined(RNNKERNELS_GPU)
  if (on_gpu(weight_hh)) return run_on_gpu(problem, layout.layout, weight_hh);
#endif
  const cpu::Kernels& kernels = active_kernels();
  const cpu::Threads threads = torch_threads();
  const cpu::ThreadPlan plan =
      cpu::make_thread_plan(problem.networks, problem.layout.steps, problem.layout.batch, problem.hidden,
                            problem.type == ElementType::kFloat64 ? 8 : 4, threads);
  const int64_t bytes = (kernels.*workspace_bytes)(problem, plan);
  // at::empty is aligned to 64 bytes, which the barriers' cache lines need.
  const at::Tensor workspace = empty_bytes(bytes, weight_hh.device());
  (kernels.*kernel)(problem, plan, threads, workspace.data_ptr());
}

}  // namespace

void run(const ForwardProblem& problem, const LayoutStorage& layout, const at::Tensor& weight_hh) {
  run_with(problem, layout, weight_hh, &cpu::Kernels::forward_workspace, &cpu::Kernels::forward);
}

void run(const BackwardProblem& problem, const LayoutStorage& layout, const at::Tensor& weight_hh) {
  run_with(problem, layout, weight_hh, &cpu::Kernels::backward_workspace, &cpu::Kernels::backward);
}

void run(const LinearProblem& problem, const LayoutStorage& layout, const at::Tensor& weight_hh) {
  run_with(problem, layout, weight_hh, &cpu::Kernels::linear_workspace, &cpu::Kernels::linear);
}

}  // namespace rnnkernels::binding
