// rnnkernels::leaky_recurrence_backward and rnnkernels::projected_recurrence_backward: check, allocate, run
// the walk, then the sums over all steps (dW_hh as products, d_decay over the batch).
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rsub.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "binding/machine.h"
#include "binding/problem.h"
#include "binding/product.h"
#include "binding/recurrence.h"
#include "cpu/split.h"

namespace rnnkernels::binding {

namespace {

enum Wanted { kPre, kH0, kWeight, kDecay };

struct Checked {
  Sizes sizes;
  Kind kind;
};

Checked check_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                       const at::Tensor& output, const at::Tensor& saved, const OptionalTensor& h0,
                       const at::Tensor& weight_hh, const at::Tensor& decay,
                       const OptionalTensor& batch_sizes, const std::string& nonlinearity,
                       const std::string& form) {
  const Kind kind = check_kind(nonlinearity, form);
  const Sizes sizes = check_forward("output", output, h0, weight_hh, decay, batch_sizes);
  const auto sequence = sizes.sequence(sizes.hidden);
  if (grad_output) check_like("grad_output", *grad_output, sequence, "the shape of output", output, "output");
  if (grad_h_n) check_like("grad_h_n", *grad_h_n, sizes.state(), "[B, H]", output, "output");
  TORCH_CHECK_VALUE(saved.layout() == at::kStrided && saved.device() == output.device(),
                    "saved must be on the device of output, ", output.device(), ", got ", saved.device());
  if (kind.keeps_bits || kind.keeps_activation) {
    const auto expected = kind.keeps_bits ? sizes.sequence((sizes.hidden + 31) / 32) : sequence;
    TORCH_CHECK_VALUE(saved.sym_sizes() == c10::SymIntArrayRef(expected) && saved.is_contiguous() &&
                          saved.scalar_type() == (kind.keeps_bits ? at::kInt : output.scalar_type()),
                      "saved must be what leaky_recurrence(save=True) returned, got ", saved.scalar_type(),
                      " ", saved.sym_sizes());
  }
  return {sizes, kind};
}

BackwardResult empty_results(const Sizes& sizes, const std::array<bool, 4>& wanted,
                             const at::Tensor& weight_hh, const at::Tensor& decay, const at::Tensor& like) {
  const auto if_wanted = [&](Wanted which, c10::SymIntArrayRef shape) {
    return wanted[which] ? at::empty_symint(shape, like.options()) : at::empty({0}, like.options());
  };
  return {at::empty_symint(sizes.sequence(sizes.hidden), like.options()), if_wanted(kH0, sizes.state()),
          if_wanted(kWeight, weight_hh.sym_sizes()),
          if_wanted(kDecay, decay.sym_sizes()).to(decay.scalar_type())};
}

// Adds u^T x to `sum`, for [rows, H] or [G, rows, H].
void add_product(const at::Tensor& sum, const at::Tensor& u, const at::Tensor& x) {
  multiply(sum, u.transpose(-2, -1), x, {}, true);
}

// About how many rows of the matrix's right operand are copied together at a time.
constexpr int64_t kRowsAtOnce = 4096;

// dW_hh = sum_t u_t^T x_t, where x_t is h_{t-1} (rate) or f(h_{t-1}) (current).
class WeightGradient {
 public:
  WeightGradient(const Sizes& sizes, const Kind& kind, const Layout& layout, const at::Tensor& output,
                 const at::Tensor& h0, const at::Tensor& d_pre, at::Tensor& d_weight)
      : kind_(kind),
        layout_(layout),
        output_(output),
        h0_(h0),
        d_pre_(d_pre),
        sum_(d_weight),
        packed_(sizes.packed) {}

  void compute() {
    sum_.zero_();
    if (layout_.steps == 0 || layout_.batch == 0) return;
    if (kind_.reads_state && !packed_) {
      from_views();
    } else {
      from_copies();
    }
  }

 private:
  const Kind& kind_;
  const Layout& layout_;
  const at::Tensor& output_;  // [G, T, B, H] or [G, rows, H], G perhaps missing
  const at::Tensor& h0_;
  const at::Tensor& d_pre_;
  at::Tensor& sum_;
  bool packed_;

