// NADE backward (core/nade.h has the equations), divided by hidden units: once dl is known, hidden units do
// not depend on each other. So a block of hidden units goes through all rows, with its columns of both
// weights and of their gradients in a cache.
//
//   dl for all rows;  copies of both weights' columns, block by block
//   for each part of the rows, for each block of hidden units, for each row:
//     a = c;  h of each segment = sigmoid(a), with a += W_i at each one, in the same bits as forward
//     for each segment, from the last to the first:
//       s = sum_i dl_i V_i,  dV_i += dl_i h;   da += s h (1 - h);   dW of the one before the segment += da
//     dc = da
//   dW, dV = the sums of the parts, added in order
//
// A segment is a run of visible units that see the same h: it ends with a one, or with the last unit. The
// number of parts depends on the number of rows alone, so results do not depend on the number of threads.
#pragma once

#include "cpu/nade.h"

namespace rnnkernels {
namespace {

template <class T>
class NadeBackwardRun {
 public:
  NadeBackwardRun(const NadeBackward& problem, const cpu::Threads& threads, void* workspace)
      : problem_(problem), threads_(threads) {
    blocks_ = (problem.hidden + kWidth - 1) / kWidth;
    panel_ = problem.visible * kWidth;
    parts_ = least((problem.rows + kLeastRows - 1) / kLeastRows, kMostParts);
    if (parts_ < 1) parts_ = 1;
    slices_ = nade_slices(problem, threads, parts_ * blocks_);
    encoder_ = static_cast<T*>(workspace);
    decoder_ = encoder_ + blocks_ * panel_;
    sums_ = decoder_ + blocks_ * panel_;
    segments_ = sums_ + parts_ * blocks_ * 2 * panel_;
    ones_ = reinterpret_cast<int64_t*>(segments_ + slices_ * panel_);
  }

  int64_t workspace_bytes() const {
    return (2 * blocks_ * (1 + parts_) + slices_) * panel_ * static_cast<int64_t>(sizeof(T)) +
           slices_ * problem_.visible * static_cast<int64_t>(sizeof(int64_t));
  }

  void run() {
    run_slices(threads_, slices_, this, &NadeBackwardRun::prepare);
    if (!problem_.d_encoder) return;
    run_slices(threads_, slices_, this, &NadeBackwardRun::run_blocks);
    run_slices(threads_, slices_, this, &NadeBackwardRun::add_parts);
  }

 private:
  static constexpr int kVectors = 2;
  static constexpr int64_t kWidth = kVectors * kLanes<T>;  // hidden units of a block
  // Enough parts for many threads, each with so many rows that adding its sums takes little of the time.
  static constexpr int64_t kLeastRows = 256, kMostParts = 16;

  // One block of hidden units: its columns, [D][kWidth], and memory for one row.
  struct Block {
    int64_t first;  // hidden unit
    const T *encoder, *decoder;
    T *d_encoder, *d_decoder;
    T* segments;    // [D][kWidth], h of each segment
    int64_t* ones;  // [D], the unit with which each segment ends
  };

  const NadeBackward& problem_;
  const cpu::Threads& threads_;
  int64_t blocks_, panel_, parts_, slices_;
  T *encoder_, *decoder_;  // [blocks][D][kWidth]
  T* sums_;                // [parts][blocks][d_encoder, d_decoder][D][kWidth]
  T* segments_;            // [slices][D][kWidth]
  int64_t* ones_;          // [slices][D]

  Range slice_of(int64_t total, int64_t first, int64_t last) const {
    return parts_of(total, first, last, slices_);
  }

  void prepare(int64_t first, int64_t last) {
    const Range rows = slice_of(problem_.rows, first, last), blocks = slice_of(blocks_, first, last);
    for (int64_t row = rows.first; row < rows.last; ++row) make_d_visible_bias(row);
    if (!problem_.d_encoder) return;
    for (int64_t block = blocks.first; block < blocks.last; ++block) {
      const int64_t unit = block * kWidth, hidden = problem_.hidden;
      copy_rows(static_cast<const T*>(problem_.encoder) + unit, hidden, hidden - unit, problem_.visible,
                kWidth, encoder_ + block * panel_);
      copy_rows(static_cast<const T*>(problem_.decoder) + unit, hidden, hidden - unit, problem_.visible,
                kWidth, decoder_ + block * panel_);
    }
  }

  // At a one v - sigmoid(l) is computed as sigmoid(-l), in which nothing cancels.
  void make_d_visible_bias(int64_t row) const {
    const auto* g = static_cast<const T*>(problem_.grad_log_prob);
    const auto* q = static_cast<const T*>(problem_.grad_logits);
    const int64_t at = row * problem_.visible;
    for (int64_t i = 0; i < problem_.visible; i += kLanes<T>) {
      const int64_t left = problem_.visible - i;
      Vec<T> dl{};
      if (g) {
        const Vec<T> sign = signs_of<T>(problem_.v + at + i, left);
        const Vec<T> l = load_first(static_cast<const T*>(problem_.logits) + at + i, left);
        dl = -g[row] * (sign * Sigmoid::value(sign * l));
      }
      if (q) dl += load_first(q + at + i, left);
      store_first(static_cast<T*>(problem_.d_visible_bias) + at + i, dl, left);
    }
  }

