// The recurrence on CUDA tensors, on torch's current stream. No function synchronizes with the device or
// copies from host memory, so all of them can be captured in a CUDA graph.
#pragma once

#include "binding/blocks.h"

namespace rnnkernels::binding {

// Copies `host` to `device`, and its arrays to the device of `like`. The returned tensor owns these arrays.
at::Tensor put_layout_on_gpu(const Layout& host, const at::Tensor& like, Layout* device);

// Runs a pass. The arrays of `layout` are in host memory, those of the problem's layout in device memory. The
// environment variable RNNKERNELS_TEAM overrides the choice of the team.
void run_on_gpu(const ForwardProblem& problem, const Layout& layout, const at::Tensor& weight);
void run_on_gpu(const BackwardProblem& problem, const Layout& layout, const at::Tensor& weight);
void run_on_gpu(const LinearProblem& problem, const Layout& layout, const at::Tensor& weight);

// Writes the right factors of W in the forward pass, h_{t-1} or f(h_{t-1}), for the rows from `first_row` on
// among the rows of all steps. `operands` is [rows, H] or [G, rows, H], of the dtype of the sequences.
void put_operands_on_gpu(const BackwardProblem& problem, int64_t first_row, const at::Tensor& operands);

}  // namespace rnnkernels::binding
