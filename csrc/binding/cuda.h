// The recurrence on CUDA tensors, on torch's current stream. Nothing here waits for the device or copies from
// the host's memory, so that all of it can be captured in a graph.
#pragma once

#include "binding/blocks.h"

namespace rnnkernels::binding {

// `device` becomes `host`, with arrays on the device of `like`. The tensor that has them must outlive them.
at::Tensor put_layout_on_gpu(const Layout& host, const at::Tensor& like, Layout* device);

// A walk; `layout` is the host's, the problem has the device's. RNNKERNELS_TEAM overrides the choice of the
// team.
void run_on_gpu(const ForwardProblem& problem, const Layout& layout, const at::Tensor& weight);
void run_on_gpu(const BackwardProblem& problem, const Layout& layout, const at::Tensor& weight);
void run_on_gpu(const LinearProblem& problem, const Layout& layout, const at::Tensor& weight);

// What W multiplied in the forward walk, for the rows from `first_row` on among those of all steps: operands
// is [rows, H] or [G, rows, H], of the type of the sequences.
void put_operands_on_gpu(const BackwardProblem& problem, int64_t first_row, const at::Tensor& operands);

}  // namespace rnnkernels::binding
