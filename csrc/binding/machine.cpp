#include "binding/machine.h"

#include <ATen/Config.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

namespace rnnkernels::binding {

const cpu::Kernels& active_kernels() {
  const cpu::InstructionSet* set = cpu::active_instruction_set();
  TORCH_CHECK(set != nullptr,
              "RNNKERNELS_ISA must name an instruction set that was built and runs on this processor; "
              "python -m rnnkernels lists them");
  return *set->kernels;
}

cpu::Threads torch_threads() {
  cpu::Threads threads;
  threads.count = at::in_parallel_region() ? 1 : at::get_num_threads();
  // OpenMP starts all ranges of a region at once. Torch's own pool only queues them, and two calls at
  // the same time could wait for each other's queued halves.
  threads.may_wait = AT_PARALLEL_OPENMP;
  threads.run = [](int shares, void (*work)(void*, int, int), void* argument) {
    at::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
      work(argument, static_cast<int>(first), static_cast<int>(last));
    });
  };
  return threads;
}

}  // namespace rnnkernels::binding
