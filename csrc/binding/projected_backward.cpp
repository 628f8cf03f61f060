// rnnkernels::projected_recurrence_backward: for one block of steps after the other, the backward pass of the
// recurrence and then the gradients of the projection.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "binding/blocks.h"
#include "binding/product.h"
#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

enum Wanted { kInput, kH0, kWeightIh, kWeightHh, kBias, kDrive, kDecay };

Sizes check_call(const ProjectedBackwardCall& call, const RecurrenceSpec& spec) {
  const at::Tensor &input = call.input, &weight_ih = call.weight_ih, &output = call.output;
  const Sizes sizes = check_forward("output", output, call);
  check_backward(sizes, spec, call.grad_output, call.grad_h_n, output, call.saved);
  TORCH_CHECK_VALUE(is_computed(output), "output must be float32 or float64, got ", output.scalar_type());
  const char* expected = sizes.grouped ? "[G, H, I]" : "[H, I]";
  TORCH_CHECK_VALUE(weight_ih.dim() == (sizes.grouped ? 3 : 2), "weight_ih must be ", expected, ", got ",
                    weight_ih.sym_sizes());
  const c10::SymInt inputs = weight_ih.sym_size(-1);
  std::vector<c10::SymInt> matrix = {sizes.hidden, inputs};
  if (sizes.grouped) matrix.insert(matrix.begin(), sizes.networks);
  check_like("weight_ih", weight_ih, matrix, expected, output, "output");
  check_like("input", input, sizes.sequence(inputs), "the shape of output but for I", output, "output");
  return sizes;
}

ProjectedBackwardResult empty_results(const ProjectedBackwardCall& call, const std::array<bool, 7>& wanted) {
  const auto if_wanted = [&](Wanted which, c10::SymIntArrayRef shape) {
    return wanted[which] ? at::empty_symint(shape, call.input.options())
                         : at::empty({0}, call.input.options());
  };
  const c10::SymIntArrayRef matrix = call.weight_hh.sym_sizes();
  return {if_wanted(kInput, call.input.sym_sizes()),
          if_wanted(kH0, call.h0 ? call.h0->sym_sizes() : c10::SymIntArrayRef()),
          if_wanted(kWeightIh, call.weight_ih.sym_sizes()),
          if_wanted(kWeightHh, matrix),
          if_wanted(kBias, matrix.slice(0, matrix.size() - 1)),
          if_wanted(kDrive, call.output.sym_sizes()),
          if_wanted(kDecay, call.decay.sym_sizes())};
}

// Adds to a sum; the first part becomes the sum.
void add_part(at::Tensor& sum, const at::Tensor& part, bool is_first) {
  if (is_first) {
    sum = part;
  } else {
    sum.add_(part);
  }
}

