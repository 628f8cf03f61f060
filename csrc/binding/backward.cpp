// rnnkernels::leaky_recurrence_backward and rnnkernels::projected_recurrence_backward: check, allocate, run
// the walk, then the sums over all steps (dW_hh as products, d_decay over the batch).
#include <ATen/ops/empty.h>
#include <ATen/ops/rsub.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "binding/blocks.h"
#include "binding/half.h"
#include "binding/machine.h"
#include "binding/problem.h"
#include "binding/product.h"
#include "binding/recurrence.h"

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
  BackwardResult result = empty_results(sizes, wanted, weight_hh, decay, output);
  if (!is_computed(output)) {
    half_backward(grad_output, grad_h_n, output, saved, h0, weight_hh, decay, batch_sizes, nonlinearity, form,
                  reverse, wanted, sizes, result);
    return result;
  }
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
    d_decay.copy_(sum_like(decay, per_unit));
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

void check_projection(const at::Tensor& input, const at::Tensor& weight_ih, const at::Tensor& output,
                      const Sizes& sizes) {
  TORCH_CHECK_VALUE(is_computed(output), "output must be float32 or float64, got ", output.scalar_type());
  const char* expected = sizes.grouped ? "[G, H, I]" : "[H, I]";
  TORCH_CHECK_VALUE(weight_ih.dim() == (sizes.grouped ? 3 : 2), "weight_ih must be ", expected, ", got ",
                    weight_ih.sym_sizes());
  const c10::SymInt inputs = weight_ih.sym_size(-1);
  std::vector<c10::SymInt> matrix = {sizes.hidden, inputs};
  if (sizes.grouped) matrix.insert(matrix.begin(), sizes.networks);
  check_like("weight_ih", weight_ih, matrix, expected, output, "output");
  check_like("input", input, sizes.sequence(inputs), "the shape of output but for I", output, "output");
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
          if_wanted(kBias, weight_hh.sym_sizes().slice(0, weight_hh.dim() - 1)),
          if_wanted(kProjectedDecay, decay.sym_sizes())};
}

// The arguments of the call.
struct Projected {
  OptionalTensor grad_output, grad_h_n;
  at::Tensor output, saved, input;
  OptionalTensor h0;
  at::Tensor weight_ih, weight_hh, decay;
  OptionalTensor batch_sizes;
  const std::string &nonlinearity, &form;
  bool reverse;
  std::array<bool, 6> wanted;

