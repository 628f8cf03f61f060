// What the kernels get from torch and the host: the instruction set, threads, memory, and GPUs.
#pragma once

#include <utility>

#include "cpu/kernels.h"
#include "cuda/recurrence.h"

// Only declared, because module.cpp includes this file and none of torch's.
namespace c10 {
struct Device;
}
namespace at {
class Tensor;
}

namespace rnnkernels::binding {

// The kernels of the instruction set in use. Raises RuntimeError if RNNKERNELS_ISA names a set that was not
// built or does not run here.
const cpu::Kernels& active_kernels();

// torch's own threads, torch.get_num_threads() of them; one inside a parallel region of torch.
cpu::Threads torch_threads();

// While it exists, torch.get_num_threads() is no more than the number of CPUs that the process may use, and
// less while other processes use these CPUs. This includes torch's own functions, whose threads would
// otherwise spin for milliseconds after each of them.
class LimitedThreads {
 public:
  LimitedThreads();
  ~LimitedThreads();  // NOLINT(performance-trivially-destructible): it does something with OpenMP
  LimitedThreads(const LimitedThreads&) = delete;
  LimitedThreads& operator=(const LimitedThreads&) = delete;

 private:
  int before_ = 1;
  bool limits_ = false;
};

// The implementation of an operator with LimitedThreads around it.
template <auto implementation>
struct Limited;
template <class R, class... A, R (*implementation)(A...)>
struct Limited<implementation> {
  static R run(A... arguments) {
    const LimitedThreads threads;
    return implementation(std::forward<A>(arguments)...);
  }
};
template <auto implementation>
constexpr auto* limited() {
  return &Limited<implementation>::run;
}

// A workspace for a kernel, with undefined values; aligned to 64 bytes.
at::Tensor empty_bytes(int64_t bytes, const c10::Device& device);

// The GPU with this torch device index; null if there is none or if there are no kernels for GPUs. Raises
// RuntimeError if the kernels cannot use it.
const cuda::Device* gpu(int index);

// In builds with kernels for a GPU: torch's current stream of a device, and a RuntimeError unless a launch
// succeeded.
cuda::Stream current_stream(const c10::Device& device);
void check_launched(cuda::Status status);

}  // namespace rnnkernels::binding