  void run_blocks(int64_t first, int64_t last) {
    const Range tasks = slice_of(parts_ * blocks_, first, last);
    for (int64_t task = tasks.first; task < tasks.last; ++task) {
      T* const sums = sums_ + task * 2 * panel_;
      const int64_t block = task % blocks_;
      const Range rows = part_of(problem_.rows, task / blocks_, parts_);
      std::memset(sums, 0, 2 * panel_ * sizeof(T));
      const Block at{block * kWidth, encoder_ + block * panel_,  decoder_ + block * panel_,       sums,
                     sums + panel_,  segments_ + first * panel_, ones_ + first * problem_.visible};
      for (int64_t row = rows.first; row < rows.last; ++row) run_row(at, row);
    }
  }

  void run_row(const Block& at, int64_t row) const {
    const T* const dl = static_cast<const T*>(problem_.d_visible_bias) + row * problem_.visible;
    int64_t end = problem_.visible;
    Vec<T> da[kVectors] = {};
    for (int64_t segment = make_segments(at, row); segment > 0; --segment) {
      const int64_t one = at.ones[segment - 1];
      run_segment(at, at.segments + segment * kWidth, dl, one + 1, end, da);
      T* const d_encoder = at.d_encoder + one * kWidth;
      for (int k = 0; k < kVectors; ++k) {
        T* const to = d_encoder + k * kLanes<T>;
        store(to, load(to) + da[k]);
      }
      end = one + 1;
    }
    run_segment(at, at.segments, dl, 0, end, da);
    const int64_t valid = problem_.hidden - at.first;
    T* const d_hidden_bias = static_cast<T*>(problem_.d_hidden_bias) + row * problem_.hidden + at.first;
    for (int k = 0; k < kVectors && k * kLanes<T> < valid; ++k) {
      store_first(d_hidden_bias + k * kLanes<T>, da[k], valid - k * kLanes<T>);
    }
  }

  // Computes h of each segment and the ones between segments. Returns the number of those ones; a one at the
  // last unit has no segment behind it and does not count.
  int64_t make_segments(const Block& at, int64_t row) const {
    const int64_t last = problem_.visible - 1;
    const uint8_t* const v = problem_.v + row * problem_.visible;
    Vec<T> a[kVectors];
    for (int k = 0; k < kVectors; ++k) {
      const int64_t unit = at.first + k * kLanes<T>, valid = problem_.hidden - unit;
      const T* const c = static_cast<const T*>(problem_.hidden_bias) + row * problem_.hidden + unit;
      a[k] = valid > 0 ? load_first(c, valid) : Vec<T>{};
      store(at.segments + k * kLanes<T>, Sigmoid::value(a[k]));
    }
    int64_t count = 0;
    for (int64_t unit = 0; unit < last; unit += 64) {
      for (uint64_t bits = ones_of(v + unit, last - unit); bits; bits &= bits - 1) {
        const int64_t one = unit + __builtin_ctzll(bits);
        at.ones[count++] = one;
        for (int k = 0; k < kVectors; ++k) {
          a[k] += load(at.encoder + one * kWidth + k * kLanes<T>);
          store(at.segments + count * kWidth + k * kLanes<T>, Sigmoid::value(a[k]));
        }
      }
    }
    return count;
  }

  // Units begin .. end-1 of one segment.
  static RNNKERNELS_INLINE void run_segment(const Block& at, const T* segment, const T* dl, int64_t begin,
                                            int64_t end, Vec<T> (&da)[kVectors]) {
    Vec<T> h[kVectors], s[kVectors] = {};
    for (int k = 0; k < kVectors; ++k) h[k] = load(segment + k * kLanes<T>);
    const T* decoder = at.decoder + begin * kWidth;
    T* d_decoder = at.d_decoder + begin * kWidth;
    for (int64_t i = begin; i < end; ++i, decoder += kWidth, d_decoder += kWidth) {
      const T x = dl[i];
      RNNKERNELS_UNROLL
      for (int k = 0; k < kVectors; ++k) {
        s[k] += x * load(decoder + k * kLanes<T>);
        store(d_decoder + k * kLanes<T>, load(d_decoder + k * kLanes<T>) + x * h[k]);
      }
    }
    for (int k = 0; k < kVectors; ++k) da[k] += s[k] * (h[k] * (1 - h[k]));
  }

  void add_parts(int64_t first, int64_t last) {
    const Range blocks = slice_of(blocks_, first, last);
    for (int64_t block = blocks.first; block < blocks.last; ++block) {
      for (int which = 0; which < 2; ++which) {
        T* const to = static_cast<T*>(which == 0 ? problem_.d_encoder : problem_.d_decoder) + block * kWidth;
        for (int64_t j = 0; j < panel_; j += kLanes<T>) {
          const int64_t column = j % kWidth, valid = problem_.hidden - block * kWidth - column;
          if (valid <= 0) continue;
          Vec<T> sum{};
          for (int64_t part = 0; part < parts_; ++part) {
            sum += load(sums_ + ((part * blocks_ + block) * 2 + which) * panel_ + j);
          }
          store_first(to + j / kWidth * problem_.hidden + column, sum, valid);
        }
      }
    }
  }
};

template <class T>
int64_t nade_backward_workspace(const NadeBackward& problem, const cpu::Threads& threads) {
  return NadeBackwardRun<T>(problem, threads, nullptr).workspace_bytes();
}

template <class T>
void nade_backward(const NadeBackward& problem, const cpu::Threads& threads, void* workspace) {
  NadeBackwardRun<T>(problem, threads, workspace).run();
}

}  // namespace
}  // namespace rnnkernels
