// Between flush_subnormals and set_mode, results that are subnormal become 0, on processors where they are
// slow.
//
// A silent unit's state shrinks by its decay at each step: d = 0.1 takes 38 steps to leave the normal floats.
// From then on each multiplication by it would take an x86 core over a hundred cycles, for as long as the
// unit is silent. x86 has one mode for results and one for arguments. Only that for results is set: subnormal
// arguments keep their values, which the conversion from half precision needs.
//
// No destructor restores the mode, because the code that would run it after an exception is a weak symbol,
// and the linker might keep the copy of any instruction set.
#pragma once

#include "core/config.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace rnnkernels {
namespace {

#if defined(__SSE2__)
// The compiler moves no access to memory across a change of the mode.
RNNKERNELS_INLINE void set_mode(unsigned mode) {
  asm volatile("" ::: "memory");
  _mm_setcsr(mode);
  asm volatile("" ::: "memory");
}
// Returns the mode before, to be restored by set_mode.
RNNKERNELS_INLINE unsigned flush_subnormals() {
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
