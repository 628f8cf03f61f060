// One optimizer step over all tensors as plain data: what the binding fills in and what a kernel reads, and
// the parts of a step that every kernel has in common.
//
//   norm = (sum over all gradients |g|^p)^(1/p) / scale, or max |g| / scale for p = inf
//   c    = min(1, max_norm / (norm + 1e-6)) / scale, negative to maximize
//   then the rule of core/update_rules.h for each element, unless the step is skipped
//
// Each tensor is a run of `size` elements, with the same element at the same place in all of its arrays.
// No torch, no allocation, no exceptions.
#pragma once

#include <cstdint>

#include "core/elements.h"
#include "core/update_rules.h"

namespace rnnkernels {

// One parameter. The arithmetic, the states and the master copy are float64 for float64 parameters, else
// float32. Each array has `size` elements in memory of its own, and may be null where size is 0.
struct Leaf {
  void* param = nullptr;        // of `type`, read and written
  const void* grad = nullptr;   // of `grad_type`, read
  void* state[2] = {};          // read and written; the rule has kStates of them, the others are null
  void* master = nullptr;       // the master copy, read and written (`start_of`); null: there is none
  float* step_count = nullptr;  // one value, t - 1, read and after the step incremented; null: not counted
  int64_t size = 0;             // 0: nothing happens but that the step is counted
  int64_t first_chunk = 0;      // the number of chunks of all leaves before this one (chunks_of)
  int group = 0;                // index into the step's groups
  ElementType type = ElementType::kFloat32;
  ElementType grad_type = ElementType::kFloat32;  // that of the parameter, or kFloat32
};

// Threads and blocks divide the work by chunks, and each chunk has a sum of its own. The chunks' sums are
// added in order, so the norm has the same bits for any number of threads.
constexpr int64_t kChunkElements = 4096;
RNNKERNELS_INLINE int64_t chunks_of(int64_t size) { return (size + kChunkElements - 1) / kChunkElements; }

// The index of the leaf that has this chunk. Empty leaves begin with the chunk of the next leaf, so it is the
// last of those that begin with it.
RNNKERNELS_INLINE int64_t leaf_of_chunk(const Leaf* leaves, int64_t count, int64_t chunk) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (leaves[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Whether no power of a gradient left float64's range on the way to their sum. If one did, the norm is
// max |g| (sum over all (|g| / max |g|)^p)^(1/p).
RNNKERNELS_INLINE bool in_range(double sum, double p) {
  return (sum > 0x1p-960 || p == __builtin_inf()) && sum - sum == 0;
}

// unit (sum)^(1/p), the norm of gradients whose powers were summed in this unit. For the usual p = 2 it is a
// correctly rounded square root.
RNNKERNELS_INLINE double norm_of(double sum, double p, double unit) {
  if (p == 2) return unit * __builtin_sqrt(sum);
  return unit * (p == 1 || p == __builtin_inf() ? sum : __builtin_pow(sum, 1 / p));
}

// A value that the host knows, or one in device memory that only kernels read.
struct Scalar {
  double value = 0;                 // where `on_device` is null
  const void* on_device = nullptr;  // one element of `type`; null for kernels on the CPU
  ElementType type = ElementType::kFloat64;
};

struct GroupProblem {
  Scalar settings[kMostSettings];       // by SettingIndex
  double* previous_momentum = nullptr;  // mu_{t-1}, replaced by mu_t after the step; null: the rule has none
  bool maximize = false;
};

enum class NonFinite : int { kSkip, kApply, kRaise };

// The record of all steps: the last norm, the number of skipped and of taken steps, and whether the caller
// has to raise for the last one.
enum RecordField { kNorm, kSkipped, kTaken, kRaises, kRecordFields };

// One step. `leaves` and `groups` are in host memory. The pointers inside them, and `record`, are in the
// memory of the device that runs the step; the host never reads through them.
struct StepProblem {
  const Leaf* leaves = nullptr;
  int64_t count = 0;   // of leaves
  int64_t chunks = 0;  // of all leaves
  const GroupProblem* groups = nullptr;
  int64_t group_count = 0;
  double norm_type = 2;        // p
  Scalar grad_scale{1};        // the factor that the loss was multiplied by
  Scalar found_inf{0};         // not 0: the caller found a gradient that is not finite; the step is skipped
  bool norm_is_known = false;  // whether `norm` is to be used instead of a norm pass
  Scalar norm;                 // of the gradients before they are divided by grad_scale
  NonFinite nonfinite = NonFinite::kSkip;
  double* record = nullptr;  // [kRecordFields], read and written
};

// The sum of (|g| / unit)^p over some leaves, or max |g| for p = inf, without a step: for a norm over more
// gradients than this process has. Of a leaf only `grad`, `grad_type`, `size` and `first_chunk` are read.
struct PowerSum {
  const Leaf* leaves = nullptr;
  int64_t count = 0;   // of leaves
  int64_t chunks = 0;  // of all leaves
  double norm_type = 2;
  double unit = 1;
};

// --- What every kernel does in a step ----------------------------------------------------------------

namespace {

RNNKERNELS_INLINE double value_of(const Scalar& scalar) {
  if (!scalar.on_device) return scalar.value;
  double value = 0;
  with_element(scalar.type, [&](auto element) {
    value = widen(*static_cast<const decltype(element)*>(scalar.on_device));
  });
  return value;
}

// Decides whether a step with this norm (of the scaled gradients) is skipped, and writes the record. Returns
// whether it is skipped.
RNNKERNELS_INLINE bool record_step(const StepProblem& problem, double norm) {
  const bool found_inf = value_of(problem.found_inf) != 0;
  const bool skipped = found_inf || (norm - norm != 0 && problem.nonfinite != NonFinite::kApply);
  const bool raises = skipped && !found_inf && problem.nonfinite == NonFinite::kRaise;
  problem.record[kNorm] = norm;
  problem.record[kSkipped] += skipped && !raises;
  problem.record[kTaken] += !skipped;
  problem.record[kRaises] = raises;
  return skipped;
}

// The arguments of a rule for one leaf in this step: the settings of its group, c, and t.
template <class Rule>
struct LeafStep {
  typename Rule::Settings settings;
  double c, t;

  RNNKERNELS_INLINE LeafStep(const Leaf& leaf, const GroupProblem& group, double norm, double scale) {
    double list[kMostSettings];
    RNNKERNELS_UNROLL
    for (int i = 0; i < kMostSettings; ++i) list[i] = value_of(group.settings[i]);
    settings = Rule::settings_of(list, group.previous_momentum ? *group.previous_momentum : 0.0);
    c = clip_coefficient(norm, list[kMaxNorm]) / (group.maximize ? -scale : scale);
    t = leaf.step_count ? *leaf.step_count + 1.0 : 0.0;
  }
  template <class T>
  RNNKERNELS_INLINE typename Rule::template Coefficients<T> coefficients() const {
    return Rule::template coefficients<T>(settings, c, t);
  }
};

// The value that the update of an element with a master copy starts from: the master copy, unless the
// parameter is not the master copy rounded. Then the parameter has been written since the last step (loaded,
// clamped, masked), and it is the newer one.
template <class P>
RNNKERNELS_INLINE ComputeType<P> start_of(P param, ComputeType<P> master) {
  return is_rounded(param, master) ? master : widen(param);
}

// Prepare a leaf and a group for the next step. Only for a step that is not skipped, and after every LeafStep
// of it has been made.
RNNKERNELS_INLINE void count_step(const Leaf& leaf) {
  if (leaf.step_count) *leaf.step_count += 1;
}
RNNKERNELS_INLINE void keep_momentum(const GroupProblem& group) {
  if (group.previous_momentum) *group.previous_momentum = value_of(group.settings[kOwnSettings]);
}

}  // namespace
}  // namespace rnnkernels
