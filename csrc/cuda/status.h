// The types of the CUDA runtime that launchers take and return, without its headers.
#pragma once

namespace rnnkernels::cuda {

using Stream = void*;  // cudaStream_t
using Status = int;    // cudaError_t; 0 is success

constexpr Status kNotSupported = 801;  // cudaErrorNotSupported

}  // namespace rnnkernels::cuda
