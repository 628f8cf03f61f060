// Backward: a kernel makes dl, and each row's ones as bits. Then no hidden unit meets another: a warp takes
// 32 of them, one a lane, through a part of the rows, a tile of 32 visible units after the other from the
// last one down, so that the sums of the tile's dW and dV fit the shared memory:
//
//   for each tile, for each row of the part:
//     a as forward had it to the bit, from c on;  h of each of the tile's segments
//     for each segment, from the last one down:
//       s = sum_i dl_i V_i,  dV_i += dl_i h;   da += s h (1 - h);   dW of the one before it += da
//     da waits for the next tile in d_hidden_bias
//
// A last kernel adds up the parts' sums, in order. What is a part depends on the sizes alone.
#include "core/nonlinearities.h"
#include "cuda/lanes.h"
#include "cuda/nade_grid.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kTile = kLanes;  // visible units, whose ones are a word
// Parts of rows: as many as give a GPU enough warps, and no more, for the memory of their sums.
constexpr int64_t kLeastRows = 8, kMostParts = 128, kMostWarps = 1024;

int64_t rows_of_part(const NadeBackward& problem) {
  const int64_t parts = least(kMostParts, kMostWarps / ceil_div(problem.hidden, kLanes)),
                rows = parts > 0 ? ceil_div(problem.rows, parts) : problem.rows;
  return rows < kLeastRows ? kLeastRows : rows;
}

// What a call of backward reads besides the problem.
template <class T>
struct Pass {
  int64_t tiles, blocks;     // of visible and of hidden units
  int64_t parts, part_rows;  // of rows
  T* sums;                   // of d_encoder and d_decoder, [parts][2][D][H]
  uint32_t* ones;            // [N][tiles]; null where nothing but dl is wanted
};

template <class T>
Pass<T> pass_of(const NadeBackward& problem, void* workspace) {
  Pass<T> pass{};
  pass.tiles = ceil_div(problem.visible, kTile);
  pass.blocks = ceil_div(problem.hidden, kLanes);
  pass.part_rows = rows_of_part(problem);
  pass.parts = ceil_div(problem.rows, pass.part_rows);
  if (!problem.d_encoder) return pass;
  pass.sums = static_cast<T*>(workspace);
  pass.ones = reinterpret_cast<uint32_t*>(pass.sums + pass.parts * 2 * problem.visible * problem.hidden);
  return pass;
}

// dl, and the ones; one at the last unit is none, because nobody sees it. A warp makes a word.
template <class T>
RNNKERNELS_KERNEL(kBlockWarps* kLanes, 4)
nade_prepare(RNNKERNELS_ARGUMENT NadeBackward problem, RNNKERNELS_ARGUMENT Pass<T> pass) {
  const device::Place me = device::place();
  const auto* logits = static_cast<const T*>(problem.logits);
  const auto* g = static_cast<const T*>(problem.grad_log_prob);
  const auto* q = static_cast<const T*>(problem.grad_logits);
  auto* d_logits = static_cast<T*>(problem.d_visible_bias);
  for (int64_t word = int64_t{me.block} * kBlockWarps + me.thread / kLanes; word < problem.rows * pass.tiles;
       word += int64_t{me.blocks} * kBlockWarps) {
    const int64_t row = word / pass.tiles, unit = word % pass.tiles * kTile + me.thread % kLanes,
                  i = row * problem.visible + unit;
    const bool on = unit < problem.visible, one = on && problem.v[i] != 0;
    if (on) {
      const T sign = one ? T(-1) : T(1);  // v - sigmoid(l) = sigmoid(-l) at a one, which cancels nothing
      T dl = g ? -g[row] * (sign * Sigmoid::value(sign * logits[i])) : T(0);
      if (q) dl += q[i];
      d_logits[i] = dl;
    }
    const uint32_t ones = word_of_lanes(one && unit + 1 < problem.visible);
    if (pass.ones && me.thread % kLanes == 0) pass.ones[word] = ones;
  }
}

// A warp's walk with 32 hidden units through a part of the rows. Each lane touches columns of its own.
template <class T>
class UnitWalk {
 public:
  static constexpr int64_t kNumbers = (3 * kTile + 1) * kLanes;  // of shared memory

  RNNKERNELS_DEVICE UnitWalk(const NadeBackward& problem, const Pass<T>& pass, int64_t task)
      : problem_(problem),
        pass_(pass),
        part_(task / pass.blocks),
        unit_(task % pass.blocks * kLanes + device::place().thread),
        column_(
            least(unit_, problem.hidden - 1)),  // lanes without a unit see the last one, and write nothing
        memory_(device::shared_memory<T>(0, kNumbers)) {}

  RNNKERNELS_DEVICE void run() const {
    const int64_t begin = part_ * pass_.part_rows, end = least(begin + pass_.part_rows, problem_.rows);
    for (int64_t tile = pass_.tiles - 1; tile >= 0; --tile) {
      for (int i = 0; i < 2 * kTile; ++i) set(i, T(0));
      for (int64_t row = begin; row < end; ++row) walk_row(tile, row);
      write_sums(tile);
    }
  }

 private:
  const NadeBackward& problem_;
  const Pass<T>& pass_;
  int64_t part_, unit_, column_;
  device::Shared<T> memory_;  // this lane's column of dW and dV, [2][kTile], and h of each segment
  static constexpr int kDecoder = kTile, kSegments = 2 * kTile;

  RNNKERNELS_DEVICE T get(int i) const { return memory_[i * kLanes + device::place().thread]; }
  RNNKERNELS_DEVICE void set(int i, T x) const { memory_.set(i * kLanes + device::place().thread, x); }
  RNNKERNELS_DEVICE const T* column_of(const void* weight, int64_t unit) const {
    return static_cast<const T*>(weight) + unit * problem_.hidden + column_;
  }

