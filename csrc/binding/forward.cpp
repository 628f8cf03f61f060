// rnnkernels::leaky_recurrence and rnnkernels::projected_recurrence: check, allocate, run.
#include <ATen/ops/empty.h>

#include "binding/blocks.h"
#include "binding/problem.h"
#include "binding/product.h"
#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

// h_n and saved beside an output that is there.
ForwardResult with_output(const at::Tensor& output, const Sizes& sizes, const Kind& kind, bool save) {
  return {output, at::empty_symint(sizes.state(), output.options()), empty_saved(sizes, kind, save, output)};
}

ForwardResult empty_results(const Sizes& sizes, const Kind& kind, bool save, const at::Tensor& pre) {
  return with_output(at::empty_symint(sizes.sequence(sizes.hidden), pre.options()), sizes, kind, save);
}

// `pre` may be the output itself: the walk reads each p_t just before it writes h_t.
void walk(const at::Tensor& pre, const OptionalTensor& h0, const at::Tensor& weight_hh,
          const at::Tensor& decay, const OptionalTensor& batch_sizes, const Sizes& sizes, const Kind& kind,
          bool reverse, bool save, const ForwardResult& result) {
  const auto& [output, h_n, saved] = result;
  const at::Tensor pre_units = with_contiguous_units(pre);
  const at::Tensor h0_units = with_contiguous_units(h0.value_or(at::Tensor()));
  const LayoutStorage layout(sizes, batch_sizes, reverse, output);
  ForwardProblem problem;
  const at::Tensor weight = computed(weight_hh), share = computed(decay);
  fill_recurrence(problem, sizes, kind, layout, pre, h0_units, weight, share);
  if (save) fill_saved(problem, sizes, kind, saved);
  problem.pre = sequence_of(pre_units, sizes);
  problem.output = sequence_of(output, sizes);
  problem.h_n = rows_of(h_n, sizes);
  run(problem, layout, weight);
}

// An empty tensor for p, and later h.
at::Tensor empty_pre(const at::Tensor& input, const at::Tensor& weight_ih, const at::Tensor& weight_hh,
                     const OptionalTensor& bias, const OptionalTensor& drive,
                     const OptionalTensor& batch_sizes) {
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

ForwardResult leaky_recurrence(const at::Tensor& pre, const OptionalTensor& h0, const at::Tensor& weight_hh,
                               const at::Tensor& decay, const OptionalTensor& batch_sizes,
                               std::string nonlinearity, std::string form, bool reverse, bool save) {
  const Kind kind = check_kind(nonlinearity, form);
  const Sizes sizes = check_forward("pre", pre, h0, weight_hh, decay, batch_sizes);
  check_decay_values(decay);
  if (batch_sizes) check_batch_sizes_values(*batch_sizes, sizes, "pre");
  const ForwardResult result = empty_results(sizes, kind, save, pre);
  walk(pre, h0, weight_hh, decay, batch_sizes, sizes, kind, reverse, save, result);
  return result;
}

ForwardResult leaky_recurrence_meta(const at::Tensor& pre, const OptionalTensor& h0,
                                    const at::Tensor& weight_hh, const at::Tensor& decay,
                                    const OptionalTensor& batch_sizes, std::string nonlinearity,
                                    std::string form, bool /*reverse*/, bool save) {
  const Kind kind = check_kind(nonlinearity, form);
  return empty_results(check_forward("pre", pre, h0, weight_hh, decay, batch_sizes), kind, save, pre);
}

ForwardResult projected_recurrence_cpu(const at::Tensor& input, const OptionalTensor& h0,
                                       const at::Tensor& weight_ih, const at::Tensor& weight_hh,
                                       const OptionalTensor& bias, const OptionalTensor& drive,
                                       const at::Tensor& decay, const OptionalTensor& batch_sizes,
                                       std::string nonlinearity, std::string form, bool reverse, bool save) {
  const Kind kind = check_kind(nonlinearity, form);
  const at::Tensor pre = empty_pre(input, weight_ih, weight_hh, bias, drive, batch_sizes);
  const Sizes sizes = check_forward("input", pre, h0, weight_hh, decay, batch_sizes);
  check_decay_values(decay);
  if (batch_sizes) check_batch_sizes_values(*batch_sizes, sizes, "input");
  const ForwardResult result = with_output(pre, sizes, kind, save);
  const auto& [output, h_n, saved] = result;
  for (const NetworkBlock& some : NetworkBlock::blocks(sizes, pre)) {
    const at::Tensor h = some.of(output), weight = some.of(weight_ih);
    multiply(all_rows(h, sizes), all_rows(some.of(input), sizes), weight.transpose(-2, -1), some.of(bias),
             all_rows(some.of(drive), sizes));
    walk(h, some.of(h0), some.of(weight_hh), some.of(decay), batch_sizes, some.sizes(), kind, reverse, save,
         {h, some.of(h_n), some.of(saved)});
  }
  return result;
}

ForwardResult projected_recurrence_meta(const at::Tensor& input, const OptionalTensor& h0,
                                        const at::Tensor& weight_ih, const at::Tensor& weight_hh,
                                        const OptionalTensor& bias, const OptionalTensor& drive,
                                        const at::Tensor& decay, const OptionalTensor& batch_sizes,
                                        std::string nonlinearity, std::string form, bool /*reverse*/,
                                        bool save) {
  const Kind kind = check_kind(nonlinearity, form);
  const at::Tensor pre = empty_pre(input, weight_ih, weight_hh, bias, drive, batch_sizes);
  return with_output(pre, check_forward("input", pre, h0, weight_hh, decay, batch_sizes), kind, save);
}

}  // namespace rnnkernels::binding
