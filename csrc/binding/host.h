// What the kernels run on: the instruction set in use, and PyTorch's own threads; the GPUs.
#pragma once

#include "cpu/kernels.h"
#include "cuda/recurrence.h"

namespace c10 {
struct Device;  // not included: the module that pybind11 makes knows nothing of torch
}

namespace rnnkernels::binding {

// Raises where RNNKERNELS_ISA names a set that is not there.
const cpu::Kernels& active_kernels();

// As many as torch.get_num_threads() says; one inside another parallel region.
cpu::Threads torch_threads();

// PyTorch's GPU of this number; null if there is none, or no kernels for it.
const cuda::Device* gpu(int index);

// Where there are kernels for a GPU: torch's current stream of a device, and what becomes of a launch that
// failed.
cuda::Stream current_stream(const c10::Device& device);
void check_launched(cuda::Status status);

}  // namespace rnnkernels::binding