  int64_t step_dim() const { return sum_.dim() - 2; }

  // A padded batch in the rate form needs no copy: u and h, one step apart.
  void from_views() {
    const int64_t rest = layout_.steps - 1;
    if (rest > 0) {
      const int64_t u_from = layout_.reverse ? 0 : 1, h_from = layout_.reverse ? 1 : 0;
      const int64_t dim = step_dim();
      add_product(sum_, d_pre_.narrow(dim, u_from, rest).flatten(dim, dim + 1),
                  output_.narrow(dim, h_from, rest).flatten(dim, dim + 1));
    }
    const int64_t first = layout_.reverse ? layout_.steps - 1 : 0;
    if (h0_.defined()) add_product(sum_, d_pre_.select(step_dim(), first), h0_);
  }

  // Otherwise x is put together a block of steps at a time, and f applied to it where it stands.
  void from_copies() {
    const at::Tensor u = packed_ ? d_pre_ : d_pre_.flatten(step_dim(), step_dim() + 1);
    const at::Tensor h = packed_ ? output_ : output_.flatten(step_dim(), step_dim() + 1);
    for (int64_t t = 0; t < layout_.steps;) {
      const int64_t start = offset(t);
      int64_t end = t;
      while (end < layout_.steps && (end == t || offset(end) + layout_.rows_at(end) - start <= kRowsAtOnce)) {
        ++end;
      }
      const int64_t rows = offset(end - 1) + layout_.rows_at(end - 1) - start;
      at::Tensor x = at::empty(shape_of(rows), output_.options());
      for (int64_t step = t; step < end; ++step) copy_previous(step, h, x, offset(step) - start);
      if (!kind_.reads_state) {
        active_kernels().activate(kind_.nonlinearity,
                                  x.scalar_type() == at::kFloat ? Scalar::kFloat32 : Scalar::kFloat64,
                                  x.data_ptr(), x.data_ptr(), x.numel());
      }
      add_product(sum_, u.narrow(step_dim(), start, rows), x);
      t = end;
    }
  }

  int64_t offset(int64_t t) const { return layout_.offsets ? layout_.offsets[t] : t * layout_.batch; }

  std::vector<int64_t> shape_of(int64_t rows) const {
    std::vector<int64_t> shape = sum_.sizes().vec();
    shape[step_dim()] = rows;
    return shape;
  }

  // The state before step t, into x from row `at` on: the step before where a row has one, else h0.
  void copy_previous(int64_t t, const at::Tensor& h, at::Tensor& x, int64_t at) const {
    const int64_t dim = step_dim(), rows = layout_.rows_at(t);
    const int64_t before = layout_.reverse ? t + 1 : t - 1;
    const bool exists = before >= 0 && before < layout_.steps;
    const int64_t carried = exists ? std::min(rows, layout_.rows_at(before)) : 0;
    if (carried > 0) x.narrow(dim, at, carried).copy_(h.narrow(dim, offset(before), carried));
    if (carried == rows) return;
    at::Tensor fresh = x.narrow(dim, at + carried, rows - carried);
    if (h0_.defined()) {
      fresh.copy_(h0_.narrow(dim, carried, rows - carried));
    } else {
      fresh.zero_();
    }
  }
};

}  // namespace

