// Arithmetic on sizes that launchers and kernels share.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/element_type.h"

namespace rnnkernels::cuda {
namespace {

RNNKERNELS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
RNNKERNELS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Bytes of an element of the type that is computed in: float64 for float64, else float32.
RNNKERNELS_INLINE int64_t computed_bytes(ElementType type) { return type == ElementType::kFloat64 ? 8 : 4; }

}  // namespace
}  // namespace rnnkernels::cuda
