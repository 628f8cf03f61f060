// The entry points of the CPU kernels. A caller picks the instruction set, makes the plan, brings the
// workspace and runs. Kernels do not allocate, do not throw, and wait for nothing but their own threads.
#pragma once

#include <cstdint>

#include "core/nade.h"
#include "core/optimizer.h"
#include "core/problem.h"
#include "core/product.h"
#include "cpu/threads.h"

namespace rnnkernels::cpu {

// The kernels of one instruction set, filled in by kernels.cpp. A `..._workspace` function returns how many
// bytes of memory, aligned to 64 bytes, the kernel of the same name needs with the same arguments; the memory
// may hold anything.
struct Kernels {
  int64_t (*forward_workspace)(const ForwardProblem&, const ThreadPlan&);
  void (*forward)(const ForwardProblem&, const ThreadPlan&, const Threads&, void* workspace);
  int64_t (*backward_workspace)(const BackwardProblem&, const ThreadPlan&);
  void (*backward)(const BackwardProblem&, const ThreadPlan&, const Threads&, void* workspace);
  int64_t (*linear_workspace)(const LinearProblem&, const ThreadPlan&);
  void (*linear)(const LinearProblem&, const ThreadPlan&, const Threads&, void* workspace);
  int64_t (*product_workspace)(const Product&, const ProductPlan&);
  void (*product)(const Product&, const ProductPlan&, const Threads&, void* workspace);
  // out[i] = f(in[i]) for n elements of float32 or float64: what W multiplies in the current form, for
  // products over whole sequences. `out` may be `in`.
  void (*activate)(NonlinearityIndex, ElementType, const void* in, void* out, int64_t n);
  // Whether both factors of a product are rounded to bfloat16 where sequences are bfloat16, because the
  // processor multiplies pairs of them.
  bool multiplies_bfloat16;
  // One step over all tensors; `partial` has an element for each chunk and may hold anything. Returns whether
  // the step was taken; if it was skipped, only the record is written.
  bool (*nesterov)(const StepProblem&, const Threads&, double* partial);
  bool (*adamw)(const StepProblem&, const Threads&, double* partial);
  double (*power_sum)(const PowerSum&, const Threads&, double* partial);
  int64_t (*nade_workspace)(const NadeForward&, const Threads&);
  void (*nade)(const NadeForward&, const Threads&, void* workspace);
  int64_t (*nade_backward_workspace)(const NadeBackward&, const Threads&);
  void (*nade_backward)(const NadeBackward&, const Threads&, void* workspace);
  // Reads n values `times` times, as fast as one thread can, and returns a sum of them. Benchmarks compare
  // the recurrence with this rate, at which a cache delivers a matrix.
  float (*read)(const float* data, int64_t n, int64_t times);
};

struct InstructionSet {
  const char* name;  // as in RNNKERNELS_ISA
  const Kernels* kernels;
  bool (*runs_here)();
};

// The instruction sets that were built, fastest first.
const InstructionSet* instruction_sets(int* count);

// The instruction set in use: the fastest one that runs here, or the one that RNNKERNELS_ISA names. Null if
// that one was not built or does not run here. The first call decides for the whole process.
const InstructionSet* active_instruction_set();

}  // namespace rnnkernels::cpu
