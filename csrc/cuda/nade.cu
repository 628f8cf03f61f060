// NADE, forward: log p(v), the logits, and samples. A warp scans the visible units of a row. Each lane holds
// every 32nd hidden unit, and only that lane accesses the unit's a and h = sigmoid(a).
//
//   up to and including the row's next one:  l = b + V h, for several units at once, summed over the lanes
//   at the one, unit i:                      a += W_i,  h = sigmoid(a)
//
// In a row that is sampled the next one is not known in advance: the logits of 8 units are computed, up to
// the first of them that is drawn as a one. The logits after it are computed again.
#include "core/nonlinearities.h"
#include "cuda/lanes.h"
#include "cuda/nade_grid.h"
#include "cuda/tuning.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kUnits = 8;  // visible units whose logits are computed at once

// Global memory with the interface of Shared, for hidden units that do not fit into shared memory.
template <class T>
struct Global {
  T* data;
  RNNKERNELS_DEVICE T operator[](int64_t i) const { return data[i]; }
  RNNKERNELS_DEVICE void set(int64_t i, T x) const { data[i] = x; }
};

template <class T, bool kDrawn, class Memory>
class RowScan {
 public:
  // `state` holds a and h of one row.
  RNNKERNELS_DEVICE RowScan(const NadeForward& problem, int64_t row, const Memory& state)
      : visible_(problem.visible),
        hidden_(problem.hidden),
        lane_(device::place().thread % kLanes),
        state_(state),
        hidden_bias_(static_cast<const T*>(problem.hidden_bias) + row * hidden_),
        encoder_(static_cast<const T*>(problem.encoder)),
        decoder_(static_cast<const T*>(problem.decoder)),
        visible_bias_(static_cast<const T*>(problem.visible_bias) + row * visible_),
        logits_(static_cast<T*>(problem.logits) + row * visible_) {
    if constexpr (kDrawn) {
      uniform_ = static_cast<const T*>(problem.uniform) + row * visible_;
      drawn_ = problem.drawn + row * visible_;
    } else {
      v_ = problem.v + row * visible_;
    }
  }

  RNNKERNELS_DEVICE void run() const {
    for (int64_t j = lane_; j < hidden_; j += kLanes) set(j, hidden_bias_[j]);
    if constexpr (kDrawn) {
      for (int64_t unit = 0; unit < visible_;) unit = draw_units(unit);
    } else {
      for (int64_t unit = 0; unit < visible_; unit += kLanes) scan_word(unit);
    }
  }

  // log p(v) = -sum_i softplus((1 - 2 v_i) l_i), a form without cancellation.
  RNNKERNELS_DEVICE T log_prob() const {
    device::sync_warp();  // the logits of other lanes
    const uint8_t* const v = kDrawn ? drawn_ : v_;
    T sum[1] = {};
    for (int64_t i = lane_; i < visible_; i += kLanes) {
      sum[0] += Softplus::value(v[i] ? -logits_[i] : logits_[i]);
    }
    return -sums_of_lanes(sum);
  }

 private:
  int64_t visible_, hidden_;
  int lane_;
  Memory state_;
  const T *hidden_bias_, *encoder_, *decoder_, *visible_bias_, *uniform_ = nullptr;
  const uint8_t* v_ = nullptr;
  uint8_t* drawn_ = nullptr;
  T* logits_;

  RNNKERNELS_DEVICE void set(int64_t j, T a) const {
    state_.set(j, a);
    state_.set(hidden_ + j, Sigmoid::value(a));
  }
  RNNKERNELS_DEVICE void add_unit(int64_t unit) const {
    if (unit + 1 == visible_) return;  // no unit depends on the last one
    for (int64_t j = lane_; j < hidden_; j += kLanes) set(j, state_[j] + encoder_[unit * hidden_ + j]);
  }

  // 32 units, or the remaining ones.
  RNNKERNELS_DEVICE void scan_word(int64_t begin) const {
    const int count = static_cast<int>(least(kLanes, visible_ - begin));
    const uint32_t ones = word_of_lanes(lane_ < count && v_[begin + lane_] != 0);
    for (int unit = 0; unit < count;) {
      const uint32_t ahead = ones >> unit;
      const int end = ahead ? unit + device::lowest_bit(ahead) + 1 : count;
      make_logits<kUnits>(begin + unit, begin + end);
      if (ahead) add_unit(begin + end - 1);
      unit = end;
    }
  }

  // The logits of units unit .. end-1: kCount at once, then the rest.
  template <int kCount>
  RNNKERNELS_DEVICE void make_logits(int64_t unit, int64_t end) const {
    for (; unit + kCount <= end; unit += kCount)
      keep(unit + lane_ * kCount / kLanes, logit<kCount>(unit), kCount);
    if constexpr (kCount > 1) make_logits<kCount / 2>(unit, end);
  }
  // Stores a logit, in one of the lanes that hold it.
  RNNKERNELS_DEVICE void keep(int64_t unit, T l, int count) const {
    if (lane_ % (kLanes / count) == 0) logits_[unit] = l;
  }

