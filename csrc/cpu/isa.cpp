// Chooses the instruction set: the only file that asks which instructions the processor has.
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

namespace rnnkernels::cpu {

namespace generic {
extern const Kernels kernels;
}
#if defined(RNNKERNELS_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}
#endif

namespace {

bool always() { return true; }

#if defined(RNNKERNELS_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

constexpr InstructionSet kSets[] = {
#if defined(RNNKERNELS_X86)
    {"avx512bf16", &avx512bf16::kernels, &has_avx512bf16},
    {"avx512", &avx512::kernels, &has_avx512},
    {"avx2", &avx2::kernels, &has_avx2},
#endif
    {"generic", &generic::kernels, &always},
};

const InstructionSet* choose() {
  const char* wanted = std::getenv("RNNKERNELS_ISA");
  if (wanted && !*wanted) wanted = nullptr;  // empty counts as unset
  for (const InstructionSet& set : kSets) {
    if (wanted && std::strcmp(wanted, set.name) != 0) continue;
    if (set.runs_here()) return &set;
  }
  return nullptr;
}

}  // namespace

const InstructionSet* instruction_sets(int* count) {
  *count = sizeof(kSets) / sizeof(kSets[0]);
  return kSets;
}

const InstructionSet* active_instruction_set() {
  static const InstructionSet* const set = choose();
  return set;
}

}  // namespace rnnkernels::cpu
