// The choice among what is stored; the kernels are those of recurrence_*.cu.
#include "cuda/device.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

template <ElementType>
Status forward_of(const ForwardProblem&, const Plan&, bool exact, void*, Stream);
template <ElementType>
Status backward_of(const BackwardProblem&, const Plan&, bool exact, void*, Stream);
template <ElementType>
Status linear_of(const LinearProblem&, const Plan&, bool exact, void*, Stream);

namespace {

constexpr Status kNotSupported = 801;  // cudaErrorNotSupported

template <ElementType kType>
struct Constant {
  static constexpr ElementType value = kType;
};

// Calls fn(the type, whether its products are exact); float64 has no products of a warp here.
template <class Fn>
Status with_type(ElementType type, bool tf32, const Fn& fn) {
  switch (type) {
    case ElementType::kFloat32:
      return fn(Constant<ElementType::kFloat32>{}, !tf32);
    case ElementType::kBFloat16:
      return fn(Constant<ElementType::kBFloat16>{}, false);
    case ElementType::kFloat16:
      return fn(Constant<ElementType::kFloat16>{}, false);
    default:
      return kNotSupported;
  }
}

}  // namespace

#if defined(__CUDACC__)
const char* text(Status status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }
#else
const char* text(Status status) { return status == 0 ? "no error" : "not supported"; }
#endif

Status forward(const ForwardProblem& problem, const Plan& plan, bool tf32, void* workspace, Stream stream) {
  return with_type(problem.type, tf32, [&](auto type, bool exact) {
    return forward_of<decltype(type)::value>(problem, plan, exact, workspace, stream);
  });
}
Status backward(const BackwardProblem& problem, const Plan& plan, bool tf32, void* workspace, Stream stream) {
  return with_type(problem.type, tf32, [&](auto type, bool exact) {
    return backward_of<decltype(type)::value>(problem, plan, exact, workspace, stream);
  });
}
Status linear(const LinearProblem& problem, const Plan& plan, bool tf32, void* workspace, Stream stream) {
  return with_type(problem.type, tf32, [&](auto type, bool exact) {
    return linear_of<decltype(type)::value>(problem, plan, exact, workspace, stream);
  });
}

}  // namespace rnnkernels::cuda
