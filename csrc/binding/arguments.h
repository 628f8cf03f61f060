// What the operators accept: one set of checks for real tensors and for the shapes alone that
// torch.compile traces with. A wrong argument ends in a sentence that names it, says what was
// expected and what came.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string>
#include <vector>

#include "core/problem.h"

// CUDA's kernels are there: compiled for GPUs, or, in tests, for the emulated one.
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

// What is computed.
struct Kind {
  NonlinearityIndex nonlinearity = 0;
  Form form = Form::kRate;
  bool keeps_bits = false;        // forward saves [rows, ceil(H/32)] words
  bool keeps_activation = false;  // forward saves [rows, H] values
  bool reads_state = true;        // W multiplies h itself, not f(h)
};

Kind check_kind(const std::string& nonlinearity, const std::string& form);

// `name` is what sentences call `pre`: in the backward call the output stands in for it, and where it is
// made of an input they speak of that.
Sizes check_forward(const char* name, const at::Tensor& pre, const OptionalTensor& h0,
                    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes);

// Of a backward: what comes from forward, and the gradients that come in.
struct Checked {
  Sizes sizes;
  Kind kind;
};
Checked check_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                       const at::Tensor& output, const at::Tensor& saved, const OptionalTensor& h0,
                       const at::Tensor& weight_hh, const at::Tensor& decay,
                       const OptionalTensor& batch_sizes, const std::string& nonlinearity,
                       const std::string& form);

// Values, so for real tensors only: every decay in [0, 1), and batch sizes that fit the rows. A decay on a
// GPU is taken as it is, since to look at it is to wait for it.
void check_decay_values(const at::Tensor& decay);
void check_batch_sizes_values(const at::Tensor& batch_sizes, const Sizes& sizes, const char* name);

// A sparse tensor has neither strides nor, often, the sizes' meaning, so the layout is looked at first.
void check_layout(const char* name, const at::Tensor& tensor);

// `tensor` has this shape, and the dtype and device of `like`, which is called `like_name`.
void check_like(const char* name, const at::Tensor& tensor, const std::vector<c10::SymInt>& shape,
                const char* shape_name, const at::Tensor& like, const char* like_name);

// What the kernels compute in: half precision in float32, everything else as it is. Half precision is
// for storing, so results are rounded once, at the end, and the state of the walk never is.
inline bool is_computed(const at::Tensor& tensor) { return !at::isReducedFloatingType(tensor.scalar_type()); }
at::Tensor computed(const at::Tensor& tensor);

// Whether the kernels of csrc/cuda take it. The emulated GPU has the CPU's memory, and takes all.
inline bool on_gpu([[maybe_unused]] const at::Tensor& tensor) {
#if defined(RNNKERNELS_EMULATED)
  return true;
#elif defined(RNNKERNELS_CUDA)
  return tensor.is_cuda();
#else
  return false;
#endif
}

// Nothing if kernels do not know it.
std::optional<ElementType> element_type(at::ScalarType type);

}  // namespace rnnkernels::binding
