// One optimizer step on the CPU: norm pass, barrier, update pass, in one parallel region. core/optimizer.h
// has the equations.
//
//   norm pass     for each chunk of a gradient: sum |g|^p, or max |g|; then every thread adds the
//                 chunks' sums
//   update pass   for each chunk: the rule
//
// A thread has the same chunks in both passes and visits them in reverse in the second, so the gradients that
// it read last are still in its cache. Only where the sum is zero or not finite does a slow search follow:
// for a gradient that is not finite, or for powers that left float64's range.
#pragma once

#include <cstdint>

#include "core/elements.h"
#include "core/optimizer.h"
#include "cpu/flush.h"
#include "cpu/power_sum.h"
#include "cpu/split.h"
#include "cpu/threads.h"

namespace rnnkernels {
namespace {

// A step with fewer chunks runs in one thread: it takes about as long as starting the others.
constexpr int64_t kLeastParallelChunks = 8;

inline int64_t optimizer_slices(int64_t chunks, const cpu::Threads& threads) {
  return chunks < kLeastParallelChunks ? 1 : threads.count;
}

// Calls visit(leaf, begin, n, chunk) for the chunks of a range among those of all leaves, in ascending or in
// descending order; elements begin .. begin+n-1 of the leaf are the chunk.
template <class Visit>
RNNKERNELS_INLINE void for_chunks(const Leaf* leaves, int64_t count, const Range& chunks, bool descending,
                                  const Visit& visit) {
  if (chunks.first >= chunks.last) return;
  const int step = descending ? -1 : 1;
  int64_t chunk = descending ? chunks.last - 1 : chunks.first;
  int64_t index = leaf_of_chunk(leaves, count, chunk);
  for (int64_t left = chunks.last - chunks.first; left > 0; --left) {
    const Leaf& leaf = leaves[index];
    const int64_t begin = (chunk - leaf.first_chunk) * kChunkElements;
    const int64_t n = leaf.size - begin < kChunkElements ? leaf.size - begin : kChunkElements;
    visit(leaf, begin, n, chunk);
    const bool at_end =
        chunk == (descending ? leaf.first_chunk : leaf.first_chunk + chunks_of(leaf.size) - 1);
    chunk += step;
    if (!at_end || left == 1) continue;
    do {
      index += step;
    } while (leaves[index].size == 0);
  }
}

// partial[chunk] = the sum of (|g| / unit)^p over a chunk, or max |g|, for a range of chunks.
void sum_chunks(const Leaf* leaves, int64_t count, const Range& chunks, double p, double unit,
                double* partial) {
  for_chunks(leaves, count, chunks, false, [&](const Leaf& leaf, int64_t begin, int64_t n, int64_t chunk) {
    with_element(leaf.grad_type, [&](auto element) {
      const auto* from = static_cast<const decltype(element)*>(leaf.grad) + begin;
      partial[chunk] = chunk_power_sum(from, n, p, unit);
    });
  });
}

double join_chunks(const double* partial, int64_t chunks, double p) {
  double total = 0;
  for (int64_t i = 0; i < chunks; ++i) {
    total = p == __builtin_inf() ? Largest::join(total, partial[i]) : total + partial[i];
  }
  return total;
}

RNNKERNELS_INLINE bool is_finite(double x) { return x - x == 0; }

// The rule for elements begin .. begin+n-1 of one leaf, whose arrays do not overlap.
template <class Rule, class P, class G>
void update_run(const Leaf& leaf, int64_t begin, int64_t n,
                const typename Rule::template Coefficients<typename ComputeTypeOf<P>::type>& coefficients) {
  using T = typename ComputeTypeOf<P>::type;
  P* __restrict param = static_cast<P*>(leaf.param) + begin;
  const G* __restrict grad = static_cast<const G*>(leaf.grad) + begin;
  T* __restrict first = static_cast<T*>(leaf.state[0]) + begin;
  T* __restrict second = Rule::kStates > 1 ? static_cast<T*>(leaf.state[1]) + begin : nullptr;
  T* __restrict master = leaf.master ? static_cast<T*>(leaf.master) + begin : nullptr;
  const auto f = coefficients;
  const auto element = [&](int64_t i, T theta) {
    T state[2] = {first[i], T(0)};
    if constexpr (Rule::kStates > 1) state[1] = second[i];
    const T after = Rule::template update<T>(theta, T(widen(grad[i])), state, f);
    first[i] = state[0];
    if constexpr (Rule::kStates > 1) second[i] = state[1];
    return after;
  };
  if (master) {
    for (int64_t i = 0; i < n; ++i) {
      assign(param + i, master[i] = element(i, start_of(param[i], master[i])));
    }
  } else {
    for (int64_t i = 0; i < n; ++i) assign(param + i, element(i, widen(param[i])));
  }
}

template <class Rule>
void update_chunk(const Leaf& leaf, const GroupProblem& group, double norm, double scale, int64_t begin,
                  int64_t n) {
  const LeafStep<Rule> step(leaf, group, norm, scale);
  with_element(leaf.type, [&](auto element) {
    using P = decltype(element);
    const auto coefficients = step.template coefficients<typename ComputeTypeOf<P>::type>();
    if (leaf.grad_type == leaf.type) {
      update_run<Rule, P, P>(leaf, begin, n, coefficients);
    } else {
      update_run<Rule, P, float>(leaf, begin, n, coefficients);
    }
  });
}

// Both passes of one step, and what the threads share in them.
template <class Rule>
class StepRun {
 public:
  StepRun(const StepProblem& problem, const cpu::Threads& threads, double* partial)
      : problem_(problem),
        threads_(threads),
        partial_(partial),
        slices_(optimizer_slices(problem.chunks, threads)),
        scale_(value_of(problem.grad_scale)) {
    barrier_.reset();
  }