// With u the gradient of pre:  d_input = u W_ih,  d_W_ih = u^T input,  d_bias = the sum over rows of u,
// d_drive = u.  These are written into the result's tensors; the gradients of the recurrence itself become
// new tensors of the result.
void run_projected_backward(const ProjectedBackwardCall& call, const RecurrenceSpec& spec, const Sizes& sizes,
                            ProjectedBackwardResult& result) {
  auto& [d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay] = result;
  const auto& wanted = call.wanted;
  const bool wants_u = wanted[kInput] || wanted[kWeightIh] || wanted[kBias] || wanted[kDrive];
  const StepBlocks cut(sizes, call.batch_sizes, spec.reverse, call.output);
  const int64_t blocks = cut.blocks();
  at::Tensor carried;  // the gradient of the state between two blocks
  if (blocks > 1) {
    carried = call.grad_h_n ? call.grad_h_n->clone() : at::zeros_symint(sizes.state(), call.output.options());
  } else if (call.grad_h_n) {
    carried = *call.grad_h_n;
  }
  for (int64_t i = 0; i < blocks; ++i) {
    const Block steps = cut.block(i);
    const int64_t batch = cut.batch(steps);
    const BackwardCall part = {
        cut.of(call.grad_output, steps),
        carried.defined() ? OptionalTensor(carried.narrow(-2, 0, batch)) : OptionalTensor(),
        cut.of(call.output, steps),
        cut.saved(call.saved, steps),
        cut.state_before(steps, call.output, call.h0),
        call.weight_hh,
        call.decay,
        cut.sizes(call.batch_sizes, steps),
        call.spec,
        {wants_u, blocks > 1 || wanted[kH0], wanted[kWeightHh], wanted[kDecay]}};
    const auto [u, d_state, d_hh_part, d_decay_part] = run_backward(part, spec);
    if (blocks > 1) carried.narrow(-2, 0, batch).copy_(d_state);
    if (wanted[kH0] && i + 1 == blocks) d_h0 = blocks > 1 ? carried.contiguous() : d_state;
    if (wanted[kWeightHh]) add_part(d_weight_hh, d_hh_part, i == 0);
    if (wanted[kDecay]) add_part(d_decay, d_decay_part, i == 0);
    if (!wants_u) continue;
    const at::Tensor rows = all_rows(u, sizes);
    if (wanted[kInput]) multiply(all_rows(cut.of(d_input, steps), sizes), rows, call.weight_ih);
    if (wanted[kWeightIh]) {
      multiply(d_weight_ih, rows.transpose(-2, -1), all_rows(cut.of(call.input, steps), sizes), {},
               i > 0 ? OptionalTensor(d_weight_ih) : OptionalTensor());
    }
    if (wanted[kBias]) sum_over_rows(d_bias, rows, i > 0);
    if (wanted[kDrive]) cut.of(d_drive, steps).copy_(u);
  }
}

// A decay that networks share, expanded to one for each: their gradients are then added in one order,
// whatever the blocks of networks are.
at::Tensor for_each_network(const at::Tensor& decay, const Sizes& sizes) {
  if (!sizes.grouped || decay.dim() == 2) return decay;
  return decay.expand_symint({sizes.networks, sizes.hidden});
}

}  // namespace

ProjectedBackwardResult projected_recurrence_backward(ProjectedBackwardCall call) {
  const RecurrenceSpec spec = check_spec(call.spec);
  const Sizes sizes = check_call(call, spec);
  own_batch_sizes(call.batch_sizes, sizes, "output");
  const at::Tensor decay = call.decay;
  call.decay = for_each_network(decay, sizes);
  const auto& wanted = call.wanted;
  const std::vector<NetworkBlock> blocks = NetworkBlock::blocks(sizes, call.output);
  const bool at_once = blocks.size() == 1;
  ProjectedBackwardResult result = empty_results(
      call, {wanted[kInput], wanted[kH0] && !at_once, wanted[kWeightIh], wanted[kWeightHh] && !at_once,
             wanted[kBias], wanted[kDrive], wanted[kDecay] && !at_once});
  auto& [d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay] = result;
  if (at_once) {
    run_projected_backward(call, spec, sizes, result);
  } else {
    for (const NetworkBlock& some : blocks) {
      ProjectedBackwardResult part = {
          some.of(d_input), d_h0,   some.of(d_weight_ih), d_weight_hh, some.of(d_bias),
          some.of(d_drive), d_decay};
      run_projected_backward(some.of(call), spec, some.sizes(), part);
      if (wanted[kH0]) some.of(d_h0).copy_(std::get<kH0>(part));
      if (wanted[kWeightHh]) some.of(d_weight_hh).copy_(std::get<kWeightHh>(part));
      if (wanted[kDecay]) some.of(d_decay).copy_(std::get<kDecay>(part));
    }
  }
  if (wanted[kDecay] && decay.dim() < call.decay.dim()) d_decay = sum_like(decay, d_decay);
  return result;
}

ProjectedBackwardResult projected_recurrence_backward_meta(const ProjectedBackwardCall& call) {
  check_call(call, check_spec(call.spec));
  return empty_results(call, call.wanted);
}

}  // namespace rnnkernels::binding