  Projected of(const NetworkBlock& some) const {
    return {some.of(grad_output),
            some.of(grad_h_n),
            some.of(output),
            some.of(saved),
            some.of(input),
            some.of(h0),
            some.of(weight_ih),
            some.of(weight_hh),
            some.of(decay),
            batch_sizes,
            nonlinearity,
            form,
            reverse,
            wanted};
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

// With u the gradient of pre:  d_input = u W_ih,  d_W_ih = u^T input,  d_bias = the sum over rows of u.
// These three are written where they are; the recurrence's own gradients come with their memory.
void walk_back(const Projected& call, const Sizes& sizes, ProjectedBackwardResult& result) {
  auto& [d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_decay] = result;
  const auto& wanted = call.wanted;
  const bool wants_u = wanted[kInput] || wanted[kWeightIh] || wanted[kBias];
  const StepBlocks walk(sizes, call.batch_sizes, call.reverse, call.output);
  const int64_t blocks = walk.blocks();
  at::Tensor carried;  // the gradient of the state between two blocks
  if (blocks > 1) {
    carried = call.grad_h_n ? call.grad_h_n->clone() : at::zeros_symint(sizes.state(), call.output.options());
  } else if (call.grad_h_n) {
    carried = *call.grad_h_n;
  }
  for (int64_t i = 0; i < blocks; ++i) {
    const Block steps = walk.block(i);
    const int64_t batch = walk.batch(steps);
    const auto [u, d_state, d_hh, d_share] = leaky_recurrence_backward_cpu(
        walk.cut(call.grad_output, steps),
        carried.defined() ? OptionalTensor(carried.narrow(-2, 0, batch)) : OptionalTensor(),
        walk.cut(call.output, steps), walk.cut_saved(call.saved, steps),
        walk.state_before(steps, call.output, call.h0), call.weight_hh, call.decay,
        walk.cut_sizes(call.batch_sizes, steps), call.nonlinearity, call.form, call.reverse,
        {wants_u, blocks > 1 || wanted[kInitial], wanted[kWeightHh], wanted[kProjectedDecay]});
    if (blocks > 1) carried.narrow(-2, 0, batch).copy_(d_state);
    if (wanted[kInitial] && i + 1 == blocks) d_h0 = blocks > 1 ? carried.contiguous() : d_state;
    if (wanted[kWeightHh]) add_part(d_weight_hh, d_hh, i == 0);
    if (wanted[kProjectedDecay]) add_part(d_decay, d_share, i == 0);
    if (!wants_u) continue;
    const at::Tensor rows = all_rows(u, sizes);
    if (wanted[kInput]) multiply(all_rows(walk.cut(d_input, steps), sizes), rows, call.weight_ih);
    if (wanted[kWeightIh]) {
      multiply(d_weight_ih, rows.transpose(-2, -1), all_rows(walk.cut(call.input, steps), sizes), {}, i > 0);
    }
    if (wanted[kBias]) sum_over_rows(d_bias, rows, i > 0);
  }
}

// Networks that share a decay add their gradients in one order, however they are cut.
at::Tensor for_each_network(const at::Tensor& decay, const Sizes& sizes) {
  if (!sizes.grouped || decay.dim() == 2) return decay;
  return decay.expand_symint({sizes.networks, sizes.hidden});
}

}  // namespace

ProjectedBackwardResult projected_recurrence_backward_cpu(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const at::Tensor& output,
    const at::Tensor& saved, const at::Tensor& input, const OptionalTensor& h0, const at::Tensor& weight_ih,
    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
    std::string nonlinearity, std::string form, bool reverse, std::array<bool, 6> wanted) {
  const auto [sizes, kind] = check_backward(grad_output, grad_h_n, output, saved, h0, weight_hh, decay,
                                            batch_sizes, nonlinearity, form);
  check_projection(input, weight_ih, output, sizes);
  if (batch_sizes) check_batch_sizes_values(*batch_sizes, sizes, "output");
  const at::Tensor decays = for_each_network(decay, sizes);
  const Projected call = {grad_output, grad_h_n, output,      saved,        input, h0,      weight_ih,
                          weight_hh,   decays,   batch_sizes, nonlinearity, form,  reverse, wanted};
  const std::vector<NetworkBlock> blocks = NetworkBlock::blocks(sizes, output);
  const bool at_once = blocks.size() == 1;
  ProjectedBackwardResult result =
      empty_projected(input, h0, weight_ih, weight_hh, decays,
                      {wanted[kInput], wanted[kInitial] && !at_once, wanted[kWeightIh],
                       wanted[kWeightHh] && !at_once, wanted[kBias], wanted[kProjectedDecay] && !at_once});
  auto& [d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_decay] = result;
  if (at_once) {
    walk_back(call, sizes, result);
  } else {
    for (const NetworkBlock& some : blocks) {
      ProjectedBackwardResult part = {some.of(d_input), d_h0,   some.of(d_weight_ih), d_weight_hh,
                                      some.of(d_bias),  d_decay};
      walk_back(call.of(some), some.sizes(), part);
      if (wanted[kInitial]) some.of(d_h0).copy_(std::get<kInitial>(part));
      if (wanted[kWeightHh]) some.of(d_weight_hh).copy_(std::get<kWeightHh>(part));
      if (wanted[kProjectedDecay]) some.of(d_decay).copy_(std::get<kProjectedDecay>(part));
    }
  }
  if (wanted[kProjectedDecay] && decay.dim() < decays.dim()) d_decay = sum_like(decay, d_decay);
  return result;
}

ProjectedBackwardResult projected_recurrence_backward_meta(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const at::Tensor& output,
    const at::Tensor& saved, const at::Tensor& input, const OptionalTensor& h0, const at::Tensor& weight_ih,
    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
    std::string nonlinearity, std::string form, bool /*reverse*/, std::array<bool, 6> wanted) {
  const auto checked = check_backward(grad_output, grad_h_n, output, saved, h0, weight_hh, decay, batch_sizes,
                                      nonlinearity, form);
  check_projection(input, weight_ih, output, checked.sizes);
  return empty_projected(input, h0, weight_ih, weight_hh, decay, wanted);
}

}  // namespace rnnkernels::binding
