// Numbers too small to be normal become 0 while this lives, on processors where they would cost.
//
// A silent unit's state shrinks by its decay at each step: d = 0.1 takes 38 steps to leave the normal floats.
// From there on, each multiplication by it would take an x86 core over a hundred cycles, for as long as the
// unit is silent. Of the two modes only the one for results is taken: arguments that are subnormal stay what
// they are, which the conversion from half precision needs.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace rnnkernels {
namespace {

class FlushSubnormals {
 public:
#if defined(__SSE2__)
  FlushSubnormals() : before_(_mm_getcsr()) { set(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushSubnormals() { set(before_); }

 private:
  // No arithmetic that writes memory moves across.
  static void set(unsigned mode) {
    asm volatile("" ::: "memory");
    _mm_setcsr(mode);
    asm volatile("" ::: "memory");
  }
  unsigned before_;
#else
  FlushSubnormals() {}
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;
};

}  // namespace
}  // namespace rnnkernels
