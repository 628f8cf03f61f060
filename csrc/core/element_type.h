// The element types of tensors.
#pragma once

namespace rnnkernels {

enum class ElementType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

}  // namespace rnnkernels
