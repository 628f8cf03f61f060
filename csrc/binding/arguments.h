// Checks of the operators' arguments, the same for real tensors and for the meta tensors (shapes only) that
// torch.compile traces with. The message of an error names the argument, what was expected and what came.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string>
#include <vector>

#include "core/problem.h"

// Defined where there are CUDA kernels: compiled for GPUs or, in tests, for the emulated one.
#if defined(RNNKERNELS_CUDA) || defined(RNNKERNELS_EMULATED)
#define RNNKERNELS_GPU
#endif

namespace rnnkernels::binding {

using OptionalTensor = std::optional<at::Tensor>;

// The sizes of a call. `pre` is [T, B, H] or packed [rows, H], with a leading G for each if
// weight_hh is [G, H, H].
struct Sizes {
  bool grouped = false;  // a leading G
  bool packed = false;
  c10::SymInt networks = 1;  // G
  c10::SymInt steps;         // T
  c10::SymInt batch;         // B
  c10::SymInt rows;          // T * B, or the sum of the batch sizes
  c10::SymInt hidden;        // H

  // [G] + (T, B or rows) + last
  std::vector<c10::SymInt> sequence(const c10::SymInt& last) const;
  // [G] + B, H
  std::vector<c10::SymInt> state() const;
};

// Which recurrence is computed, as the operators' arguments say it: everything but the tensors.
struct SpecArguments {
  std::string nonlinearity, form;
  bool reverse = false;
};

// The same, checked. A new setting of the recurrence is a field here and in SpecArguments.
struct RecurrenceSpec {
  NonlinearityIndex nonlinearity = 0;
  Form form = Form::kRate;
  bool reverse = false;
  // These follow from the settings above.
  bool keeps_bits = false;        // forward saves [rows, ceil(H/32)] words
  bool keeps_activation = false;  // forward saves [rows, H] values
  bool reads_state = true;        // W multiplies h itself, not f(h)
};

RecurrenceSpec check_spec(const SpecArguments& arguments);

// Checks the shapes, dtypes and devices of the tensors that all operators have. Error messages call `pre` by
// `name`: a backward operator has the output in its place, and projected_recurrence the input.
Sizes check_forward(const char* name, const at::Tensor& pre, const OptionalTensor& h0,
                    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes);
template <class Call>
Sizes check_forward(const char* name, const at::Tensor& pre, const Call& call) {
  return check_forward(name, pre, call.h0, call.weight_hh, call.decay, call.batch_sizes);
}

// What a forward operator saves for backward: its argument `save`.
enum Save : int64_t { kSaveNothing, kSaveForBackward, kSaveForDecay };

// The parts of the tensor `saved` (core/problem.h, Saved), one after the other in each of its rows: the active
// bits or the activation, then decay_slope. The tensor has the dtype of the sequences; bits alone are int32.
// Before a decay_slope, the words of bits are counted as two elements each, and a row has an even number of
// elements.
struct SavedParts {
  bool active = false;
  bool activation = false;
  bool decay_slope = false;

  bool none() const { return !active && !activation && !decay_slope; }
  bool words_alone() const { return active && !decay_slope; }
};

// What a call with sequences of this dtype saves, and the shape and dtype of `saved`.
SavedParts parts_to_save(const RecurrenceSpec& spec, int64_t save, at::ScalarType type);
std::vector<c10::SymInt> saved_shape(const SavedParts& parts, const Sizes& sizes);
inline at::ScalarType saved_type(const SavedParts& parts, at::ScalarType type) {
  return parts.words_alone() ? at::kInt : type;
}

// What a tensor that forward saved has; its shape is checked by check_backward.
SavedParts parts_of(const at::Tensor& saved, const Sizes& sizes, const RecurrenceSpec& spec,
                    at::ScalarType type);

// Checks the results of forward and the incoming gradients that a backward operator gets.
void check_backward(const Sizes& sizes, const RecurrenceSpec& spec, const OptionalTensor& grad_output,
                    const OptionalTensor& grad_h_n, const at::Tensor& output, const at::Tensor& saved);

// Checks values, so for real tensors only: every decay lies in [0, 1). The values of a decay on a GPU are not
// checked, because reading them would synchronize.
void check_decay_values(const at::Tensor& decay);

// Replaces the batch sizes of a call by a contiguous copy, and checks that the copy fits the rows; so for real
// tensors only. The kernels compute addresses from batch sizes, and another thread may change the caller's
// tensor during the call, so nothing reads that tensor again.
void own_batch_sizes(OptionalTensor& batch_sizes, const Sizes& sizes, const char* name);

// Refuses sparse tensors, which have no strides, and tensors with more elements than core/limits.h allows. To
// be called first for every argument, so that no arithmetic on its sizes overflows.
void check_tensor(const char* name, const at::Tensor& tensor);

// Checks that `tensor` has this shape, and the dtype and device of `like`, which messages call `like_name`.
void check_like(const char* name, const at::Tensor& tensor, const std::vector<c10::SymInt>& shape,
                const char* shape_name, const at::Tensor& like, const char* like_name);

// The dtype that the kernels compute in: float32 for half precision, which is a storage format, else the
// dtype itself. So results are rounded once, at the end, and the state never is.
inline bool is_computed(const at::Tensor& tensor) { return !at::isReducedFloatingType(tensor.scalar_type()); }
at::Tensor computed(const at::Tensor& tensor);

// Whether the kernels of csrc/cuda process the tensor. The emulated GPU uses the CPU's memory and processes
// all.
inline bool on_gpu([[maybe_unused]] const at::Tensor& tensor) {
#if defined(RNNKERNELS_EMULATED)
  return true;
#elif defined(RNNKERNELS_CUDA)
  return tensor.is_cuda();
#else
  return false;
#endif
}

// Nothing if the kernels do not support the dtype.
std::optional<ElementType> element_type(at::ScalarType type);

}  // namespace rnnkernels::binding
