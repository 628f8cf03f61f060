// Dispatch of the recurrence's launchers by the stored type; the kernels are in recurrence_*.cu.
#include "cuda/device.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

// `exact`: products of float32 have the accuracy of float32.
template <ElementType, class Problem>
Status run_stored(const Problem&, const LaunchPlan&, bool exact, void* workspace, Stream);

namespace {

// float64 has no kernels here: there is no product of a warp for it.
template <class Problem>
Status run(const Problem& problem, const LaunchPlan& plan, bool tf32, void* workspace, Stream stream) {
  switch (problem.type) {
    case ElementType::kFloat32:
      return run_stored<ElementType::kFloat32>(problem, plan, !tf32, workspace, stream);
    case ElementType::kBFloat16:
      return run_stored<ElementType::kBFloat16>(problem, plan, false, workspace, stream);
    case ElementType::kFloat16:
      return run_stored<ElementType::kFloat16>(problem, plan, false, workspace, stream);
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

Status forward(const ForwardProblem& problem, const LaunchPlan& plan, bool tf32, void* workspace,
               Stream stream) {
  return run(problem, plan, tf32, workspace, stream);
}
Status backward(const BackwardProblem& problem, const LaunchPlan& plan, bool tf32, void* workspace,
                Stream stream) {
  return run(problem, plan, tf32, workspace, stream);
}
Status linear(const LinearProblem& problem, const LaunchPlan& plan, bool tf32, void* workspace,
              Stream stream) {
  return run(problem, plan, tf32, workspace, stream);
}

}  // namespace rnnkernels::cuda
