// NADE forward: log p(v) and the logits of rows that are given, or rows that are drawn (core/nade.h has the
// equations).
//
// Rows are independent. A thread walks a few of them together, some units at a time, so that those units'
// decoder rows serve all of the rows from the first cache:
//
//   for each few rows:   a = c;  h = sigmoid(a)
//     for each group of units, for each row:
//       the logits up to the group's first one, as dot products with h;  there a += W_i, h = sigmoid(a);
//       and on behind it
//
// Which one is the first is read from v, or drawn once the logits of the group's rest are known; of those
// behind the one that is drawn they are made again. No row's result depends on the others, nor on the
// threads.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/nade.h"
#include "core/nonlinearities.h"
#include "cpu/simd.h"
#include "cpu/split.h"
#include "cpu/team.h"

namespace rnnkernels {
namespace {

// --- What both directions share ----------------------------------------------------------------------

// Bit i says whether v[i] is 1, for the first `count` of them and no more than 64.
RNNKERNELS_INLINE uint64_t ones_of(const uint8_t* v, int64_t count) {
  const int64_t n = least(count, 64);
  uint64_t bits = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, v + i, sizeof(eight));
    bits |= (eight * 0x0102040810204080) >> 56 << i;  // gathers the lowest bits of all bytes
  }
  for (; i < n; ++i) bits |= uint64_t{v[i]} << i;
  return bits;
}

// 1 - 2 v, of as many units as a vector has lanes, or of `count`: -1 at a one.
template <class T>
RNNKERNELS_INLINE Vec<T> signs_of(const uint8_t* v, int64_t count) {
  return 1 - 2 * from_bits<T>(static_cast<uint32_t>(ones_of(v, least(count, kLanes<T>))));
}

// Rows of `width` numbers, whole vectors: the first `valid` as they are, the others zero.
template <class T>
void copy_rows(const T* from, int64_t row_stride, int64_t valid, int64_t rows, int64_t width, T* to) {
  for (int64_t row = 0; row < rows; ++row, from += row_stride, to += width) {
    for (int64_t j = 0; j < width; j += kLanes<T>) {
      store(to + j, j < valid ? load_first(from + j, valid - j) : Vec<T>{});
    }
  }
}

// How many threads are worth starting: a row's multiply-adds are the lesser part of what it takes.
inline int64_t nade_slices(const Nade& problem, const cpu::Threads& threads, int64_t most) {
  const double work = 4.0 * static_cast<double>(problem.rows) * static_cast<double>(problem.visible) *
                      static_cast<double>(problem.hidden);
  const int64_t slices = work < static_cast<double>(threads.worth_starting) ? 1 : threads.count;
  return slices < most ? slices : most < 1 ? 1 : most;
}

// A phase of a run, by all threads.
template <class Run>
void go(Run* run, void (Run::*phase)(int64_t first, int64_t last), int64_t slices,
        const cpu::Threads& threads) {
  if (slices == 1) return (run->*phase)(0, 1);
  struct Call {
    Run* run;
    void (Run::*phase)(int64_t first, int64_t last);
  } call{run, phase};
  threads.run(
      static_cast<int>(slices),
      [](void* argument, int first, int last) {
        const Call& call = *static_cast<Call*>(argument);
        (call.run->*call.phase)(first, last);
      },
      &call);
}

// --- Forward -----------------------------------------------------------------------------------------

// Units whose logits are made together, and rows that are walked together.
template <class T>
constexpr int kUnits = kLanes<T> < 8 ? kLanes<T> : 8;
constexpr int64_t kRowsAtOnce = 16;

