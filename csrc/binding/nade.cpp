// rnnkernels::nade, nade_backward and nade_sample: check the arguments, allocate the results, run a kernel.
#include "binding/nade.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

#include "binding/host.h"

namespace rnnkernels::binding {

namespace {

struct NadeSizes {
  c10::SymInt rows, visible, hidden;
};

// `logits` is any argument with the shape of the logits, and `name` is its name in error messages.
NadeSizes check_nade(const char* name, const at::Tensor& logits, const at::Tensor& hidden_bias,
                     const at::Tensor& encoder, const at::Tensor& decoder) {
  check_tensor(name, logits);
  check_tensor("hidden_bias", hidden_bias);
  TORCH_CHECK_VALUE(logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kDouble, name,
                    " must be float32 or float64, got ", logits.scalar_type());
  TORCH_CHECK_VALUE(logits.dim() == 2, name, " must be [N, D], got ", logits.sym_sizes());
  TORCH_CHECK_VALUE(hidden_bias.dim() == 2, "hidden_bias must be [N, H], got ", hidden_bias.sym_sizes());
  const NadeSizes sizes = {logits.sym_size(0), logits.sym_size(1), hidden_bias.sym_size(1)};
  TORCH_CHECK_VALUE(sizes.visible > 0, name, " must have at least one visible unit, got ",
                    logits.sym_sizes());
  TORCH_CHECK_VALUE(sizes.hidden > 0, "hidden_bias must have at least one hidden unit, got ",
                    hidden_bias.sym_sizes());
  check_like("hidden_bias", hidden_bias, {sizes.rows, sizes.hidden}, "[N, H]", logits, name);
  check_like("encoder", encoder, {sizes.visible, sizes.hidden}, "[D, H]", logits, name);
  check_like("decoder", decoder, {sizes.visible, sizes.hidden}, "[D, H]", logits, name);
  return sizes;
}

// Whether v may have this dtype.
bool has_numbers(at::ScalarType type) {
  switch (type) {
    case at::kBool:
    case at::kByte:
    case at::kChar:
    case at::kShort:
    case at::kInt:
    case at::kLong:
      return true;
    default:
      return element_type(type).has_value();
  }
}

void check_v(const at::Tensor& v, const NadeSizes& sizes, const at::Tensor& like, const char* like_name) {
  check_tensor("v", v);
  const std::vector<c10::SymInt> shape = {sizes.rows, sizes.visible};
  TORCH_CHECK_VALUE(v.sym_sizes() == c10::SymIntArrayRef(shape),
                    "v must be [N, D] = ", c10::SymIntArrayRef(shape), ", got ", v.sym_sizes());
  TORCH_CHECK_VALUE(
      has_numbers(v.scalar_type()),
      "v must be bool, uint8, int8, int16, int32, int64, float16, bfloat16, float32 or float64, "
      "got ",
      v.scalar_type());
  TORCH_CHECK_VALUE(v.device() == like.device(), "v must be on the device of ", like_name, ", ",
                    like.device(), ", got ", v.device());
}

// v as the kernels read it: bytes that are 0 or 1. Raises ValueError unless all values are 0 or 1. Another thread
// may change v meanwhile, so the bytes decide.
at::Tensor bytes_of(const at::Tensor& v) {
#if defined(RNNKERNELS_GPU)
  if (on_gpu(v)) return bytes_on_gpu(v);
#endif
  const at::Tensor from = v.contiguous(), to = at::empty(v.sizes(), v.options().dtype(at::kByte));
  uint8_t* const bytes = to.mutable_data_ptr<uint8_t>();
  const int64_t n = from.numel();
  AT_DISPATCH_ALL_TYPES_AND3(at::kBool, at::kHalf, at::kBFloat16, from.scalar_type(), "v", [&] {
    const scalar_t* const values = from.const_data_ptr<scalar_t>();
    constexpr uint8_t kNeither = 2;
    bool valid = true;
    for (int64_t i = 0; i < n; ++i) {
      const bool one = values[i] == scalar_t(1), binary = one | (values[i] == scalar_t(0));
      bytes[i] = binary ? one : kNeither;
      valid &= binary;
    }
    if (valid) return;
    const int64_t bad = std::find(bytes, bytes + n, kNeither) - bytes;
    TORCH_CHECK_VALUE(false, "v must hold zeros and ones, got ", +values[bad], " at row ", bad / v.size(1),
                      ", unit ", bad % v.size(1));
  });
  return to;
}

// Fills in the part of a problem that all calls have, and owns the contiguous copies that its pointers lead to.
class Arguments {
 public:
  Arguments(Nade& problem, const at::Tensor& like, const at::Tensor& hidden_bias, const at::Tensor& encoder,
            const at::Tensor& decoder) {
    problem.type = element_type(like.scalar_type()).value();
    problem.rows = like.size(0);
    problem.visible = like.size(1);
    problem.hidden = hidden_bias.size(1);
    problem.hidden_bias = contiguous(hidden_bias);
    problem.encoder = contiguous(encoder);
    problem.decoder = contiguous(decoder);
  }
  const void* contiguous(const at::Tensor& tensor) {
    kept_.push_back(tensor.contiguous());
    return kept_.back().const_data_ptr();
  }
  const void* contiguous(const OptionalTensor& tensor) { return tensor ? contiguous(*tensor) : nullptr; }
  const uint8_t* bytes(const at::Tensor& v) {
    kept_.push_back(bytes_of(v));
    return static_cast<const uint8_t*>(kept_.back().const_data_ptr());
  }

