// What of a GPU matters here, read from it.
#pragma once

#include "cuda/plan.h"
#include "cuda/recurrence.h"

namespace rnnkernels::cuda {

// The current device. One for which nothing was compiled gives an error.
Status current_device(Device* device);

}  // namespace rnnkernels::cuda
