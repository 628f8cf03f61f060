// rnnkernels::linear_recurrence: check, allocate, run.
#include <ATen/ops/empty.h>

#include "binding/problem.h"
#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

Sizes check_linear(const LinearCall& call) {
  const at::Tensor& drive = call.drive;
  const Sizes sizes = check_forward("drive", drive, call);
  const auto sequence = sizes.sequence(sizes.hidden);
  if (call.alpha) check_like("alpha", *call.alpha, sequence, "the shape of drive", drive, "drive");
  if (call.beta) check_like("beta", *call.beta, sequence, "the shape of drive", drive, "drive");
  return sizes;
}

}  // namespace

at::Tensor linear_recurrence(LinearCall call) {
  const Sizes sizes = check_linear(call);
  own_batch_sizes(call.batch_sizes, sizes, "drive");
  at::Tensor output = at::empty_symint(sizes.sequence(sizes.hidden), call.drive.options());

  const at::Tensor drive_units = with_contiguous_units(call.drive);
  const at::Tensor h0_units = with_contiguous_units(call.h0.value_or(at::Tensor()));
  const at::Tensor alpha_units = with_contiguous_units(call.alpha.value_or(at::Tensor()));
  const at::Tensor beta_units = with_contiguous_units(call.beta.value_or(at::Tensor()));
  const LayoutStorage layout(sizes, call.batch_sizes, call.reverse, output);
  LinearProblem problem;
  const at::Tensor weight = computed(call.weight_hh), decay = computed(call.decay);
  fill_recurrence(problem, sizes, RecurrenceSpec{}, layout, call.drive, h0_units, weight, decay);
  problem.drive = sequence_of(drive_units, sizes);
  problem.alpha = sequence_of(alpha_units, sizes);
  problem.beta = sequence_of(beta_units, sizes);
  problem.output = sequence_of(output, sizes);
  run(problem, layout, weight);
  return output;
}

at::Tensor linear_recurrence_meta(const LinearCall& call) {
  const Sizes sizes = check_linear(call);
  return at::empty_symint(sizes.sequence(sizes.hidden), call.drive.options());
}

}  // namespace rnnkernels::binding
