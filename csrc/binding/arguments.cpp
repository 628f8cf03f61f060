// Checks of the operators' arguments.
#include "binding/arguments.h"

#include <ATen/Dispatch.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "core/cells.h"
#include "core/limits.h"

namespace rnnkernels::binding {

namespace {

std::string nonlinearity_names() {
  std::string names;
  for (int i = 0; const char* name = name_at(i, Nonlinearities{}); ++i) {
    names += (i ? ", '" : "'") + std::string(name) + "'";
  }
  return names;
}

void check_device(const char* name, const at::Tensor& tensor, const at::Tensor& like, const char* like_name) {
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " must be on the device of ", like_name, ", ",
                    like.device(), ", got ", tensor.device());
}

void check_placement(const char* name, const at::Tensor& tensor, const at::Tensor& like,
                     const char* like_name) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == like.scalar_type(), name, " must have the dtype of ", like_name,
                    ", ", like.scalar_type(), ", got ", tensor.scalar_type());
  check_device(name, tensor, like, like_name);
}

// Raises ValueError if a packed sequence has more steps than rows: an expanded tensor of batch sizes can have
// any number of them. A size that is a symbol is checked when the call runs with a number.
void check_steps(const Sizes& sizes, const char* name) {
  const auto steps = sizes.steps.maybe_as_int(), rows = sizes.rows.maybe_as_int();
  TORCH_CHECK_VALUE(!steps || !rows || *steps <= *rows, "batch_sizes must be positive and add up to the ",
                    *rows, " rows of ", name, ", got ", *steps, " steps");
}

// The number of elements, where an empty dimension counts as 1, or more than kMostElements. So does a dimension
// whose size is a symbol: the call is checked when it runs with a number.
int64_t limited_numel(const at::Tensor& tensor) {
  int64_t product = 1;
  for (const c10::SymInt& size : tensor.sym_sizes()) {
    product = limited_product(product, std::max<int64_t>(1, size.maybe_as_int().value_or(1)));
  }
  return product;
}

}  // namespace

void check_tensor(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, name, " must be a dense tensor, got layout ",
                    tensor.layout());
  TORCH_CHECK_VALUE(limited_numel(tensor) <= kMostElements, name,
                    " must have at most 2^48 elements, empty dimensions counted as 1, got ",
                    tensor.sym_sizes());
}

std::vector<c10::SymInt> Sizes::sequence(const c10::SymInt& last) const {
  std::vector<c10::SymInt> shape;
  if (grouped) shape.push_back(networks);
  if (packed) {
    shape.push_back(rows);
  } else {
    shape.push_back(steps);
    shape.push_back(batch);
  }
  shape.push_back(last);
  return shape;
}

std::vector<c10::SymInt> Sizes::state() const {
  if (grouped) return {networks, batch, hidden};
  return {batch, hidden};
}

RecurrenceSpec check_spec(const SpecArguments& arguments) {
  const auto& [nonlinearity, form, reverse] = arguments;
  TORCH_CHECK_VALUE(form == "rate" || form == "current", "form must be 'rate' or 'current', got '", form,
                    "'");
  RecurrenceSpec spec;
  spec.form = form == "rate" ? Form::kRate : Form::kCurrent;
  spec.reverse = reverse;
  spec.nonlinearity = -1;
  for (int i = 0; const char* name = name_at(i, Nonlinearities{}); ++i) {
    if (nonlinearity == name) spec.nonlinearity = i;
  }
  TORCH_CHECK_VALUE(spec.nonlinearity >= 0, "nonlinearity must be one of ", nonlinearity_names(), ", got '",
                    nonlinearity, "'");
  with_cell(spec.nonlinearity, spec.form, Nonlinearities{}, [&](auto cell) {
    spec.keeps_bits = cell.kKeepsBits;
    spec.keeps_activation = cell.kKeepsActivation;
  });
  spec.reads_state = spec.form == Form::kRate;
  return spec;
}

void check_like(const char* name, const at::Tensor& tensor, const std::vector<c10::SymInt>& shape,
                const char* shape_name, const at::Tensor& like, const char* like_name) {
  check_tensor(name, tensor);
  const c10::SymIntArrayRef expected(shape);
  TORCH_CHECK_VALUE(tensor.sym_sizes() == expected, name, " must be ", shape_name, " = ", expected, ", got ",
                    tensor.sym_sizes());
  check_placement(name, tensor, like, like_name);
}