BackwardResult leaky_recurrence_backward_cpu(const OptionalTensor& grad_output,
                                             const OptionalTensor& grad_h_n, const at::Tensor& output,
                                             const at::Tensor& saved, const OptionalTensor& h0,
                                             const at::Tensor& weight_hh, const at::Tensor& decay,
                                             const OptionalTensor& batch_sizes, std::string nonlinearity,
                                             std::string form, bool reverse, std::array<bool, 4> wanted) {
  const auto [sizes, kind] = check_backward(grad_output, grad_h_n, output, saved, h0, weight_hh, decay,
                                            batch_sizes, nonlinearity, form);
  if (batch_sizes) check_batch_sizes_values(*batch_sizes, sizes, "output");
  if (!is_computed(output)) {
    const auto [d_pre, d_h0, d_weight, d_decay] = leaky_recurrence_backward_cpu(
        computed(grad_output), computed(grad_h_n), computed(output),
        kind.keeps_bits ? saved : computed(saved), computed(h0), computed(weight_hh), computed(decay),
        batch_sizes, nonlinearity, form, reverse, wanted);
    return {stored(d_pre, output), stored(d_h0, output), stored(d_weight, output), stored(d_decay, decay)};
  }
  BackwardResult result = empty_results(sizes, wanted, weight_hh, decay, output);
  auto& [d_pre, d_h0, d_weight, d_decay] = result;

  const at::Tensor grad_output_units = with_contiguous_units(grad_output.value_or(at::Tensor()));
  const at::Tensor grad_h_n_units = with_contiguous_units(grad_h_n.value_or(at::Tensor()));
  const at::Tensor output_units = with_contiguous_units(output);
  const at::Tensor h0_units = with_contiguous_units(h0.value_or(at::Tensor()));
  const LayoutStorage layout(sizes, batch_sizes, reverse);
  BackwardProblem problem;
  fill_recurrence(problem, sizes, kind, layout.layout, h0_units, weight_hh, decay);
  fill_saved(problem, sizes, kind, saved);
  problem.grad_output = sequence_of(grad_output_units, sizes);
  problem.grad_h_n = rows_of(grad_h_n_units, sizes);
  problem.output = sequence_of(output_units, sizes);
  problem.d_pre = sequence_of(d_pre, sizes);
  if (wanted[kH0]) problem.d_h0 = rows_of(d_h0, sizes);
  at::Tensor d_decay_rows;
  if (wanted[kDecay]) {
    d_decay_rows = at::empty_symint(sizes.state(), output.options());
    problem.d_decay = rows_of(d_decay_rows, sizes);
  }
  run(problem, output);

  if (wanted[kWeight]) {
    WeightGradient(sizes, kind, layout.layout, output_units, h0_units, d_pre, d_weight).compute();
  }
  if (wanted[kDecay]) {
    std::vector<int64_t> shape = d_decay_rows.sizes().vec();
    shape.erase(shape.end() - 2);
    const at::Tensor sum = at::empty(shape, d_decay_rows.options());
    sum_over_rows(sum, d_decay_rows);
    const at::Tensor per_unit = sum.div(at::rsub(decay, 1));
    d_decay.copy_(per_unit.sum_to_size(decay.sizes()));
  }
  return result;
}

BackwardResult leaky_recurrence_backward_meta(const OptionalTensor& grad_output,
                                              const OptionalTensor& grad_h_n, const at::Tensor& output,
                                              const at::Tensor& saved, const OptionalTensor& h0,
                                              const at::Tensor& weight_hh, const at::Tensor& decay,
                                              const OptionalTensor& batch_sizes, std::string nonlinearity,
                                              std::string form, bool /*reverse*/,
                                              std::array<bool, 4> wanted) {
  const auto checked = check_backward(grad_output, grad_h_n, output, saved, h0, weight_hh, decay, batch_sizes,
                                      nonlinearity, form);
  return empty_results(checked.sizes, wanted, weight_hh, decay, output);
}

