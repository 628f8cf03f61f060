// Numbers too small to be normal become 0 from flush_subnormals to set_mode, where they would cost.
//
// A silent unit's state shrinks by its decay at each step: d = 0.1 takes 38 steps to leave the normal floats.
// From there on, each multiplication by it would take an x86 core over a hundred cycles, for as long as the
// unit is silent. Of the two modes only the one for results is taken: arguments that are subnormal stay what
// they are, which the conversion from half precision needs.
// No destructor sets the mode back: what it would take to run one after an exception is a weak symbol, of
// which the linker keeps any instruction set's copy.
#pragma once

#include "core/config.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace rnnkernels {
namespace {

#if defined(__SSE2__)
// No arithmetic that writes memory moves across.
RNNKERNELS_INLINE void set_mode(unsigned mode) {
  asm volatile("" ::: "memory");
  _mm_setcsr(mode);
  asm volatile("" ::: "memory");
}
RNNKERNELS_INLINE unsigned flush_subnormals() {  // returns the mode before, for set_mode
  const unsigned before = _mm_getcsr();
  set_mode(before | _MM_FLUSH_ZERO_ON);
  return before;
}
#else
RNNKERNELS_INLINE void set_mode(unsigned) {}
RNNKERNELS_INLINE unsigned flush_subnormals() { return 0; }
#endif

}  // namespace
}  // namespace rnnkernels