  // The logit of the (lane * kCount / 32)-th of kCount units from `unit` on; past the last unit, the logit of
  // the last unit.
  template <int kCount>
  RNNKERNELS_DEVICE T logit(int64_t unit) const {
    T sums[kCount] = {};
    const T* rows[kCount];
    RNNKERNELS_UNROLL
    for (int i = 0; i < kCount; ++i) rows[i] = decoder_ + least(unit + i, visible_ - 1) * hidden_;
    for (int64_t j = lane_; j < hidden_; j += kLanes) {
      const T h = state_[hidden_ + j];
      RNNKERNELS_UNROLL
      for (int i = 0; i < kCount; ++i) sums[i] += rows[i][j] * h;
    }
    return visible_bias_[least(unit + lane_ * kCount / kLanes, visible_ - 1)] + sums_of_lanes(sums);
  }

  // Draws units up to the first one among kUnits. Returns the index after the last unit drawn.
  RNNKERNELS_DEVICE int64_t draw_units(int64_t begin) const {
    const int64_t mine = begin + lane_ * kUnits / kLanes;
    const bool counts = lane_ % (kLanes / kUnits) == 0 && mine < visible_;
    const T l = logit<kUnits>(begin);
    const uint32_t ones = word_of_lanes(counts && uniform_[mine] < Sigmoid::value(l));
    const int64_t end =
        ones ? begin + device::lowest_bit(ones) * kUnits / kLanes + 1 : least(begin + kUnits, visible_);
    if (counts && mine < end) {
      logits_[mine] = l;
      drawn_[mine] = ones && mine == end - 1;
    }
    if (ones) add_unit(end - 1);
    return end;
  }
};

template <class T, bool kDrawn, bool kInShared>
RNNKERNELS_KERNEL(kBlockWarps* kLanes, 4)
nade_rows(RNNKERNELS_ARGUMENT NadeForward problem, T* states) {
  const device::Place me = device::place();
  const int warp = me.thread / kLanes;
  const int64_t size = 2 * problem.hidden;
  const auto run_rows = [&](const auto& state) {
    for (int64_t row = int64_t{me.block} * kBlockWarps + warp; row < problem.rows;
         row += int64_t{me.blocks} * kBlockWarps) {
      const RowScan<T, kDrawn, std::remove_cvref_t<decltype(state)>> scan(problem, row, state);
      scan.run();
      if (!problem.log_prob) continue;
      const T log_prob = scan.log_prob();
      if (me.thread % kLanes == 0) static_cast<T*>(problem.log_prob)[row] = log_prob;
    }
  };
  if constexpr (kInShared) {
    run_rows(device::shared_memory<T>(0, kBlockWarps * size).slice(warp * size, size));
  } else {
    run_rows(Global<T>{states + (int64_t{me.block} * kBlockWarps + warp) * size});
  }
}

int64_t state_bytes(const NadeForward& problem) {  // per block
  return kBlockWarps * 2 * problem.hidden * computed_bytes(problem.type);
}
bool in_shared(const NadeForward& problem) { return state_bytes(problem) <= tuning::kNadeSharedBytes; }
int64_t blocks_of(const NadeForward& problem, int64_t most_blocks) {
  const int64_t blocks = least(ceil_div(problem.rows, kBlockWarps), most_blocks);
  return in_shared(problem) ? blocks : least(blocks, tuning::kMostNadeGlobalBlocks);
}

template <class T, bool kDrawn>
Status forward(const NadeForward& problem, int64_t most_blocks, T* states, Stream stream) {
  const int64_t blocks = blocks_of(problem, most_blocks);
  if (blocks == 0) return 0;
  if (in_shared(problem)) {
    return device::launch(grid_of(blocks, most_blocks, kBlockWarps, state_bytes(problem)), stream,
                          &nade_rows<T, kDrawn, true>, problem, states);
  }
  return device::launch(grid_of(blocks, most_blocks, kBlockWarps, 0), stream, &nade_rows<T, kDrawn, false>,
                        problem, states);
}

}  // namespace

int64_t workspace_bytes(const NadeForward& problem, int64_t most_blocks) {
  return in_shared(problem) ? 0 : blocks_of(problem, most_blocks) * state_bytes(problem);
}

Status nade(const NadeForward& problem, int64_t most_blocks, void* workspace, Stream stream) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    T* const states = static_cast<T*>(workspace);
    return problem.v ? forward<T, false>(problem, most_blocks, states, stream)
                     : forward<T, true>(problem, most_blocks, states, stream);
  };
  return problem.type == ElementType::kFloat64 ? run(double{}) : run(float{});
}

}  // namespace rnnkernels::cuda
