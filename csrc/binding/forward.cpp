// rnnkernels::leaky_recurrence: check, allocate, run.
#include <ATen/ops/empty.h>

#include "binding/problem.h"
#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

ForwardResult empty_results(const Sizes& sizes, const Kind& kind, bool save, const at::Tensor& pre) {
  return {at::empty_symint(sizes.sequence(sizes.hidden), pre.options()),
          at::empty_symint(sizes.state(), pre.options()), empty_saved(sizes, kind, save, pre)};
}

}  // namespace

ForwardResult leaky_recurrence_cpu(const at::Tensor& pre, const OptionalTensor& h0,
                                   const at::Tensor& weight_hh, const at::Tensor& decay,
                                   const OptionalTensor& batch_sizes, std::string nonlinearity,
                                   std::string form, bool reverse, bool save) {
  const Kind kind = check_kind(nonlinearity, form);
  const Sizes sizes = check_forward("pre", pre, h0, weight_hh, decay, batch_sizes);
  check_decay_values(decay);
  if (batch_sizes) check_batch_sizes_values(*batch_sizes, sizes);
  if (!is_computed(pre)) {
    const auto [output, h_n, saved] =
        leaky_recurrence_cpu(computed(pre), computed(h0), computed(weight_hh), computed(decay), batch_sizes,
                             nonlinearity, form, reverse, save);
    return {stored(output, pre), stored(h_n, pre), stored(saved, pre)};
  }
  ForwardResult result = empty_results(sizes, kind, save, pre);
  auto& [output, h_n, saved] = result;

  const at::Tensor pre_units = with_contiguous_units(pre);
  const at::Tensor h0_units = with_contiguous_units(h0.value_or(at::Tensor()));
  const LayoutStorage layout(sizes, batch_sizes, reverse);
  ForwardProblem problem;
  fill_recurrence(problem, sizes, kind, layout.layout, h0_units, weight_hh, decay);
  if (save) fill_saved(problem, sizes, kind, saved);
  problem.pre = sequence_of(pre_units, sizes);
  problem.output = sequence_of(output, sizes);
  problem.h_n = rows_of(h_n, sizes);
  run(problem, pre);
  return result;
}

ForwardResult leaky_recurrence_meta(const at::Tensor& pre, const OptionalTensor& h0,
                                    const at::Tensor& weight_hh, const at::Tensor& decay,
                                    const OptionalTensor& batch_sizes, std::string nonlinearity,
                                    std::string form, bool /*reverse*/, bool save) {
  const Kind kind = check_kind(nonlinearity, form);
  return empty_results(check_forward("pre", pre, h0, weight_hh, decay, batch_sizes), kind, save, pre);
}

}  // namespace rnnkernels::binding
