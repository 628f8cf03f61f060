// From tensors to the plain structs that the kernels read.
#pragma once

#include <vector>

#include "binding/arguments.h"

namespace rnnkernels::binding {

// A layout, and the arrays that it points to for a packed sequence.
struct LayoutStorage {
  Layout layout;   // to look at here
  Layout problem;  // for a problem, whose arrays are where the sequences are: on the device of `like`
  std::vector<int64_t> rows, offsets;
  at::Tensor on_device;
  LayoutStorage(const Sizes& sizes, const OptionalTensor& batch_sizes, bool reverse, const at::Tensor& like);
  LayoutStorage(const LayoutStorage&) = delete;
  LayoutStorage& operator=(const LayoutStorage&) = delete;
};

// The tensor itself if its units are contiguous, and its rows as near to each other as kernels can reckon;
// else a copy that is so.
at::Tensor with_contiguous_units(const at::Tensor& tensor);

// Views for the kernels; the tensor must outlive them and have contiguous units. An undefined tensor
// becomes a null one.
Sequence sequence_of(const at::Tensor& tensor, const Sizes& sizes);
Rows rows_of(const at::Tensor& tensor, const Sizes& sizes);

// Everything that both directions share but `saved`'s data, which the directions fill in. Sequences are
// stored as `like` is; weight_hh and decay are computed ones.
void fill_recurrence(Recurrence& problem, const Sizes& sizes, const Kind& kind, const LayoutStorage& layout,
                     const at::Tensor& like, const at::Tensor& h0, const at::Tensor& weight_hh,
                     const at::Tensor& decay);
void fill_saved(Recurrence& problem, const Sizes& sizes, const Kind& kind, const at::Tensor& saved);

// The shape of `saved`: words, values, or nothing.
at::Tensor empty_saved(const Sizes& sizes, const Kind& kind, bool save, const at::Tensor& like);

// Runs one direction on the device of the computed weight_hh, with a workspace of torch's memory; on the CPU
// with torch's threads.
void run(const ForwardProblem& problem, const LayoutStorage& layout, const at::Tensor& weight_hh);
void run(const BackwardProblem& problem, const LayoutStorage& layout, const at::Tensor& weight_hh);
void run(const LinearProblem& problem, const LayoutStorage& layout, const at::Tensor& weight_hh);

}  // namespace rnnkernels::binding
