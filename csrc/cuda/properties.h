// Reads the properties of a GPU that a launch plan depends on.
#pragma once

#include "cuda/plan.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

// Reads the current device. Returns an error if no kernel was compiled for it.
Status current_device(Device* device);

}  // namespace rnnkernels::cuda
