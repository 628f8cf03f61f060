// One optimizer step on the CPU: norm pass, meeting, update pass, in one parallel region.
//
// A thread has the same chunks in both passes and walks them backwards in the second, so the gradients
// that it read last are still in its cache. Only where the sum is zero or not finite does a slow search
// follow: for a gradient that is not finite, or for powers that left float64's range.
#pragma once

#include <cstdint>

#include "core/elements.h"
#include "core/optimizer.h"
#include "cpu/flush.h"
#include "cpu/power_sum.h"
#include "cpu/team.h"

namespace rnnkernels {
namespace {

// About as many elements as an update handles in the time that starting the threads takes.
constexpr int64_t kLeastParallelChunks = 8;

// The chunks first .. last-1 of all leaves, in either direction: calls visit(leaf, begin, n, chunk).
template <class Visit>
RNNKERNELS_INLINE void for_chunks(const Leaf* leaves, int64_t count, int64_t first, int64_t last,
                                  bool backwards, const Visit& visit) {
  if (first >= last) return;
  const int step = backwards ? -1 : 1;
  int64_t chunk = backwards ? last - 1 : first;
  int64_t place = leaf_of_chunk(leaves, count, chunk);
  for (int64_t left = last - first; left > 0; --left) {
    const Leaf& leaf = leaves[place];
    const int64_t begin = (chunk - leaf.first_chunk) * kChunkElements;
    const int64_t n = leaf.size - begin < kChunkElements ? leaf.size - begin : kChunkElements;
    visit(leaf, begin, n, chunk);
    const bool at_end = chunk == (backwards ? leaf.first_chunk : leaf.first_chunk + chunks_of(leaf.size) - 1);
    chunk += step;
    if (!at_end || left == 1) continue;
    do {
      place += step;
    } while (leaves[place].size == 0);
  }
}

void sum_chunks(const Leaf* leaves, int64_t count, int64_t first, int64_t last, double p, double unit,
                double* partial) {
  for_chunks(leaves, count, first, last, false,
             [&](const Leaf& leaf, int64_t begin, int64_t n, int64_t chunk) {
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

// One leaf's elements begin .. begin+n-1. States and master may be anywhere, but overlap nothing.
template <class Rule, class P, class G>
void update_run(const Leaf& leaf, int64_t begin, int64_t n,
                const typename Rule::template Factors<typename NumberOf<P>::type>& factors) {
  using T = typename NumberOf<P>::type;
  P* __restrict param = static_cast<P*>(leaf.param) + begin;
  const G* __restrict grad = static_cast<const G*>(leaf.grad) + begin;
  T* __restrict first = static_cast<T*>(leaf.state[0]) + begin;
  T* __restrict second = Rule::kStates > 1 ? static_cast<T*>(leaf.state[1]) + begin : nullptr;
  T* __restrict master = leaf.master ? static_cast<T*>(leaf.master) + begin : nullptr;
  const auto f = factors;
  const auto element = [&](int64_t i, T theta) {
    T state[2] = {first[i], T(0)};
    if constexpr (Rule::kStates > 1) state[1] = second[i];
    const T after = Rule::template update<T>(theta, T(number(grad[i])), state, f);
    first[i] = state[0];
    if constexpr (Rule::kStates > 1) second[i] = state[1];
    return after;
  };
  if (master) {
    for (int64_t i = 0; i < n; ++i) assign(param + i, master[i] = element(i, master[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) assign(param + i, element(i, number(param[i])));
  }
}

template <class Rule>
void update_chunk(const OptimizerStep<Rule>& step, double norm, const Leaf& leaf, int64_t begin, int64_t n) {
  const auto& group = step.groups[leaf.group];
  const double c = clip_coefficient(norm, group.max_norm) / (group.maximize ? -step.scale : step.scale);
  with_element(leaf.type, [&](auto element) {
    using P = decltype(element);
    using T = typename NumberOf<P>::type;
    const double t = leaf.step_count ? *leaf.step_count + 1.0 : 0.0;
    const auto factors = Rule::template factors<T>(group.settings, c, t);
    if (leaf.grad_type == leaf.type) {
      update_run<Rule, P, P>(leaf, begin, n, factors);
    } else {
      update_run<Rule, P, float>(leaf, begin, n, factors);
    }
  });
}

// The two passes of one step, as the threads see them.
template <class Rule>
class StepRun {
 public:
  StepRun(const OptimizerStep<Rule>& step, const cpu::Threads& threads) : step_(step), threads_(threads) {
    slices_ = step.chunks < kLeastParallelChunks ? 1 : threads.count;
    barrier_.reset();
  }

  Verdict run() {
    bool updated = false;
    if (step_.norm) {
      norm_ = *step_.norm / step_.scale;
    } else {
      const bool at_once = !step_.found_inf && (threads_.may_wait || slices_ == 1);
      go(at_once ? &StepRun::both_passes : &StepRun::norm_pass);
      const double sum = join_chunks(step_.partial, step_.chunks, step_.norm_type);
      updated = at_once && settled(sum);
      norm_ = in_range(sum, step_.norm_type) ? norm(sum, 1.0) : look_again();
    }
    Verdict verdict{norm_, is_finite(norm_), false};
    verdict.skipped = step_.found_inf || (!verdict.finite && step_.nonfinite != NonFinite::kApply);
    if (!updated && !verdict.skipped) go(&StepRun::update_pass);
    return verdict;
  }

 private:
  using Pass = void (StepRun::*)(int first, int last);

  double norm(double sum, double unit) const { return norm_of(sum, step_.norm_type, unit) / step_.scale; }
  // Whether this sum decides that there is an update, and with which norm.
  bool settled(double sum) const { return in_range(sum, step_.norm_type) && is_finite(norm(sum, 1.0)); }
  int64_t begin_of(int slice) const { return step_.chunks * slice / slices_; }

  void go(Pass pass) {
    if (slices_ == 1) return (this->*pass)(0, 1);
    pass_ = pass;
    threads_.run(
        slices_,
        [](void* self, int first, int last) {
          auto* run = static_cast<StepRun*>(self);
          (run->*run->pass_)(first, last);
        },
        this);
  }

  void norm_pass(int first, int last) {
    sum_chunks(step_.leaves, step_.count, begin_of(first), begin_of(last), p_(), unit_, step_.partial);
  }
  void update_pass(int first, int last) { update(first, last, norm_); }

  // Every thread adds up all chunks' sums by itself, in the same order, rather than wait once more.
  void both_passes(int first, int last) {
    norm_pass(first, last);
    barrier_.wait(last - first, slices_, 1);
    const double sum = join_chunks(step_.partial, step_.chunks, step_.norm_type);
    if (settled(sum)) update(first, last, norm(sum, 1.0));
  }

  void update(int first, int last, double norm) {
    const unsigned mode = flush_subnormals();  // a velocity without gradients would round to itself for good
    for_chunks(step_.leaves, step_.count, begin_of(first), begin_of(last), true,
               [&](const Leaf& leaf, int64_t begin, int64_t n, int64_t) {
                 update_chunk(step_, norm, leaf, begin, n);
               });
    set_mode(mode);
  }

  // The largest gradient, and then once more in units of it.
  double look_again() {
    search_ = true;
    go(&StepRun::norm_pass);
    search_ = false;
    unit_ = join_chunks(step_.partial, step_.chunks, __builtin_inf());
    if (!is_finite(unit_) || unit_ == 0) return unit_ / step_.scale;
    go(&StepRun::norm_pass);
    return norm(join_chunks(step_.partial, step_.chunks, step_.norm_type), unit_);
  }
  double p_() const { return search_ ? __builtin_inf() : step_.norm_type; }

  const OptimizerStep<Rule>& step_;
  const cpu::Threads& threads_;
  cpu::Barrier barrier_;
  int slices_ = 1;
  Pass pass_ = nullptr;
  bool search_ = false;  // for the largest gradient
  double unit_ = 1;
  double norm_ = 0;
};

template <class Rule>
Verdict optimizer_step(const OptimizerStep<Rule>& step, const cpu::Threads& threads) {
  return StepRun<Rule>(step, threads).run();
}

double power_sum(const PowerSum& sum, const cpu::Threads& threads) {
  const int slices = sum.chunks < kLeastParallelChunks ? 1 : threads.count;
  struct Shared {
    const PowerSum& sum;
    int slices;
  } shared{sum, slices};
  const auto work = [](void* argument, int first, int last) {
    const auto& [sum, slices] = *static_cast<Shared*>(argument);
    sum_chunks(sum.leaves, sum.count, sum.chunks * first / slices, sum.chunks * last / slices, sum.norm_type,
               sum.unit, sum.partial);
  };
  if (slices == 1) {
    work(&shared, 0, 1);
  } else {
    threads.run(slices, work, &shared);
  }
  return join_chunks(sum.partial, sum.chunks, sum.norm_type);
}

}  // namespace
}  // namespace rnnkernels