namespace {

enum ProjectedWanted { kInput, kInitial, kWeightIh, kWeightHh, kBias, kProjectedDecay };

void check_projection(const at::Tensor& input, const at::Tensor& weight_ih, const at::Tensor& output) {
  TORCH_CHECK_VALUE(is_computed(output), "output must be float32 or float64, got ", output.scalar_type());
  TORCH_CHECK_VALUE(weight_ih.dim() == 2, "weight_ih must be [H, I], got ", weight_ih.sym_sizes());
  const c10::SymInt inputs = weight_ih.sym_size(1);
  check_like("weight_ih", weight_ih, {output.sym_size(-1), inputs}, "[H, I]", output, "output");
  std::vector<c10::SymInt> shape = output.sym_sizes().vec();
  shape.back() = inputs;
  check_like("input", input, shape, "the shape of output but for I", output, "output");
}

ProjectedBackwardResult empty_projected(const at::Tensor& input, const OptionalTensor& h0,
                                        const at::Tensor& weight_ih, const at::Tensor& weight_hh,
                                        const at::Tensor& decay, const std::array<bool, 6>& wanted) {
  const auto if_wanted = [&](ProjectedWanted which, c10::SymIntArrayRef shape) {
    return wanted[which] ? at::empty_symint(shape, input.options()) : at::empty({0}, input.options());
  };
  return {if_wanted(kInput, input.sym_sizes()),
          if_wanted(kInitial, h0 ? h0->sym_sizes() : c10::SymIntArrayRef()),
          if_wanted(kWeightIh, weight_ih.sym_sizes()),
          if_wanted(kWeightHh, weight_hh.sym_sizes()),
          if_wanted(kBias, weight_hh.sym_sizes().slice(0, 1)),
          if_wanted(kProjectedDecay, decay.sym_sizes())};
}

// About how much memory u, the gradient of pre, may take at a time.
constexpr int64_t kBytesAtOnce = int64_t{16} << 20;

// The steps of a walk in blocks, so that u never exists for all of them.
class StepBlocks {
 public:
  StepBlocks(const Sizes& sizes, const OptionalTensor& batch_sizes, bool reverse, const at::Tensor& output)
      : storage_(sizes, batch_sizes, reverse), layout_(storage_.layout), packed_(sizes.packed) {
    const int64_t row_bytes = output.size(-1) * static_cast<int64_t>(output.element_size());
    const int64_t rows = std::max<int64_t>(1024, kBytesAtOnce / row_bytes);
    steps_at_once_ = std::max<int64_t>(1, rows / std::max<int64_t>(1, layout_.batch));
  }

  int64_t blocks() const {
    return std::max<int64_t>(1, (layout_.steps + steps_at_once_ - 1) / steps_at_once_);
  }

  // In the order of the backward walk.
  Range block(int64_t i) const {
    const int64_t place = layout_.reverse ? i : blocks() - 1 - i;
    return {place * steps_at_once_, std::min(layout_.steps, (place + 1) * steps_at_once_)};
  }

  // The rows of a block of a sequence; undefined stays undefined.
  at::Tensor cut(const at::Tensor& sequence, const Range& steps) const {
    if (!sequence.defined()) return sequence;
    const int64_t first = packed_ ? offset(steps.first) : steps.first;
    return sequence.narrow(0, first, (packed_ ? offset(steps.last) : steps.last) - first);
  }
  OptionalTensor cut(const OptionalTensor& sequence, const Range& steps) const {
    return sequence ? OptionalTensor(cut(*sequence, steps)) : sequence;
  }

  // How many rows a block has at most.
  int64_t batch(const Range& steps) const {
    return layout_.steps == 0 ? layout_.batch : layout_.rows_at(steps.first);
  }

  // The state before a block, for the forward walk: of the step before, where a row has one, else h0.
  OptionalTensor state_before(const Range& steps, const at::Tensor& output, const OptionalTensor& h0) const {
    const int64_t before = layout_.reverse ? steps.last : steps.first - 1, rows = batch(steps);
    const bool exists = before >= 0 && before < layout_.steps;
    const int64_t carried = exists ? std::min(rows, layout_.rows_at(before)) : 0;
    if (carried == 0) return h0 ? OptionalTensor(h0->narrow(0, 0, rows)) : h0;
    const at::Tensor states = packed_ ? output.narrow(0, offset(before), carried) : output.select(0, before);
    if (carried == rows) return states;
    return at::cat({states, h0->narrow(0, carried, rows - carried)});
  }

 private:
  LayoutStorage storage_;
  const Layout& layout_;
  bool packed_;
  int64_t steps_at_once_;

  int64_t offset(int64_t t) const {
    if (t == 0) return 0;
    return layout_.offsets[t - 1] + layout_.rows[t - 1];
  }
};

// The first part is the sum so far.
void add_part(at::Tensor& sum, const at::Tensor& part, bool is_first) {
  if (is_first) {
    sum = part;
  } else {
    sum.add_(part);
  }
}

}  // namespace