Sizes check_forward(const char* name, const at::Tensor& pre, const OptionalTensor& h0,
                    const at::Tensor& weight_hh, const at::Tensor& decay, const OptionalTensor& batch_sizes) {
  check_tensor(name, pre);
  check_tensor("weight_hh", weight_hh);
  check_tensor("decay", decay);
  TORCH_CHECK_VALUE(element_type(pre.scalar_type()), name,
                    " must be float32, float64, bfloat16 or float16, got ", pre.scalar_type());
  TORCH_CHECK_VALUE(weight_hh.dim() == 2 || weight_hh.dim() == 3,
                    "weight_hh must be [H, H] (or [G, H, H]), got ", weight_hh.sym_sizes());
  Sizes sizes;
  sizes.grouped = weight_hh.dim() == 3;
  sizes.packed = batch_sizes.has_value();
  const int64_t lead = sizes.grouped ? 1 : 0;
  const int64_t rank = lead + (sizes.packed ? 2 : 3);
  TORCH_CHECK_VALUE(pre.dim() == rank, name, " must have ", rank, " dimensions, ",
                    sizes.grouped ? "[G, " : "[", sizes.packed ? "sum(batch_sizes), H]" : "T, B, H]",
                    ", got ", pre.sym_sizes());
  sizes.hidden = pre.sym_size(-1);
  TORCH_CHECK_VALUE(sizes.hidden > 0, name, " must have at least one hidden unit, got ", pre.sym_sizes());
  if (sizes.grouped) sizes.networks = pre.sym_size(0);
  std::vector<c10::SymInt> square = {sizes.hidden, sizes.hidden};
  if (sizes.grouped) square.insert(square.begin(), sizes.networks);
  check_like("weight_hh", weight_hh, square, sizes.grouped ? "[G, H, H]" : "[H, H]", pre, name);

  if (sizes.packed) {
    TORCH_CHECK_VALUE(h0.has_value(), "h0 must be given along with batch_sizes");
    check_tensor("h0", *h0);
    check_tensor("batch_sizes", *batch_sizes);
    TORCH_CHECK_VALUE(h0->dim() == lead + 2, "h0 must be ", sizes.grouped ? "[G, B, H]" : "[B, H]", ", got ",
                      h0->sym_sizes());
    TORCH_CHECK_VALUE(batch_sizes->dim() == 1 && batch_sizes->scalar_type() == at::kLong,
                      "batch_sizes must be a one-dimensional int64 tensor, got ", batch_sizes->scalar_type(),
                      " of shape ", batch_sizes->sym_sizes());
    TORCH_CHECK_VALUE(batch_sizes->device().is_cpu() || (batch_sizes->is_meta() && pre.is_meta()),
                      "batch_sizes must be on the CPU, got ", batch_sizes->device());
    sizes.steps = batch_sizes->sym_size(0);
    sizes.batch = h0->sym_size(-2);
    sizes.rows = pre.sym_size(-2);
    check_steps(sizes, name);
  } else {
    sizes.steps = pre.sym_size(-3);
    sizes.batch = pre.sym_size(-2);
    sizes.rows = sizes.steps * sizes.batch;
  }
  if (h0.has_value()) check_like("h0", *h0, sizes.state(), sizes.grouped ? "[G, B, H]" : "[B, H]", pre, name);

  // Half precision cannot represent a decay near 1, so there the decay may be float32.
  if (at::isReducedFloatingType(pre.scalar_type()) && decay.scalar_type() == at::kFloat) {
    check_device("decay", decay, pre, name);
  } else {
    check_placement("decay", decay, pre, name);
  }
  TORCH_CHECK_VALUE(decay.dim() == 0 || (decay.dim() <= 1 + lead && decay.sym_size(-1) == sizes.hidden &&
                                         (decay.dim() < 2 || decay.sym_size(0) == sizes.networks)),
                    "decay must be a scalar or [H] = [", sizes.hidden, "]",
                    sizes.grouped ? " (or [G, H])" : "", ", got ", decay.sym_sizes());
  return sizes;
}

SavedParts parts_to_save(const RecurrenceSpec& spec, int64_t save, at::ScalarType type) {
  TORCH_CHECK_VALUE(save >= kSaveNothing && save <= kSaveForDecay, "save must be 0, 1 or 2, got ", save);
  if (save == kSaveNothing) return {};
  SavedParts parts;
  parts.active = spec.keeps_bits;
  parts.activation = spec.keeps_activation;
  parts.decay_slope = save == kSaveForDecay && at::isReducedFloatingType(type);
  return parts;
}

