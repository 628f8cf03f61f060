// What the elements of a tensor are.
#pragma once

namespace rnnkernels {

enum class ElementType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

}  // namespace rnnkernels