  // Returns whether the step was taken; if not, only the record is written.
  bool run() {
    bool updated = false;
    if (problem_.norm_is_known) {
      norm_ = value_of(problem_.norm) / scale_;
    } else {
      const bool found_inf = value_of(problem_.found_inf) != 0;
      const bool in_one_region = !found_inf && (threads_.may_wait || slices_ == 1);
      run_slices(threads_, slices_, this, in_one_region ? &StepRun::both_passes : &StepRun::norm_pass);
      const double sum = join_chunks(partial_, problem_.chunks, problem_.norm_type);
      updated = in_one_region && decides(sum);
      norm_ = in_range(sum, problem_.norm_type) ? norm(sum, 1.0) : search_norm();
    }
    if (record_step(problem_, norm_)) return false;
    if (!updated) run_slices(threads_, slices_, this, &StepRun::update_pass);
    for (int64_t i = 0; i < problem_.count; ++i) count_step(problem_.leaves[i]);
    for (int64_t i = 0; i < problem_.group_count; ++i) keep_momentum(problem_.groups[i]);
    return true;
  }

 private:
  double norm(double sum, double unit) const { return norm_of(sum, problem_.norm_type, unit) / scale_; }
  // Whether this sum gives the norm, and with it an update, without a search.
  bool decides(double sum) const { return in_range(sum, problem_.norm_type) && is_finite(norm(sum, 1.0)); }

  void norm_pass(int64_t first, int64_t last) {
    const double p = searches_largest_ ? __builtin_inf() : problem_.norm_type;
    sum_chunks(problem_.leaves, problem_.count, parts_of(problem_.chunks, first, last, slices_), p, unit_,
               partial_);
  }
  void update_pass(int64_t first, int64_t last) { update(first, last, norm_); }

  // Every thread adds the sums of all chunks by itself, in the same order, instead of a second barrier.
  void both_passes(int64_t first, int64_t last) {
    norm_pass(first, last);
    barrier_.wait(last - first, slices_, 1);
    const double sum = join_chunks(partial_, problem_.chunks, problem_.norm_type);
    if (decides(sum)) update(first, last, norm(sum, 1.0));
  }

  void update(int64_t first, int64_t last, double norm) {
    const unsigned mode = flush_subnormals();  // a velocity without gradients becomes subnormal and stays so
    for_chunks(problem_.leaves, problem_.count, parts_of(problem_.chunks, first, last, slices_), true,
               [&](const Leaf& leaf, int64_t begin, int64_t n, int64_t) {
                 update_chunk<Rule>(leaf, problem_.groups[leaf.group], norm, scale_, begin, n);
               });
    set_mode(mode);
  }

  // The norm where powers left float64's range: finds the largest gradient, then sums in units of it.
  double search_norm() {
    searches_largest_ = true;
    run_slices(threads_, slices_, this, &StepRun::norm_pass);
    searches_largest_ = false;
    unit_ = join_chunks(partial_, problem_.chunks, __builtin_inf());
    if (!is_finite(unit_) || unit_ == 0) return unit_ / scale_;
    run_slices(threads_, slices_, this, &StepRun::norm_pass);
    return norm(join_chunks(partial_, problem_.chunks, problem_.norm_type), unit_);
  }

  const StepProblem& problem_;
  const cpu::Threads& threads_;
  double* partial_;  // [chunks]
  int64_t slices_;
  double scale_;
  cpu::Barrier barrier_;
  bool searches_largest_ = false;
  double unit_ = 1;
  double norm_ = 0;
};

template <class Rule>
bool optimizer_step(const StepProblem& problem, const cpu::Threads& threads, double* partial) {
  return StepRun<Rule>(problem, threads, partial).run();
}

class PowerSumRun {
 public:
  PowerSumRun(const PowerSum& problem, const cpu::Threads& threads, double* partial)
      : problem_(problem),
        threads_(threads),
        partial_(partial),
        slices_(optimizer_slices(problem.chunks, threads)) {}

  double run() {
    run_slices(threads_, slices_, this, &PowerSumRun::sum);
    return join_chunks(partial_, problem_.chunks, problem_.norm_type);
  }

 private:
  void sum(int64_t first, int64_t last) {
    sum_chunks(problem_.leaves, problem_.count, parts_of(problem_.chunks, first, last, slices_),
               problem_.norm_type, problem_.unit, partial_);
  }

  const PowerSum& problem_;
  const cpu::Threads& threads_;
  double* partial_;  // [chunks]
  int64_t slices_;
};

double power_sum(const PowerSum& problem, const cpu::Threads& threads, double* partial) {
  return PowerSumRun(problem, threads, partial).run();
}

}  // namespace
}  // namespace rnnkernels
