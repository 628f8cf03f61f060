// One optimizer step over all tensors as plain data: what the binding fills in and a kernel reads.
//
//   norm = (sum over all gradients |g|^p)^(1/p) / scale, or max |g| / scale for p = inf
//   c    = min(1, max_norm / (norm + 1e-6)), then the rule of core/update_rules.h
//
// Each tensor is a run of `size` elements, the same element at the same place in all of its arrays.
#pragma once

#include <cstdint>

#include "core/element_type.h"
#include "core/update_rules.h"

namespace rnnkernels {

// The arithmetic, the states and the master copy are float64 for float64 parameters, else float32.
struct Leaf {
  void* param = nullptr;
  const void* grad = nullptr;
  void* state[2] = {};          // as many as the rule has
  void* master = nullptr;       // [size], or null: the parameter is its own
  float* step_count = nullptr;  // one number, t - 1, for rules that ask
  int64_t size = 0;             // may be 0: of such a leaf the step is counted and nothing else done
  int64_t first_chunk = 0;      // of all leaves before it; filled in by the caller with chunks_of
  int group = 0;
  ElementType type = ElementType::kFloat32;
  ElementType grad_type = ElementType::kFloat32;  // that of the parameter, or kFloat32
};

// The unit of sharing out and of summation: a leaf's chunks are each summed by themselves and then
// added in order, so no number of threads changes a bit of the norm.
constexpr int64_t kChunkElements = 4096;
RNNKERNELS_INLINE int64_t chunks_of(int64_t size) { return (size + kChunkElements - 1) / kChunkElements; }

// The place of the leaf that has this chunk: of those that begin with it the last, as empty ones do, too.
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

// Whether no power of a gradient left float64's range on the way to their sum. If not, the norm is
// max |g| (sum over all (|g| / max |g|)^p)^(1/p).
RNNKERNELS_INLINE bool in_range(double sum, double p) {
  return (sum > 0x1p-960 || p == __builtin_inf()) && sum - sum == 0;
}

// The norm that a sum of powers in some unit gives; for the usual p = 2 by the root that is exactly rounded.
RNNKERNELS_INLINE double norm_of(double sum, double p, double unit) {
  if (p == 2) return unit * __builtin_sqrt(sum);
  return unit * (p == 1 || p == __builtin_inf() ? sum : __builtin_pow(sum, 1 / p));
}

// A number that the host knows, or one that lies in memory where only kernels read it.
struct Scalar {
  double number = 0;
  const void* on_device = nullptr;
  ElementType type = ElementType::kFloat64;
};

struct GroupProblem {
  Scalar settings[kMostSettings];       // by SettingIndex
  double* previous_momentum = nullptr;  // for rules that ask; becomes this step's where one is taken
  bool maximize = false;
};

enum class NonFinite : int { kSkip, kApply, kRaise };

// The record of all steps.
enum RecordField { kNorm, kSkipped, kTaken, kRaises, kRecordFields };

// A step as the binding hands it on. Leaves and groups are the host's; what they point to is the device's,
// and nothing of it need be known to the host.
struct StepProblem {
  const Leaf* leaves = nullptr;
  int64_t count = 0;
  int64_t chunks = 0;  // of all leaves
  const GroupProblem* groups = nullptr;
  int64_t group_count = 0;
  double norm_type = 2;  // p
  Scalar grad_scale{1};  // what the loss was multiplied with
  Scalar found_inf{0};   // not 0: the caller knows already, always skipped
  bool norm_is_known = false;
  Scalar norm;  // of the gradients as they come, where the caller has it already
  NonFinite nonfinite = NonFinite::kSkip;
  double* record = nullptr;  // [kRecordFields]
};

// --- On the CPU --------------------------------------------------------------------------------------

template <class Settings>
struct Group {
  Settings settings;
  double max_norm = __builtin_inf();  // infinity: no clipping
  bool maximize = false;
};

// What comes of the norm.
struct Verdict {
  double norm = 0;
  bool finite = true;    // the norm is, and so are all gradients
  bool skipped = false;  // nothing was written
};

template <class Rule>
struct OptimizerStep {
  const Leaf* leaves = nullptr;
  int64_t count = 0;
  int64_t chunks = 0;  // of all leaves
  const Group<typename Rule::Settings>* groups = nullptr;
  double norm_type = 2;  // p
  double scale = 1;      // what the loss was multiplied with
  NonFinite nonfinite = NonFinite::kSkip;
  bool found_inf = false;        // the caller knows already: always skipped
  const double* norm = nullptr;  // of the gradients as they come, where the caller has it already
  double* partial = nullptr;     // [chunks] workspace
};

// The sum, or maximum, over some leaves alone, for a norm that goes beyond this process.
struct PowerSum {
  const Leaf* leaves = nullptr;
  int64_t count = 0;
  int64_t chunks = 0;
  double norm_type = 2;
  double unit = 1;            // what a gradient is divided by first
  double* partial = nullptr;  // [chunks] workspace
};

}  // namespace rnnkernels
