// The recurrence in half precision: what is stored is bfloat16 or float16; the state, the gradient that is
// carried, and all sums are float32. A block of steps is widened at a time, walked, and rounded once, so that
// no sequence is there in float32. Where the processor multiplies bfloat16, what W_hh is multiplied with is
// rounded to it; the state is not.
#include "binding/half.h"

#include <ATen/ops/zeros.h>

#include "binding/blocks.h"

namespace rnnkernels::binding {

namespace {

at::Tensor zero_state(const Sizes& sizes, const at::Tensor& like) {
  return at::zeros_symint(sizes.state(), like.options().dtype(at::kFloat));
}

// With the products of what is stored.
Kind as_stored(Kind kind, const at::Tensor& like) {
  if (like.scalar_type() == at::kBFloat16) kind.factors = Factors::kBFloat16;
  return kind;
}

// Bits stay as they are, values are widened.
at::Tensor computed_saved(const at::Tensor& saved) {
  return saved.is_floating_point() ? computed(saved) : saved;
}

}  // namespace

void half_forward(const at::Tensor& pre, const OptionalTensor& h0, const at::Tensor& weight_hh,
                  const at::Tensor& decay, const OptionalTensor& batch_sizes, const Kind& kind, bool reverse,
                  bool save, const Sizes& sizes, const ForwardResult& result) {
  const auto& [output, h_n, saved] = result;
  const at::Tensor weight = computed(weight_hh), share = computed(decay);
  const StepBlocks walk(sizes, batch_sizes, reverse, output);
  at::Tensor state = h0 ? h0->to(at::kFloat, false, true) : zero_state(sizes, pre);
  for (int64_t i = walk.blocks() - 1; i >= 0; --i) {
    const Block steps = walk.block(i);
    const at::Tensor rows = state.narrow(-2, 0, walk.batch(steps));
    const auto [h, last, kept] =
        run_forward(computed(walk.cut(pre, steps)), rows, weight, share, walk.cut_sizes(batch_sizes, steps),
                    as_stored(kind, pre), reverse, save);
    walk.cut(output, steps).copy_(h);
    if (saved.dim() > 1) walk.cut(saved, steps).copy_(kept);
    rows.copy_(last);
  }
  h_n.copy_(state);
}

void half_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                   const at::Tensor& output, const at::Tensor& saved, const OptionalTensor& h0,
                   const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
                   const Kind& kind, bool reverse, const std::array<bool, 4>& wanted, const Sizes& sizes,
                   const BackwardResult& result) {
  const auto& [d_pre, d_h0, d_weight, d_decay] = result;
  const at::Tensor weight = computed(weight_hh), share = computed(decay);
  const StepBlocks walk(sizes, batch_sizes, reverse, output);
  at::Tensor carried = grad_h_n ? grad_h_n->to(at::kFloat, false, true) : zero_state(sizes, output);
  at::Tensor weight_sum, decay_sum;
  for (int64_t i = 0; i < walk.blocks(); ++i) {
    const Block steps = walk.block(i);
    const at::Tensor rows = carried.narrow(-2, 0, walk.batch(steps));
    const auto [u, d_state, d_hh, d_share] = run_backward(
        computed(walk.cut(grad_output, steps)), rows, computed(walk.cut(output, steps)),
        computed_saved(walk.cut_saved(saved, steps)), computed(walk.state_before(steps, output, h0)), weight,
        share, walk.cut_sizes(batch_sizes, steps), as_stored(kind, output), reverse,
        {true, true, wanted[2], wanted[3]});
    walk.cut(d_pre, steps).copy_(u);
    rows.copy_(d_state);
    if (wanted[2]) weight_sum = i == 0 ? d_hh : weight_sum.add_(d_hh);
    if (wanted[3]) decay_sum = i == 0 ? d_share : decay_sum.add_(d_share);
  }
  if (wanted[1]) d_h0.copy_(carried);
  if (wanted[2]) d_weight.copy_(weight_sum);
  if (wanted[3]) d_decay.copy_(decay_sum);
}

}  // namespace rnnkernels::binding
