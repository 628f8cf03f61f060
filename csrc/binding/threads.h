// PyTorch's own threads, as the kernels see them.
#pragma once

#include "cpu/team.h"

namespace rnnkernels::binding {

// As many as torch.get_num_threads() says; one inside another parallel region.
cpu::Threads torch_threads();

}  // namespace rnnkernels::binding
