// rnnkernels::projected_recurrence_backward: the backward of the recurrence a block of steps at a time, and
// of each block the gradients of the projection.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "binding/blocks.h"
#include "binding/product.h"
#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

enum Wanted { kInput, kInitial, kWeightIh, kWeightHh, kBias, kDrive, kDecay };

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

ProjectedBackwardResult empty_results(const at::Tensor& output, const at::Tensor& input,
                                      const OptionalTensor& h0, const at::Tensor& weight_ih,
                                      const at::Tensor& weight_hh, const at::Tensor& decay,
                                      const std::array<bool, 7>& wanted) {
  const auto if_wanted = [&](Wanted which, c10::SymIntArrayRef shape) {
    return wanted[which] ? at::empty_symint(shape, input.options()) : at::empty({0}, input.options());
  };
  return {if_wanted(kInput, input.sym_sizes()),
          if_wanted(kInitial, h0 ? h0->sym_sizes() : c10::SymIntArrayRef()),
          if_wanted(kWeightIh, weight_ih.sym_sizes()),
          if_wanted(kWeightHh, weight_hh.sym_sizes()),
          if_wanted(kBias, weight_hh.sym_sizes().slice(0, weight_hh.dim() - 1)),
          if_wanted(kDrive, output.sym_sizes()),
          if_wanted(kDecay, decay.sym_sizes())};
}

// The arguments of the call.
struct Projected {
  OptionalTensor grad_output, grad_h_n;
  at::Tensor output, saved, input;
  OptionalTensor h0;
  at::Tensor weight_ih, weight_hh, decay;
  OptionalTensor batch_sizes;
  Kind kind;
  bool reverse;
  std::array<bool, 7> wanted;

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
            kind,
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

// With u the gradient of pre:  d_input = u W_ih,  d_W_ih = u^T input,  d_bias = the sum over rows of u,
// d_drive = u.  These are written where they are; the recurrence's own gradients come with their memory.
void walk_back(const Projected& call, const Sizes& sizes, ProjectedBackwardResult& result) {
  auto& [d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay] = result;
  const auto& wanted = call.wanted;
  const bool wants_u = wanted[kInput] || wanted[kWeightIh] || wanted[kBias] || wanted[kDrive];
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
    const auto [u, d_state, d_hh, d_share] =
        run_backward(walk.cut(call.grad_output, steps),
                     carried.defined() ? OptionalTensor(carried.narrow(-2, 0, batch)) : OptionalTensor(),
                     walk.cut(call.output, steps), walk.cut_saved(call.saved, steps),
                     walk.state_before(steps, call.output, call.h0), call.weight_hh, call.decay,
                     walk.cut_sizes(call.batch_sizes, steps), call.kind, call.reverse,
                     {wants_u, blocks > 1 || wanted[kInitial], wanted[kWeightHh], wanted[kDecay]});
    if (blocks > 1) carried.narrow(-2, 0, batch).copy_(d_state);
    if (wanted[kInitial] && i + 1 == blocks) d_h0 = blocks > 1 ? carried.contiguous() : d_state;
    if (wanted[kWeightHh]) add_part(d_weight_hh, d_hh, i == 0);
    if (wanted[kDecay]) add_part(d_decay, d_share, i == 0);
    if (!wants_u) continue;
    const at::Tensor rows = all_rows(u, sizes);
    if (wanted[kInput]) multiply(all_rows(walk.cut(d_input, steps), sizes), rows, call.weight_ih);
    if (wanted[kWeightIh]) {
      multiply(d_weight_ih, rows.transpose(-2, -1), all_rows(walk.cut(call.input, steps), sizes), {},
               i > 0 ? OptionalTensor(d_weight_ih) : OptionalTensor());
    }
    if (wanted[kBias]) sum_over_rows(d_bias, rows, i > 0);
    if (wanted[kDrive]) walk.cut(d_drive, steps).copy_(u);
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
    std::string nonlinearity, std::string form, bool reverse, std::array<bool, 7> wanted) {
  const auto [sizes, kind] = check_backward(grad_output, grad_h_n, output, saved, h0, weight_hh, decay,
                                            batch_sizes, nonlinearity, form);
  check_projection(input, weight_ih, output, sizes);
  if (batch_sizes) check_batch_sizes_values(*batch_sizes, sizes, "output");
  const at::Tensor decays = for_each_network(decay, sizes);
  const Projected call = {grad_output, grad_h_n, output,      saved, input,   h0,    weight_ih,
                          weight_hh,   decays,   batch_sizes, kind,  reverse, wanted};
  const std::vector<NetworkBlock> blocks = NetworkBlock::blocks(sizes, output);
  const bool at_once = blocks.size() == 1;
  ProjectedBackwardResult result = empty_results(
      output, input, h0, weight_ih, weight_hh, decays,
      {wanted[kInput], wanted[kInitial] && !at_once, wanted[kWeightIh], wanted[kWeightHh] && !at_once,
       wanted[kBias], wanted[kDrive], wanted[kDecay] && !at_once});
  auto& [d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay] = result;
  if (at_once) {
    walk_back(call, sizes, result);
  } else {
    for (const NetworkBlock& some : blocks) {
      ProjectedBackwardResult part = {
          some.of(d_input), d_h0,   some.of(d_weight_ih), d_weight_hh, some.of(d_bias),
          some.of(d_drive), d_decay};
      walk_back(call.of(some), some.sizes(), part);
      if (wanted[kInitial]) some.of(d_h0).copy_(std::get<kInitial>(part));
      if (wanted[kWeightHh]) some.of(d_weight_hh).copy_(std::get<kWeightHh>(part));
      if (wanted[kDecay]) some.of(d_decay).copy_(std::get<kDecay>(part));
    }
  }
  if (wanted[kDecay] && decay.dim() < decays.dim()) d_decay = sum_like(decay, d_decay);
  return result;
}

ProjectedBackwardResult projected_recurrence_backward_meta(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const at::Tensor& output,
    const at::Tensor& saved, const at::Tensor& input, const OptionalTensor& h0, const at::Tensor& weight_ih,
    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes,
    std::string nonlinearity, std::string form, bool /*reverse*/, std::array<bool, 7> wanted) {
  const auto checked = check_backward(grad_output, grad_h_n, output, saved, h0, weight_hh, decay, batch_sizes,
                                      nonlinearity, form);
  check_projection(input, weight_ih, output, checked.sizes);
  return empty_results(output, input, h0, weight_ih, weight_hh, decay, wanted);
}

}  // namespace rnnkernels::binding
