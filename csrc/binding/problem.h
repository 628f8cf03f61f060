// From tensors to the plain structs that the kernels read.
#pragma once

#include <vector>

#include "binding/arguments.h"

namespace rnnkernels::binding {

// A layout, and the arrays that it points to for a packed sequence.
struct LayoutStorage {
  Layout layout;
  std::vector<int64_t> rows, offsets;
  LayoutStorage(const Sizes& sizes, const OptionalTensor& batch_sizes, bool reverse);
  LayoutStorage(const LayoutStorage&) = delete;
  LayoutStorage& operator=(const LayoutStorage&) = delete;
};

// The tensor itself if its units are contiguous, else a copy whose are.
at::Tensor with_contiguous_units(const at::Tensor& tensor);

// Views for the kernels; the tensor must outlive them and have contiguous units. An undefined tensor
// becomes a null one.
Sequence sequence_of(const at::Tensor& tensor, const Sizes& sizes);
Rows rows_of(const at::Tensor& tensor, const Sizes& sizes);

// Everything that both directions share but `saved`'s data, which the directions fill in. Sequences are
// stored as `like` is; weight_hh and decay are computed ones.
void fill_recurrence(Recurrence& problem, const Sizes& sizes, const Kind& kind, const Layout& layout,
                     const at::Tensor& like, const at::Tensor& h0, const at::Tensor& weight_hh,
                     const at::Tensor& decay);
void fill_saved(Recurrence& problem, const Sizes& sizes, const Kind& kind, const at::Tensor& saved);

// The shape of `saved`: words, values, or nothing.
at::Tensor empty_saved(const Sizes& sizes, const Kind& kind, bool save, const at::Tensor& like);

// Runs one direction with torch's threads and a workspace of torch's memory.
void run(const ForwardProblem& problem, const at::Tensor& like);
void run(const BackwardProblem& problem, const at::Tensor& like);
void run(const LinearProblem& problem, const at::Tensor& like);

}  // namespace rnnkernels::binding
