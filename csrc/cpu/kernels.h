// The CPU kernels' doors. A call picks the instruction set, makes the plan and runs; the caller brings
// the workspace. Nothing here allocates, throws or blocks on anything but its own threads.
#pragma once

#include <cstdint>

#include "core/nade.h"
#include "core/optimizer.h"
#include "core/problem.h"
#include "core/product.h"
#include "cpu/team.h"

namespace rnnkernels::cpu {

// One entry a direction, filled in once for each instruction set by kernels.cpp.
struct Kernels {
  int64_t (*forward_workspace)(const ForwardProblem&, const ThreadPlan&);
  void (*forward)(const ForwardProblem&, const ThreadPlan&, const Threads&, void* workspace);
  int64_t (*backward_workspace)(const BackwardProblem&, const ThreadPlan&);
  void (*backward)(const BackwardProblem&, const ThreadPlan&, const Threads&, void* workspace);
  int64_t (*linear_workspace)(const LinearProblem&, const ThreadPlan&);
  void (*linear)(const LinearProblem&, const ThreadPlan&, const Threads&, void* workspace);
  int64_t (*product_workspace)(const Product&, const ProductPlan&);
  void (*product)(const Product&, const ProductPlan&, const Threads&, void* workspace);
  // out[i] = f(in[i]): what the current form multiplies with, for the caller's product over the whole
  // sequence.
  void (*activate)(NonlinearityIndex, ElementType, const void* in, void* out, int64_t n);
  // Whether what bfloat16 is multiplied with is rounded to it, because the processor has such products.
  bool multiplies_bfloat16;
  // A step over all tensors, and the sum of powers by itself.
  Verdict (*nesterov)(const OptimizerStep<NesterovRule>&, const Threads&);
  Verdict (*adamw)(const OptimizerStep<AdamWRule>&, const Threads&);
  double (*power_sum)(const PowerSum&, const Threads&);
  int64_t (*nade_workspace)(const NadeForward&, const Threads&);
  void (*nade)(const NadeForward&, const Threads&, void* workspace);
  int64_t (*nade_backward_workspace)(const NadeBackward&, const Threads&);
  void (*nade_backward)(const NadeBackward&, const Threads&, void* workspace);
  // Reads n numbers so many times over, as fast as this set can with one thread, and returns a sum of them:
  // the rate at which a cache gives a matrix away, for benchmarks to compare with.
  float (*read)(const float* data, int64_t n, int64_t times);
};

struct InstructionSet {
  const char* name;  // as in RNNKERNELS_ISA
  const Kernels* kernels;
  bool (*runs_here)();
};

// What was built, fastest first.
const InstructionSet* instruction_sets(int* count);

// The one in use: the fastest that runs here, or the one named by RNNKERNELS_ISA. Null, once and for
// all, if that one was not built or does not run here.
const InstructionSet* active_instruction_set();

}  // namespace rnnkernels::cpu
