// rnnkernels::linear_recurrence: check, allocate, run.
#include <ATen/ops/empty.h>

#include "binding/problem.h"
#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

Sizes check_linear(const at::Tensor& drive, const OptionalTensor& h0, const at::Tensor& weight_hh,
                   const at::Tensor& decay, const OptionalTensor& alpha, const OptionalTensor& beta,
                   const OptionalTensor& batch_sizes) {
  const Sizes sizes = check_forward("drive", drive, h0, weight_hh, decay, batch_sizes);
  const auto sequence = sizes.sequence(sizes.hidden);
  if (alpha) check_like("alpha", *alpha, sequence, "the shape of drive", drive, "drive");
  if (beta) check_like("beta", *beta, sequence, "the shape of drive", drive, "drive");
  return sizes;
}

}  // namespace

at::Tensor linear_recurrence(const at::Tensor& drive, const OptionalTensor& h0, const at::Tensor& weight_hh,
                             const at::Tensor& decay, const OptionalTensor& alpha, const OptionalTensor& beta,
                             const OptionalTensor& batch_sizes, bool reverse) {
  const Sizes sizes = check_linear(drive, h0, weight_hh, decay, alpha, beta, batch_sizes);
  if (batch_sizes) check_batch_sizes_values(*batch_sizes, sizes, "drive");
  at::Tensor output = at::empty_symint(sizes.sequence(sizes.hidden), drive.options());

  const at::Tensor drive_units = with_contiguous_units(drive);
  const at::Tensor h0_units = with_contiguous_units(h0.value_or(at::Tensor()));
  const at::Tensor alpha_units = with_contiguous_units(alpha.value_or(at::Tensor()));
  const at::Tensor beta_units = with_contiguous_units(beta.value_or(at::Tensor()));
  const LayoutStorage layout(sizes, batch_sizes, reverse, output);
  LinearProblem problem;
  const at::Tensor weight = computed(weight_hh), share = computed(decay);
  fill_recurrence(problem, sizes, Kind{}, layout, drive, h0_units, weight, share);
  problem.drive = sequence_of(drive_units, sizes);
  problem.alpha = sequence_of(alpha_units, sizes);
  problem.beta = sequence_of(beta_units, sizes);
  problem.output = sequence_of(output, sizes);
  run(problem, layout, weight);
  return output;
}

at::Tensor linear_recurrence_meta(const at::Tensor& drive, const OptionalTensor& h0,
                                  const at::Tensor& weight_hh, const at::Tensor& decay,
                                  const OptionalTensor& alpha, const OptionalTensor& beta,
                                  const OptionalTensor& batch_sizes, bool /*reverse*/) {
  const Sizes sizes = check_linear(drive, h0, weight_hh, decay, alpha, beta, batch_sizes);
  return at::empty_symint(sizes.sequence(sizes.hidden), drive.options());
}

}  // namespace rnnkernels::binding
