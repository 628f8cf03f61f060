// rnnkernels::leaky_recurrence and rnnkernels::projected_recurrence: check, allocate, run the forward pass.
#include <ATen/ops/empty.h>

#include "binding/blocks.h"
#include "binding/problem.h"
#include "binding/product.h"
#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

// All results, with an output that exists already.
ForwardResult with_output(const at::Tensor& output, const Sizes& sizes, const RecurrenceSpec& spec,
                          int64_t save) {
  return {output, at::empty_symint(sizes.state(), output.options()),
          empty_saved(sizes, parts_to_save(spec, save, output.scalar_type()), output)};
}

ForwardResult empty_results(const Sizes& sizes, const RecurrenceSpec& spec, int64_t save,
                            const at::Tensor& pre) {
  return with_output(at::empty_symint(sizes.sequence(sizes.hidden), pre.options()), sizes, spec, save);
}

// Runs the forward pass of a call with or without projection. `pre` may be the output itself, because each
// p_t is read just before h_t is written.
template <class Call>
void run_forward(const Call& call, const at::Tensor& pre, const Sizes& sizes, const RecurrenceSpec& spec,
                 const ForwardResult& result) {
  const auto& [output, h_n, saved] = result;
  const at::Tensor pre_units = with_contiguous_units(pre);
  const at::Tensor h0_units = with_contiguous_units(call.h0.value_or(at::Tensor()));
  const LayoutStorage layout(sizes, call.batch_sizes, spec.reverse, output);
  ForwardProblem problem;
  const at::Tensor weight = computed(call.weight_hh), decay = computed(call.decay);
  fill_recurrence(problem, sizes, spec, layout, pre, h0_units, weight, decay);
  fill_saved(problem, sizes, parts_to_save(spec, call.save, pre.scalar_type()), saved);
  problem.pre = sequence_of(pre_units, sizes);
  problem.output = sequence_of(output, sizes);
  problem.h_n = rows_of(h_n, sizes);
  run(problem, layout, weight);
}

// Checks the tensors of the projection, and returns an empty tensor for p, which the output will overwrite.
at::Tensor empty_pre(const ProjectedCall& call) {
  const auto& [input, h0, weight_ih, weight_hh, bias, drive, decay, batch_sizes, spec, save] = call;
  check_tensor("input", input);
  TORCH_CHECK_VALUE(weight_hh.dim() == 2 || weight_hh.dim() == 3,
                    "weight_hh must be [H, H] (or [G, H, H]), got ", weight_hh.sym_sizes());
  const bool packed = batch_sizes.has_value(), grouped = weight_hh.dim() == 3;
  const char* groups = grouped ? "[G, " : "[";
  TORCH_CHECK_VALUE(input.dim() == (grouped ? 1 : 0) + (packed ? 2 : 3), "input must be ", groups,
                    packed ? "sum(batch_sizes), I]" : "T, B, I]", ", got ", input.sym_sizes());
  TORCH_CHECK_VALUE(input.scalar_type() == at::kFloat || input.scalar_type() == at::kDouble,
                    "input must be float32 or float64, got ", input.scalar_type());
  TORCH_CHECK_VALUE(weight_ih.dim() == weight_hh.dim() && weight_ih.sym_size(-2) > 0, "weight_ih must be ",
                    groups, "H, I] with at least one hidden unit, got ", weight_ih.sym_sizes());
  const c10::SymInt hidden = weight_ih.sym_size(-2);
  std::vector<c10::SymInt> matrix = {hidden, input.sym_size(-1)}, units = {hidden};
  if (grouped) {
    matrix.insert(matrix.begin(), input.sym_size(0));
    units.insert(units.begin(), input.sym_size(0));
  }
  check_like("weight_ih", weight_ih, matrix, grouped ? "[G, H, I]" : "[H, I]", input, "input");
  if (bias) check_like("bias", *bias, units, grouped ? "[G, H]" : "[H]", input, "input");
  std::vector<c10::SymInt> shape = input.sym_sizes().vec();
  shape.back() = hidden;
  if (drive) check_like("drive", *drive, shape, "the shape of input but for H", input, "input");
  return at::empty_symint(shape, input.options());
}

}  // namespace

ForwardResult leaky_recurrence(RecurrenceCall call) {
  const RecurrenceSpec spec = check_spec(call.spec);
  const Sizes sizes = check_forward("pre", call.pre, call);
  check_decay_values(call.decay);
  own_batch_sizes(call.batch_sizes, sizes, "pre");
  const ForwardResult result = empty_results(sizes, spec, call.save, call.pre);
  run_forward(call, call.pre, sizes, spec, result);
  return result;
}

ForwardResult leaky_recurrence_meta(const RecurrenceCall& call) {
  const RecurrenceSpec spec = check_spec(call.spec);
  return empty_results(check_forward("pre", call.pre, call), spec, call.save, call.pre);
}

ForwardResult projected_recurrence(ProjectedCall call) {
  const RecurrenceSpec spec = check_spec(call.spec);
  const at::Tensor pre = empty_pre(call);
  const Sizes sizes = check_forward("input", pre, call);
  check_decay_values(call.decay);
  own_batch_sizes(call.batch_sizes, sizes, "input");
  const ForwardResult result = with_output(pre, sizes, spec, call.save);
  const auto& [output, h_n, saved] = result;
  for (const NetworkBlock& some : NetworkBlock::blocks(sizes, pre)) {
    const ProjectedCall part = some.of(call);
    const at::Tensor h = some.of(output);
    multiply(all_rows(h, sizes), all_rows(part.input, sizes), part.weight_ih.transpose(-2, -1), part.bias,
             all_rows(part.drive, sizes));
    run_forward(part, h, some.sizes(), spec, {h, some.of(h_n), some.of(saved)});
  }
  return result;
}

ForwardResult projected_recurrence_meta(const ProjectedCall& call) {
  const RecurrenceSpec spec = check_spec(call.spec);
  const at::Tensor pre = empty_pre(call);
  return with_output(pre, check_forward("input", pre, call), spec, call.save);
}

}  // namespace rnnkernels::binding
