// rnnkernels::leaky_recurrence_backward: check, allocate, run the backward pass, then the sums over all steps
// (dW_hh as products, d_decay over the batch).
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/rsub.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

#include "binding/blocks.h"
#include "binding/host.h"
#include "binding/problem.h"
#include "binding/product.h"
#include "binding/recurrence.h"
#include "cuda/tuning.h"
#if defined(RNNKERNELS_GPU)
#include "binding/recurrence_gpu.h"
#endif

namespace rnnkernels::binding {

namespace {

enum Wanted { kPre, kH0, kWeight, kDecay };

BackwardResult empty_results(const Sizes& sizes, const std::array<bool, 4>& wanted,
                             const at::Tensor& weight_hh, const at::Tensor& decay, const at::Tensor& like) {
  const auto if_wanted = [&](Wanted which, c10::SymIntArrayRef shape) {
    return wanted[which] ? at::empty_symint(shape, like.options()) : at::empty({0}, like.options());
  };
  return {at::empty_symint(sizes.sequence(sizes.hidden), like.options()), if_wanted(kH0, sizes.state()),
          if_wanted(kWeight, weight_hh.sym_sizes()),
          if_wanted(kDecay, decay.sym_sizes()).to(decay.scalar_type())};
}

// sum = u^T x, or sum += u^T x, for [rows, H] or [G, rows, H]. Products of bfloat16 and products on a GPU are
// torch's.
void add_product(const at::Tensor& sum, bool accumulate, const at::Tensor& u, const at::Tensor& x) {
  if (is_computed(u) && !on_gpu(u)) {
    multiply(sum, u.transpose(-2, -1), x, {}, accumulate ? OptionalTensor(sum) : OptionalTensor());
  } else {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::Tensor product = at::matmul(u.transpose(-2, -1), x);
    accumulate ? sum.add_(product) : sum.copy_(product);
  }
}

// How many rows of the product's right operand are copied at a time; on a GPU their memory is limited
// (tuning::kOperandBytes).
constexpr int64_t kRowsAtOnce = 4096;

// dW_hh = sum_t u_t^T x_t, where x_t is h_{t-1} (rate) or f(h_{t-1}) (current).
class WeightGradient {
 public:
  WeightGradient(const BackwardProblem& problem, const Sizes& sizes, const RecurrenceSpec& spec,
                 const Layout& layout, const at::Tensor& output, const at::Tensor& h0,
                 const at::Tensor& d_pre, const at::Tensor& sum)
      : problem_(problem),
        spec_(spec),
        layout_(layout),
        output_(output),
        h0_(h0),
        d_pre_(d_pre),
        sum_(sum),
        packed_(sizes.packed) {}

  void compute() {
    if (d_pre_.numel() == 0) {
      sum_.zero_();
      return;
    }
    const bool unconverted = is_computed(d_pre_) || on_gpu(d_pre_) ||
                             (d_pre_.scalar_type() == at::kBFloat16 && active_kernels().multiplies_bfloat16);
    const bool in_one = !on_gpu(d_pre_) || layout_.steps <= INT32_MAX / layout_.batch;  // cuBLAS's row limit
    if (spec_.reads_state && !packed_ && unconverted && in_one) {
      from_views();
    } else {
      from_copies();
    }
    if (!begun_) sum_.zero_();
  }

 private:
  const BackwardProblem& problem_;
  const RecurrenceSpec& spec_;
  const Layout& layout_;
  const at::Tensor& output_;  // [G, T, B, H] or [G, rows, H], G perhaps missing
  const at::Tensor& h0_;
  const at::Tensor& d_pre_;
  const at::Tensor& sum_;  // [G, H, H], computed
  bool packed_;
  bool begun_ = false;  // whether sum_ has a value

  void add(const at::Tensor& u, const at::Tensor& x) {
    add_product(sum_, begun_, u, x);
    begun_ = true;
  }

