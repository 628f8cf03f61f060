// From tensors to the plain structs that the kernels read.
#pragma once

#include <vector>

#include "binding/arguments.h"

namespace rnnkernels::binding {

// A layout, and the arrays that it points to for a packed sequence. The batch sizes are the call's own
// (own_batch_sizes), or some steps of them.
struct LayoutStorage {
  Layout layout;   // for the host
  Layout problem;  // for a kernel: its arrays are on the device of `like`, as the sequences are
  OptionalTensor rows;
  std::vector<int64_t> offsets;
  at::Tensor on_device;
  LayoutStorage(const Sizes& sizes, const OptionalTensor& batch_sizes, bool reverse, const at::Tensor& like);
  LayoutStorage(const LayoutStorage&) = delete;
  LayoutStorage& operator=(const LayoutStorage&) = delete;
};

// The tensor itself if its units are contiguous and its row stride is within the kernels' limit; else a copy
// for which both hold.
at::Tensor with_contiguous_units(const at::Tensor& tensor);

// Views for the kernels. The tensor must outlive them and have contiguous units; an undefined tensor gives a
// null view.
Sequence sequence_of(const at::Tensor& tensor, const Sizes& sizes);
Rows rows_of(const at::Tensor& tensor, const Sizes& sizes);

// Fills in the fields that all problems share, except `saved`. Sequences have the dtype of `like`; weight_hh
// and decay the dtype that is computed in.
void fill_recurrence(Recurrence& problem, const Sizes& sizes, const RecurrenceSpec& spec,
                     const LayoutStorage& layout, const at::Tensor& like, const at::Tensor& h0,
                     const at::Tensor& weight_hh, const at::Tensor& decay);
void fill_saved(Recurrence& problem, const Sizes& sizes, const SavedParts& parts, const at::Tensor& saved);

// An empty tensor for what forward saves.
at::Tensor empty_saved(const Sizes& sizes, const SavedParts& parts, const at::Tensor& like);

// Runs a pass on the device of weight_hh, which has the dtype that is computed in. The workspace is a tensor;
// on the CPU the threads are torch's.
void run(const ForwardProblem& problem, const LayoutStorage& layout, const at::Tensor& weight_hh);
void run(const BackwardProblem& problem, const LayoutStorage& layout, const at::Tensor& weight_hh);
void run(const LinearProblem& problem, const LayoutStorage& layout, const at::Tensor& weight_hh);

}  // namespace rnnkernels::binding