ProjectedBackwardResult projected_recurrence_backward_cpu(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const at::Tensor& output,
    const at::Tensor& saved, const at::Tensor& input, const OptionalTensor& h0, const at::Tensor& weight_ih,
    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
    std::string nonlinearity, std::string form, bool reverse, std::array<bool, 6> wanted) {
  const auto [sizes, kind] = check_backward(grad_output, grad_h_n, output, saved, h0, weight_hh, decay,
                                            batch_sizes, nonlinearity, form);
  check_projection(input, weight_ih, output);
  if (batch_sizes) check_batch_sizes_values(*batch_sizes, sizes, "output");
  // The recurrence's own gradients come with their memory.
  ProjectedBackwardResult result =
      empty_projected(input, h0, weight_ih, weight_hh, decay,
                      {wanted[kInput], false, wanted[kWeightIh], false, wanted[kBias], false});
  auto& [d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_decay] = result;
  const bool wants_u = wanted[kInput] || wanted[kWeightIh] || wanted[kBias];

  const StepBlocks walk(sizes, batch_sizes, reverse, output);
  const int64_t blocks = walk.blocks();
  at::Tensor carried;  // the gradient of the state between two blocks
  if (blocks > 1) {
    carried = grad_h_n ? grad_h_n->clone() : at::zeros_symint(sizes.state(), output.options());
  } else if (grad_h_n) {
    carried = *grad_h_n;
  }
  for (int64_t i = 0; i < blocks; ++i) {
    const Range steps = walk.block(i);
    const int64_t batch = walk.batch(steps);
    const at::Tensor saved_block = saved.numel() > 0 ? walk.cut(saved, steps) : saved;
    const OptionalTensor sizes_block =
        batch_sizes ? OptionalTensor(batch_sizes->narrow(0, steps.first, steps.last - steps.first))
                    : batch_sizes;
    const auto [u, d_state, d_hh, d_share] = leaky_recurrence_backward_cpu(
        walk.cut(grad_output, steps),
        carried.defined() ? OptionalTensor(carried.narrow(0, 0, batch)) : OptionalTensor(),
        walk.cut(output, steps), saved_block, walk.state_before(steps, output, h0), weight_hh, decay,
        sizes_block, nonlinearity, form, reverse,
        {wants_u, blocks > 1 || wanted[kInitial], wanted[kWeightHh], wanted[kProjectedDecay]});
    if (blocks > 1) carried.narrow(0, 0, batch).copy_(d_state);
    if (wanted[kInitial] && i + 1 == blocks) d_h0 = blocks > 1 ? carried.contiguous() : d_state;
    if (wanted[kWeightHh]) add_part(d_weight_hh, d_hh, i == 0);
    if (wanted[kProjectedDecay]) add_part(d_decay, d_share, i == 0);
    if (!wants_u) continue;
    const at::Tensor rows = all_rows(u);
    if (wanted[kInput]) multiply(all_rows(walk.cut(d_input, steps)), rows, weight_ih);
    if (wanted[kWeightIh]) {
      multiply(d_weight_ih, rows.t(), all_rows(walk.cut(input, steps)), {}, i > 0);
    }
    if (wanted[kBias]) sum_over_rows(d_bias, rows, i > 0);
  }
  return result;
}

ProjectedBackwardResult projected_recurrence_backward_meta(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const at::Tensor& output,
    const at::Tensor& saved, const at::Tensor& input, const OptionalTensor& h0, const at::Tensor& weight_ih,
    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
    std::string nonlinearity, std::string form, bool /*reverse*/, std::array<bool, 6> wanted) {
  check_backward(grad_output, grad_h_n, output, saved, h0, weight_hh, decay, batch_sizes, nonlinearity, form);
  check_projection(input, weight_ih, output);
  return empty_projected(input, h0, weight_ih, weight_hh, decay, wanted);
}

}  // namespace rnnkernels::binding