  int64_t step_dim() const { return sum_.dim() - 2; }

  // A padded batch in the rate form needs no copy: the operands are u and h, one step apart. Half precision
  // needs one unless it is multiplied unconverted.
  void from_views() {
    const int64_t rest = layout_.steps - 1;
    if (rest > 0) {
      const int64_t u_from = layout_.reverse ? 0 : 1, h_from = layout_.reverse ? 1 : 0;
      const int64_t dim = step_dim();
      add(d_pre_.narrow(dim, u_from, rest).flatten(dim, dim + 1),
          output_.narrow(dim, h_from, rest).flatten(dim, dim + 1));
    }
    const int64_t first = layout_.reverse ? layout_.steps - 1 : 0;
    if (h0_.defined()) add(d_pre_.select(step_dim(), first), h0_);
  }

  // Otherwise x is assembled one block of steps at a time, and f is applied to it in place.
  void from_copies() {
    const at::Tensor u = packed_ ? d_pre_ : d_pre_.flatten(step_dim(), step_dim() + 1);
    const at::Tensor h = packed_ ? output_ : output_.flatten(step_dim(), step_dim() + 1);
    for (int64_t t = 0; t < layout_.steps;) {
      const int64_t start = layout_.first_row(t);
      int64_t end = t;
      while (end < layout_.steps &&
             (end == t || layout_.first_row(end) + layout_.rows_at(end) - start <= rows_at_once())) {
        ++end;
      }
      const int64_t rows = layout_.first_row(end - 1) + layout_.rows_at(end - 1) - start;
      const at::Tensor x = operands(t, end, rows, h);
      add(u.narrow(step_dim(), start, rows).to(x.scalar_type()), x);
      t = end;
    }
  }

  int64_t rows_at_once() const {
    if (!on_gpu(d_pre_)) return kRowsAtOnce;
    const int64_t row_bytes = problem_.networks * problem_.hidden * d_pre_.element_size();
    return std::clamp(cuda::tuning::kOperandBytes / row_bytes, int64_t{1}, int64_t{INT32_MAX});
  }

  // x of the steps from `first` to `last` (exclusive), which have this number of rows; on a GPU in the dtype
  // of u, else in the dtype that is computed in.
  at::Tensor operands(int64_t first, int64_t last, int64_t rows, const at::Tensor& h) const {
#if defined(RNNKERNELS_GPU)
    if (on_gpu(d_pre_)) {
      const at::Tensor x = at::empty(shape_of(rows), d_pre_.options());
      put_operands_on_gpu(problem_, layout_.first_row(first), x);
      return x;
    }
#endif
    at::Tensor x = at::empty(shape_of(rows), sum_.options());
    for (int64_t t = first; t < last; ++t) {
      copy_previous(t, h, x, layout_.first_row(t) - layout_.first_row(first));
    }
    if (!spec_.reads_state) {
      active_kernels().activate(spec_.nonlinearity, element_type(x.scalar_type()).value(), x.data_ptr(),
                                x.data_ptr(), x.numel());
    }
    return x;
  }

  std::vector<int64_t> shape_of(int64_t rows) const {
    std::vector<int64_t> shape = sum_.sizes().vec();
    shape[step_dim()] = rows;
    return shape;
  }