  RNNKERNELS_DEVICE void walk_row(int64_t tile, int64_t row) const {
    const uint32_t* const words = pass_.ones + row * pass_.tiles;
    T a = static_cast<const T*>(problem_.hidden_bias)[row * problem_.hidden + column_];
    for (int64_t before = 0; before < tile; ++before) {
      for (uint32_t ones = words[before]; ones != 0; ones &= ones - 1) {
        a += *column_of(problem_.encoder, before * kTile + device::lowest_bit(ones));
      }
    }
    const int64_t begin = tile * kTile;
    int segment = kSegments;
    set(segment, Sigmoid::value(a));
    for (uint32_t ones = words[tile]; ones != 0; ones &= ones - 1) {
      a += *column_of(problem_.encoder, begin + device::lowest_bit(ones));
      set(++segment, Sigmoid::value(a));
    }
    T* const kept = static_cast<T*>(problem_.d_hidden_bias) + row * problem_.hidden + column_;
    T da = tile == pass_.tiles - 1 ? T(0) : *kept;
    const T* const dl = static_cast<const T*>(problem_.d_visible_bias) + row * problem_.visible + begin;
    int end = static_cast<int>(least(kTile, problem_.visible - begin));
    for (uint32_t ones = words[tile]; ones != 0;) {
      const int one = device::highest_bit(ones);
      walk_segment(begin, one + 1, end, dl, get(segment--), da);
      set(one, get(one) + da);
      ones ^= uint32_t{1} << one;
      end = one + 1;
    }
    walk_segment(begin, 0, end, dl, get(segment), da);
    if (unit_ < problem_.hidden) *kept = da;
  }

  // Units first .. end-1 of the tile, which all see the same h.
  RNNKERNELS_DEVICE void walk_segment(int64_t begin, int first, int end, const T* dl, T h, T& da) const {
    T s = 0;
    for (int i = first; i < end; ++i) {
      const T x = dl[i];
      s += x * *column_of(problem_.decoder, begin + i);
      set(kDecoder + i, get(kDecoder + i) + x * h);
    }
    da += s * (h * (1 - h));
  }

  RNNKERNELS_DEVICE void write_sums(int64_t tile) const {
    if (unit_ >= problem_.hidden) return;
    const int count = static_cast<int>(least(kTile, problem_.visible - tile * kTile));
    for (int which = 0; which < 2; ++which) {
      T* const to =
          pass_.sums + ((part_ * 2 + which) * problem_.visible + tile * kTile) * problem_.hidden + unit_;
      for (int i = 0; i < count; ++i) to[i * problem_.hidden] = get(which * kTile + i);
    }
  }
};

template <class T>
RNNKERNELS_KERNEL(kLanes, 8)
nade_units(RNNKERNELS_ARGUMENT NadeBackward problem, RNNKERNELS_ARGUMENT Pass<T> pass) {
  const device::Place me = device::place();
  for (int64_t task = me.block; task < pass.parts * pass.blocks; task += me.blocks) {
    UnitWalk<T>(problem, pass, task).run();
  }
}

template <class T>
RNNKERNELS_KERNEL(kBlockWarps* kLanes, 4)
nade_join(RNNKERNELS_ARGUMENT NadeBackward problem, RNNKERNELS_ARGUMENT Pass<T> pass) {
  const device::Place me = device::place();
  const int64_t numbers = problem.visible * problem.hidden;
  for (int64_t i = int64_t{me.block} * me.threads + me.thread; i < 2 * numbers;
       i += int64_t{me.blocks} * me.threads) {
    T sum = 0;
    for (int64_t part = 0; part < pass.parts; ++part) sum += pass.sums[part * 2 * numbers + i];
    if (i < numbers) {
      static_cast<T*>(problem.d_encoder)[i] = sum;
    } else {
      static_cast<T*>(problem.d_decoder)[i - numbers] = sum;
    }
  }
}

template <class T>
Status backward(const NadeBackward& problem, int64_t most_blocks, void* workspace, Stream stream) {
  const Pass<T> pass = pass_of<T>(problem, workspace);
  const auto launch = [&](auto* kernel, int64_t blocks, int warps, int64_t shared_bytes) {
    if (blocks == 0) return 0;
    return device::launch(grid_of(blocks, most_blocks, warps, shared_bytes), stream, kernel, problem, pass);
  };
  Status status = launch(&nade_prepare<T>, ceil_div(problem.rows * pass.tiles, kBlockWarps), kBlockWarps, 0);
  if (!problem.d_encoder) return status;
  if (status == 0) {
    status = launch(&nade_units<T>, pass.parts * pass.blocks, 1,
                    UnitWalk<T>::kNumbers * static_cast<int64_t>(sizeof(T)));
  }
  const int64_t numbers = 2 * problem.visible * problem.hidden;
  if (status == 0) status = launch(&nade_join<T>, ceil_div(numbers, kBlockWarps * kLanes), kBlockWarps, 0);
  return status;
}

}  // namespace

int64_t workspace_bytes(const NadeBackward& problem) {
  if (!problem.d_encoder) return 0;
  const int64_t words = problem.rows * ceil_div(problem.visible, kTile),
                parts = ceil_div(problem.rows, rows_of_part(problem));
  return parts * 2 * problem.visible * problem.hidden * number_bytes(problem) +
         words * static_cast<int64_t>(sizeof(uint32_t));
}

Status nade_backward(const NadeBackward& problem, int64_t most_blocks, void* workspace, Stream stream) {
  return problem.type == ElementType::kFloat64 ? backward<double>(problem, most_blocks, workspace, stream)
                                               : backward<float>(problem, most_blocks, workspace, stream);
}

}  // namespace rnnkernels::cuda