std::vector<c10::SymInt> saved_shape(const SavedParts& parts, const Sizes& sizes) {
  const c10::SymInt words = (sizes.hidden + 31) / 32;
  if (parts.none()) return {0};
  if (parts.words_alone()) return sizes.sequence(words);
  if (parts.active) return sizes.sequence((words + (sizes.hidden + 1) / 2) * 2);
  return sizes.sequence(parts.activation && parts.decay_slope ? sizes.hidden * 2 : sizes.hidden);
}

SavedParts parts_of(const at::Tensor& saved, const Sizes& sizes, const RecurrenceSpec& spec,
                    at::ScalarType type) {
  if (at::isReducedFloatingType(type) && saved.scalar_type() == type) {
    const SavedParts parts = parts_to_save(spec, kSaveForDecay, type);
    if (saved.sym_sizes() == c10::SymIntArrayRef(saved_shape(parts, sizes))) return parts;
  }
  return parts_to_save(spec, kSaveForBackward, type);
}

void check_backward(const Sizes& sizes, const RecurrenceSpec& spec, const OptionalTensor& grad_output,
                    const OptionalTensor& grad_h_n, const at::Tensor& output, const at::Tensor& saved) {
  const auto sequence = sizes.sequence(sizes.hidden);
  if (grad_output) check_like("grad_output", *grad_output, sequence, "the shape of output", output, "output");
  if (grad_h_n) check_like("grad_h_n", *grad_h_n, sizes.state(), "[B, H]", output, "output");
  TORCH_CHECK_VALUE(saved.layout() == at::kStrided && saved.device() == output.device(),
                    "saved must be on the device of output, ", output.device(), ", got ", saved.device());
  const SavedParts parts = parts_of(saved, sizes, spec, output.scalar_type());
  if (!parts.none()) {
    const auto shape = saved_shape(parts, sizes);
    TORCH_CHECK_VALUE(saved.sym_sizes() == c10::SymIntArrayRef(shape) && saved.is_contiguous() &&
                          saved.scalar_type() == saved_type(parts, output.scalar_type()),
                      "saved must be the third result of the forward operator with save=1 or 2, got ",
                      saved.scalar_type(), " ", saved.sym_sizes());
  }
}

void check_decay_values(const at::Tensor& decay) {
  if (on_gpu(decay)) return;
  const at::Tensor values = computed(decay).contiguous();
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "decay", [&] {
    const scalar_t* data = values.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < values.numel(); ++i) {
      TORCH_CHECK_VALUE(data[i] >= 0 && data[i] < 1, "decay must lie in [0, 1), got ", data[i], " at unit ",
                        i);
    }
  });
}

void own_batch_sizes(OptionalTensor& batch_sizes, const Sizes& sizes, const char* name) {
  if (!batch_sizes) return;
  batch_sizes = batch_sizes->clone(at::MemoryFormat::Contiguous);
  const int64_t* data = batch_sizes->const_data_ptr<int64_t>();
  const int64_t steps = batch_sizes->numel();
  TORCH_CHECK_VALUE(steps == sizes.steps.expect_int(), "batch_sizes must not change during the call");
  const int64_t batch = sizes.batch.expect_int(), rows = sizes.rows.expect_int();
  TORCH_CHECK_VALUE(steps > 0, "batch_sizes must have at least one step, got none");
  TORCH_CHECK_VALUE(data[0] == batch, "batch_sizes must begin with the rows of h0, ", batch, ", got ",
                    data[0]);
  int64_t left = rows;
  for (int64_t t = 0; t < steps; ++t) {
    TORCH_CHECK_VALUE(data[t] > 0 && (t == 0 || data[t] <= data[t - 1]),
                      "batch_sizes must be positive and never grow, got ", data[t], " at step ", t);
    left = data[t] > left ? -1 : left - data[t];
    if (left < 0) break;
  }
  TORCH_CHECK_VALUE(left == 0, name, " must have sum(batch_sizes) rows, got ", rows, " rows");
}

at::Tensor computed(const at::Tensor& tensor) { return is_computed(tensor) ? tensor : tensor.to(at::kFloat); }

std::optional<ElementType> element_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return ElementType::kFloat32;
    case at::kDouble:
      return ElementType::kFloat64;
    case at::kBFloat16:
      return ElementType::kBFloat16;
    case at::kHalf:
      return ElementType::kFloat16;
    default:
      return std::nullopt;
  }
}

}  // namespace rnnkernels::binding