  // Copies the state before step t to the rows of x from `at` on.
  void copy_previous(int64_t t, const at::Tensor& h, at::Tensor& x, int64_t at) const {
    const int64_t dim = step_dim(), rows = layout_.rows_at(t);
    const int64_t carried = layout_.carried_rows(t);
    if (carried > 0) {
      x.narrow(dim, at, carried).copy_(h.narrow(dim, layout_.first_row(layout_.previous_step(t)), carried));
    }
    if (carried == rows) return;
    at::Tensor fresh = x.narrow(dim, at + carried, rows - carried);
    if (h0_.defined()) {
      fresh.copy_(h0_.narrow(dim, carried, rows - carried));
    } else {
      fresh.zero_();
    }
  }
};

// dd, in the shape of `decay`: the sum of `rows`, [B, H] or [G, B, H], over the batch. It is divided by 1 - d
// where the rows are sums of differences between outputs.
at::Tensor decay_gradient(const at::Tensor& rows, const at::Tensor& decay, const SavedParts& parts) {
  std::vector<int64_t> shape = rows.sizes().vec();
  shape.erase(shape.end() - 2);
  const at::Tensor sum = at::empty(shape, rows.options());
  sum_over_rows(sum, rows);
  return sum_like(decay, parts.decay_slope ? sum : sum.div(at::rsub(decay, 1)));
}

}  // namespace

BackwardResult leaky_recurrence_backward(BackwardCall call) {
  const RecurrenceSpec spec = check_spec(call.spec);
  const Sizes sizes = check_forward("output", call.output, call);
  check_backward(sizes, spec, call.grad_output, call.grad_h_n, call.output, call.saved);
  own_batch_sizes(call.batch_sizes, sizes, "output");
  return run_backward(call, spec);
}

BackwardResult run_backward(const BackwardCall& call, const RecurrenceSpec& spec) {
  const auto& wanted = call.wanted;
  const Sizes sizes = check_forward("output", call.output, call);
  BackwardResult result = empty_results(sizes, wanted, call.weight_hh, call.decay, call.output);
  auto& [d_pre, d_h0, d_weight, d_decay] = result;

  const at::Tensor grad_output_units = with_contiguous_units(call.grad_output.value_or(at::Tensor()));
  const at::Tensor grad_h_n_units = with_contiguous_units(call.grad_h_n.value_or(at::Tensor()));
  const at::Tensor output_units = with_contiguous_units(call.output);
  const at::Tensor h0_units = with_contiguous_units(call.h0.value_or(at::Tensor()));
  const LayoutStorage layout(sizes, call.batch_sizes, spec.reverse, call.output);
  BackwardProblem problem;
  const at::Tensor weight = computed(call.weight_hh), decay = computed(call.decay);
  fill_recurrence(problem, sizes, spec, layout, call.output, h0_units, weight, decay);
  const SavedParts parts = parts_of(call.saved, sizes, spec, call.output.scalar_type());
  fill_saved(problem, sizes, parts, call.saved);
  problem.grad_output = sequence_of(grad_output_units, sizes);
  problem.grad_h_n = rows_of(grad_h_n_units, sizes);
  problem.output = sequence_of(output_units, sizes);
  problem.d_pre = sequence_of(d_pre, sizes);
  if (wanted[kH0]) problem.d_h0 = rows_of(d_h0, sizes);
  at::Tensor d_decay_rows;
  if (wanted[kDecay]) {
    d_decay_rows = at::empty_symint(sizes.state(), weight.options());
    problem.d_decay = rows_of(d_decay_rows, sizes);
  }
  run(problem, layout, weight);

  if (wanted[kWeight]) {
    const at::Tensor sum = is_computed(d_weight) ? d_weight : at::empty(d_weight.sizes(), weight.options());
    WeightGradient(problem, sizes, spec, layout.layout, output_units, h0_units, d_pre, sum).compute();
    if (!sum.is_same(d_weight)) d_weight.copy_(sum);
  }
  if (wanted[kDecay]) d_decay.copy_(decay_gradient(d_decay_rows, decay, parts));
  return result;
}

BackwardResult leaky_recurrence_backward_meta(const BackwardCall& call) {
  const RecurrenceSpec spec = check_spec(call.spec);
  const Sizes sizes = check_forward("output", call.output, call);
  check_backward(sizes, spec, call.grad_output, call.grad_h_n, call.output, call.saved);
  return empty_results(sizes, call.wanted, call.weight_hh, call.decay, call.output);
}

}  // namespace rnnkernels::binding