 private:
  std::vector<at::Tensor> kept_;
};

void run(const NadeForward& problem, const at::Tensor& like) {
  if (problem.rows == 0) return;
#if defined(RNNKERNELS_GPU)
  if (on_gpu(like)) return run_on_gpu(problem, like.device());
#endif
  const cpu::Kernels& kernels = active_kernels();
  const cpu::Threads threads = torch_threads();
  const at::Tensor workspace = empty_bytes(kernels.nade_workspace(problem, threads), like.device());
  kernels.nade(problem, threads, workspace.data_ptr());
}

void run(const NadeBackward& problem, const at::Tensor& like) {
#if defined(RNNKERNELS_GPU)
  if (on_gpu(like)) return run_on_gpu(problem, like.device());
#endif
  const cpu::Kernels& kernels = active_kernels();
  const cpu::Threads threads = torch_threads();
  const at::Tensor workspace = empty_bytes(kernels.nade_backward_workspace(problem, threads), like.device());
  kernels.nade_backward(problem, threads, workspace.data_ptr());
}

NadeResult empty_results(const NadeSizes& sizes, const at::Tensor& like) {
  return {at::empty_symint({sizes.rows}, like.options()),
          at::empty_symint({sizes.rows, sizes.visible}, like.options())};
}

NadeResult empty_draws(const NadeSizes& sizes, const at::Tensor& like) {
  return {at::empty_symint({sizes.rows, sizes.visible}, like.options().dtype(at::kByte)),
          at::empty_symint({sizes.rows, sizes.visible}, like.options())};
}

NadeSizes check_backward(const OptionalTensor& grad_log_prob, const OptionalTensor& grad_logits,
                         const at::Tensor& v, const at::Tensor& logits, const at::Tensor& hidden_bias,
                         const at::Tensor& encoder, const at::Tensor& decoder) {
  const NadeSizes sizes = check_nade("logits", logits, hidden_bias, encoder, decoder);
  check_v(v, sizes, logits, "logits");
  if (grad_log_prob) check_like("grad_log_prob", *grad_log_prob, {sizes.rows}, "[N]", logits, "logits");
  if (grad_logits) {
    check_like("grad_logits", *grad_logits, {sizes.rows, sizes.visible}, "[N, D]", logits, "logits");
  }
  return sizes;
}

// d_visible_bias, and all or none of the other gradients, because one kernel computes them together.
NadeGradients empty_gradients(const NadeSizes& sizes, const at::Tensor& like, bool others) {
  const auto make = [&](bool computed, const c10::SymInt& rows, const c10::SymInt& units) {
    return computed ? at::empty_symint({rows, units}, like.options()) : at::empty({0}, like.options());
  };
  return {make(true, sizes.rows, sizes.visible), make(others, sizes.rows, sizes.hidden),
          make(others, sizes.visible, sizes.hidden), make(others, sizes.visible, sizes.hidden)};
}

NadeGradients only_wanted(const NadeGradients& all, const std::array<bool, 4>& wanted) {
  const auto one = [](const at::Tensor& x, bool is_wanted) {
    return is_wanted ? x : at::empty({0}, x.options());
  };
  return {one(std::get<0>(all), wanted[0]), one(std::get<1>(all), wanted[1]),
          one(std::get<2>(all), wanted[2]), one(std::get<3>(all), wanted[3])};
}

bool wants_others(const std::array<bool, 4>& wanted) { return wanted[1] || wanted[2] || wanted[3]; }

}  // namespace

NadeResult nade(const at::Tensor& v, const at::Tensor& visible_bias, const at::Tensor& hidden_bias,
                const at::Tensor& encoder, const at::Tensor& decoder) {
  const NadeSizes sizes = check_nade("visible_bias", visible_bias, hidden_bias, encoder, decoder);
  check_v(v, sizes, visible_bias, "visible_bias");
  const NadeResult result = empty_results(sizes, visible_bias);
  NadeForward problem;
  Arguments arguments(problem, visible_bias, hidden_bias, encoder, decoder);
  problem.visible_bias = arguments.contiguous(visible_bias);
  problem.v = arguments.bytes(v);
  problem.log_prob = std::get<0>(result).mutable_data_ptr();
  problem.logits = std::get<1>(result).mutable_data_ptr();
  run(problem, visible_bias);
  return result;
}

NadeResult nade_meta(const at::Tensor& v, const at::Tensor& visible_bias, const at::Tensor& hidden_bias,
                     const at::Tensor& encoder, const at::Tensor& decoder) {
  const NadeSizes sizes = check_nade("visible_bias", visible_bias, hidden_bias, encoder, decoder);
  check_v(v, sizes, visible_bias, "visible_bias");
  return empty_results(sizes, visible_bias);
}

NadeGradients nade_backward(const OptionalTensor& grad_log_prob, const OptionalTensor& grad_logits,
                            const at::Tensor& v, const at::Tensor& logits, const at::Tensor& hidden_bias,
                            const at::Tensor& encoder, const at::Tensor& decoder,
                            std::array<bool, 4> wanted) {
  const NadeSizes sizes =
      check_backward(grad_log_prob, grad_logits, v, logits, hidden_bias, encoder, decoder);
  const NadeGradients all = empty_gradients(sizes, logits, wants_others(wanted));
  NadeBackward problem;
  Arguments arguments(problem, logits, hidden_bias, encoder, decoder);
  problem.v = arguments.bytes(v);
  problem.logits = arguments.contiguous(logits);
  problem.grad_log_prob = arguments.contiguous(grad_log_prob);
  problem.grad_logits = arguments.contiguous(grad_logits);
  problem.d_visible_bias = std::get<0>(all).mutable_data_ptr();
  if (wants_others(wanted)) {
    problem.d_hidden_bias = std::get<1>(all).mutable_data_ptr();
    problem.d_encoder = std::get<2>(all).mutable_data_ptr();
    problem.d_decoder = std::get<3>(all).mutable_data_ptr();
  }
  run(problem, logits);
  return only_wanted(all, wanted);
}

NadeGradients nade_backward_meta(const OptionalTensor& grad_log_prob, const OptionalTensor& grad_logits,
                                 const at::Tensor& v, const at::Tensor& logits, const at::Tensor& hidden_bias,
                                 const at::Tensor& encoder, const at::Tensor& decoder,
                                 std::array<bool, 4> wanted) {
  const NadeSizes sizes =
      check_backward(grad_log_prob, grad_logits, v, logits, hidden_bias, encoder, decoder);
  return only_wanted(empty_gradients(sizes, logits, wants_others(wanted)), wanted);
}

NadeResult nade_sample(const at::Tensor& uniform, const at::Tensor& visible_bias,
                       const at::Tensor& hidden_bias, const at::Tensor& encoder, const at::Tensor& decoder) {
  const NadeSizes sizes = check_nade("visible_bias", visible_bias, hidden_bias, encoder, decoder);
  check_like("uniform", uniform, {sizes.rows, sizes.visible}, "[N, D]", visible_bias, "visible_bias");
  const NadeResult result = empty_draws(sizes, visible_bias);
  NadeForward problem;
  Arguments arguments(problem, visible_bias, hidden_bias, encoder, decoder);
  problem.visible_bias = arguments.contiguous(visible_bias);
  problem.uniform = arguments.contiguous(uniform);
  problem.drawn = std::get<0>(result).mutable_data_ptr<uint8_t>();
  problem.logits = std::get<1>(result).mutable_data_ptr();
  run(problem, visible_bias);
  return result;
}

NadeResult nade_sample_meta(const at::Tensor& uniform, const at::Tensor& visible_bias,
                            const at::Tensor& hidden_bias, const at::Tensor& encoder,
                            const at::Tensor& decoder) {
  const NadeSizes sizes = check_nade("visible_bias", visible_bias, hidden_bias, encoder, decoder);
  check_like("uniform", uniform, {sizes.rows, sizes.visible}, "[N, D]", visible_bias, "visible_bias");
  return empty_draws(sizes, visible_bias);
}

}  // namespace rnnkernels::binding
