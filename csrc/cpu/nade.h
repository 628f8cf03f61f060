// NADE forward: log p(v) and the logits of given rows, or of rows that are sampled (core/nade.h has the
// equations).
//
// Rows are independent. A thread runs a group of rows together, a group of visible units at a time, so that
// the units' decoder rows stay in L1 for all rows of the group:
//
//   for each group of rows:   a = c;  h = sigmoid(a)
//     for each group of units, for each row:
//       until the group ends:
//         the logits of the units up to and including the next one, as dot products with h
//         a += W_i, h = sigmoid(a) for that one
//
// The next unit with v_i = 1 is read from v. When sampling, all remaining logits of the group are computed
// first, the next one is drawn with them, and the logits behind it are computed again. The result of a row
// depends neither on other rows nor on the number of threads.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/nade.h"
#include "core/nonlinearities.h"
#include "cpu/simd.h"
#include "cpu/split.h"
#include "cpu/threads.h"

namespace rnnkernels {
namespace {

// --- For both directions -----------------------------------------------------------------------------

// Bit i of the result is v[i], for the first `count` elements, but at most 64.
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

// 1 - 2 v for the first `count` units, but at most a vector's lanes: -1 at a one, else 1.
template <class T>
RNNKERNELS_INLINE Vec<T> signs_of(const uint8_t* v, int64_t count) {
  return 1 - 2 * from_bits<T>(static_cast<uint32_t>(ones_of(v, least(count, kLanes<T>))));
}

// Copies rows of `width` elements, whole vectors each: the first `valid` from a matrix, the others zero.
template <class T>
void copy_rows(const T* from, int64_t row_stride, int64_t valid, int64_t rows, int64_t width, T* to) {
  for (int64_t row = 0; row < rows; ++row, from += row_stride, to += width) {
    for (int64_t j = 0; j < width; j += kLanes<T>) {
      store(to + j, j < valid ? load_first(from + j, valid - j) : Vec<T>{});
    }
  }
}

// The number of slices: one for small problems, else one per thread, but at most `most`. The factor 4 stands
// for the sigmoids, which take more time than a row's multiply-adds.
inline int64_t nade_slices(const Nade& problem, const cpu::Threads& threads, int64_t most) {
  const double work = 4.0 * static_cast<double>(problem.rows) * static_cast<double>(problem.visible) *
                      static_cast<double>(problem.hidden);
  const int64_t slices = work < static_cast<double>(threads.worth_starting) ? 1 : threads.count;
  return slices < most ? slices : most < 1 ? 1 : most;
}

// --- Forward -----------------------------------------------------------------------------------------

// The sizes of a group of units and of a group of rows.
template <class T>
constexpr int kUnits = kLanes<T> < 8 ? kLanes<T> : 8;
constexpr int64_t kGroupRows = 16;

template <class T, bool kDrawn>
class NadeRun {
 public:
  NadeRun(const NadeForward& problem, const cpu::Threads& threads, void* workspace)
      : problem_(problem), threads_(threads) {
    width_ = (problem.hidden + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    slices_ = nade_slices(problem, threads, (problem.rows + kGroupRows - 1) / kGroupRows);
    encoder_ = static_cast<T*>(workspace);
    decoder_ = encoder_ + problem.visible * width_;
    states_ = decoder_ + problem.visible * width_;
  }

  int64_t workspace_bytes() const {
    return (2 * problem_.visible + slices_ * kGroupRows * 2) * width_ * static_cast<int64_t>(sizeof(T));
  }

  void run() {
    run_slices(threads_, slices_, this, &NadeRun::copy_weights);
    run_slices(threads_, slices_, this, &NadeRun::run_row_groups);
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
  T *encoder_, *decoder_;  // [D][width], padded copies
  T* states_;              // [slices][kGroupRows][a, h][width]

  void copy_weights(int64_t first, int64_t last) {
    const int64_t hidden = problem_.hidden;
    const Range units = parts_of(problem_.visible, first, last, slices_);
    const int64_t begin = units.first, rows = units.last - units.first;
    copy_rows(static_cast<const T*>(problem_.encoder) + begin * hidden, hidden, hidden, rows, width_,
              encoder_ + begin * width_);
    copy_rows(static_cast<const T*>(problem_.decoder) + begin * hidden, hidden, hidden, rows, width_,
              decoder_ + begin * width_);
  }

  void run_row_groups(int64_t first, int64_t last) {
    const Range rows = parts_of(problem_.rows, first, last, slices_);
    T* const states = states_ + first * kGroupRows * 2 * width_;
    for (int64_t row = rows.first; row < rows.last; row += kGroupRows) {
      run_rows({row, least(row + kGroupRows, rows.last)}, states);
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

  // Units unit .. end-1 of a row, at most kUnits of them.
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

  // The units that would be ones if none of the units before them were: bit i for unit + i.
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

  // The logits of units unit .. end-1, kCount at a time and then the rest.
  template <int kCount>
  void make_logits(const Row& row, int64_t unit, int64_t end) const {
    for (; unit + kCount <= end; unit += kCount) {
      const Vec<T> l =
          load_first(row.visible_bias + unit, kCount) + products<kCount>(decoder_ + unit * width_, row.h);
      store_first(row.logits + unit, l, kCount);
    }
    if constexpr (kCount > 1) make_logits<kCount / 2>(row, unit, end);
  }

  // The dot products of kCount rows of the decoder with h, in the first lanes.
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

  // log p(v) = -sum_i softplus((1 - 2 v_i) l_i), in which nothing cancels.
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