template <class T, bool kDrawn>
class NadeRun {
 public:
  NadeRun(const NadeForward& problem, const cpu::Threads& threads, void* workspace)
      : problem_(problem), threads_(threads) {
    width_ = (problem.hidden + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    slices_ = nade_slices(problem, threads, (problem.rows + kRowsAtOnce - 1) / kRowsAtOnce);
    encoder_ = static_cast<T*>(workspace);
    decoder_ = encoder_ + problem.visible * width_;
    states_ = decoder_ + problem.visible * width_;
  }

  int64_t workspace_bytes() const {
    return (2 * problem_.visible + slices_ * kRowsAtOnce * 2) * width_ * static_cast<int64_t>(sizeof(T));
  }

  void run() {
    go(this, &NadeRun::copy_weights, slices_, threads_);
    go(this, &NadeRun::run_row_groups, slices_, threads_);
  }

 private:
  struct Row {
    T *a, *h;  // [width]
    const T *visible_bias, *uniform;
    const uint8_t* v;
    uint8_t* drawn;
    T* logits;
  };

  const NadeForward& problem_;
  const cpu::Threads& threads_;
  int64_t width_, slices_;
  T *encoder_, *decoder_, *states_;  // rows of `width`

  void copy_weights(int64_t first, int64_t last) {
    const int64_t hidden = problem_.hidden, begin = part_of(problem_.visible, first, slices_).first,
                  rows = part_of(problem_.visible, last - 1, slices_).last - begin;
    copy_rows(static_cast<const T*>(problem_.encoder) + begin * hidden, hidden, hidden, rows, width_,
              encoder_ + begin * width_);
    copy_rows(static_cast<const T*>(problem_.decoder) + begin * hidden, hidden, hidden, rows, width_,
              decoder_ + begin * width_);
  }

  void run_row_groups(int64_t first, int64_t last) {
    const int64_t end = part_of(problem_.rows, last - 1, slices_).last;
    T* const states = states_ + first * kRowsAtOnce * 2 * width_;
    for (int64_t row = part_of(problem_.rows, first, slices_).first; row < end; row += kRowsAtOnce) {
      run_rows({row, least(row + kRowsAtOnce, end)}, states);
    }
  }

  void run_rows(const Range& rows, T* states) const {
    const int64_t visible = problem_.visible, hidden = problem_.hidden;
    for (int64_t row = rows.first; row < rows.last; ++row) {
      const Row at = row_at(row, states + (row - rows.first) * 2 * width_);
      copy_rows(static_cast<const T*>(problem_.hidden_bias) + row * hidden, hidden, hidden, 1, width_, at.a);
      for (int64_t j = 0; j < width_; j += kLanes<T>) store(at.h + j, Sigmoid::value(load(at.a + j)));
    }
    for (int64_t unit = 0; unit < visible; unit += kUnits<T>) {
      for (int64_t row = rows.first; row < rows.last; ++row) {
        run_units(row_at(row, states + (row - rows.first) * 2 * width_), unit,
                  least(unit + kUnits<T>, visible));
      }
    }
    if (!problem_.log_prob) return;
    for (int64_t row = rows.first; row < rows.last; ++row) {
      static_cast<T*>(problem_.log_prob)[row] = log_prob(row_at(row, states));
    }
  }

  Row row_at(int64_t row, T* state) const {
    const int64_t at = row * problem_.visible;
    return {state,
            state + width_,
            static_cast<const T*>(problem_.visible_bias) + at,
            kDrawn ? static_cast<const T*>(problem_.uniform) + at : nullptr,
            kDrawn ? nullptr : problem_.v + at,
            kDrawn ? problem_.drawn + at : nullptr,
            static_cast<T*>(problem_.logits) + at};
  }

  // No more units than kUnits.
  void run_units(const Row& row, int64_t unit, int64_t end) const {
    while (unit < end) {
      uint64_t ones;
      if constexpr (kDrawn) {
        make_logits<kUnits<T>>(row, unit, end);
        ones = draw(row, unit, end - unit);
      } else {
        ones = ones_of(row.v + unit, end - unit);
      }
      const int64_t one = ones ? unit + __builtin_ctzll(ones) : end;
      if constexpr (kDrawn) {
        for (int64_t i = unit; i < least(one + 1, end); ++i) row.drawn[i] = i == one;
      } else {
        make_logits<kUnits<T>>(row, unit, least(one + 1, end));
      }
      if (one < end && one + 1 < problem_.visible) add_unit(row, encoder_ + one * width_);
      unit = one + 1;
    }
  }

  // Which of the next units would be ones if no other came before them.
  static uint64_t draw(const Row& row, int64_t unit, int64_t count) {
    const Vec<T> p = Sigmoid::value(load_first(row.logits + unit, count));
    return bits_of<T>(load_first(row.uniform + unit, count) < p) & ((uint64_t{1} << count) - 1);
  }

  void add_unit(const Row& row, const T* encoder) const {
    for (int64_t j = 0; j < width_; j += kLanes<T>) {
      const Vec<T> a = load(row.a + j) + load(encoder + j);
      store(row.a + j, a);
      store(row.h + j, Sigmoid::value(a));
    }
  }

  // As many at once as kCount, then the rest.
  template <int kCount>
  void make_logits(const Row& row, int64_t unit, int64_t end) const {
    for (; unit + kCount <= end; unit += kCount) {
      const Vec<T> l =
          load_first(row.visible_bias + unit, kCount) + products<kCount>(decoder_ + unit * width_, row.h);
      store_first(row.logits + unit, l, kCount);
    }
    if constexpr (kCount > 1) make_logits<kCount / 2>(row, unit, end);
  }

  // Of some rows of the decoder with h, in the first lanes.
  template <int kCount>
  Vec<T> products(const T* decoder, const T* h) const {
    Vec<T> sums[kCount] = {};
    for (int64_t j = 0; j < width_; j += kLanes<T>) {
      const Vec<T> x = load(h + j);
      RNNKERNELS_UNROLL
      for (int i = 0; i < kCount; ++i) sums[i] += load(decoder + i * width_ + j) * x;
    }
    return sums_of_lanes<T>(sums);
  }

  // -sum_i softplus((1 - 2 v_i) l_i), which is the same and cancels nothing.
  T log_prob(const Row& row) const {
    const uint8_t* const v = kDrawn ? row.drawn : row.v;
    Vec<T> sum[1] = {};
    for (int64_t i = 0; i < problem_.visible; i += kLanes<T>) {
      const int64_t left = problem_.visible - i;
      const Vec<T> terms = Softplus::value(signs_of<T>(v + i, left) * load_first(row.logits + i, left));
      sum[0] += left < kLanes<T> ? terms * from_bits<T>((1u << left) - 1) : terms;
    }
    return -sums_of_lanes<T>(sum)[0];
  }
};

template <class T>
int64_t nade_workspace(const NadeForward& problem, const cpu::Threads& threads) {
  return NadeRun<T, false>(problem, threads, nullptr).workspace_bytes();
}

template <class T>
void nade(const NadeForward& problem, const cpu::Threads& threads, void* workspace) {
  if (problem.v) {
    NadeRun<T, false>(problem, threads, workspace).run();
  } else {
    NadeRun<T, true>(problem, threads, workspace).run();
  }
}

}  // namespace
}  // namespace rnnkernels
