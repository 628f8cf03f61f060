// NADE, backward. The first kernel computes dl, and the ones of each row as bits. Hidden units do not depend
// on each other after that. In the second kernel a warp processes 32 hidden units, one per lane, and a part
// of the rows. It goes through tiles of 32 visible units, from the last tile to the first, so that the sums
// of a tile's dW and dV fit into shared memory:
//
//   for each tile, for each row of the part:
//     a, with the same bits as in forward, from c;  h of each segment of the tile
//     for each segment, from the last to the first:
//       s = sum_i dl_i V_i,  dV_i += dl_i h;   da += s h (1 - h);   dW of the one before it += da
//     da is kept in d_hidden_bias until the next tile
//
// The last kernel adds the sums of the parts, in order. The parts depend only on the sizes.
#include "core/nonlinearities.h"
#include "cuda/lanes.h"
#include "cuda/nade_grid.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kTile = kLanes;  // visible units, whose ones are the bits of a word
// The number of parts: enough warps for a GPU, and not more, because the sums of each part need memory.
constexpr int64_t kLeastRows = 8, kMostParts = 128, kMostWarps = 1024;

int64_t rows_of_part(const NadeBackward& problem) {
  const int64_t parts = least(kMostParts, kMostWarps / ceil_div(problem.hidden, kLanes)),
                rows = parts > 0 ? ceil_div(problem.rows, parts) : problem.rows;
  return rows < kLeastRows ? kLeastRows : rows;
}

// The partition of the work, and the workspace.
template <class T>
struct Partition {
  int64_t tiles, blocks;     // of visible and of hidden units
  int64_t parts, part_rows;  // of rows
  T* sums;                   // of d_encoder and d_decoder, [parts][2][D][H]
  uint32_t* ones;            // [N][tiles]; null if only dl is wanted
};

template <class T>
Partition<T> partition_of(const NadeBackward& problem, void* workspace) {
  Partition<T> partition{};
  partition.tiles = ceil_div(problem.visible, kTile);
  partition.blocks = ceil_div(problem.hidden, kLanes);
  partition.part_rows = rows_of_part(problem);
  partition.parts = ceil_div(problem.rows, partition.part_rows);
  if (!problem.d_encoder) return partition;
  partition.sums = static_cast<T*>(workspace);
  partition.ones =
      reinterpret_cast<uint32_t*>(partition.sums + partition.parts * 2 * problem.visible * problem.hidden);
  return partition;
}

// dl, and the ones as bits, one word per warp. A one of the last unit has no bit, because no unit depends on
// it.
template <class T>
RNNKERNELS_KERNEL(kBlockWarps* kLanes, 4)
nade_prepare(RNNKERNELS_ARGUMENT NadeBackward problem, RNNKERNELS_ARGUMENT Partition<T> partition) {
  const device::Place me = device::place();
  const auto* logits = static_cast<const T*>(problem.logits);
  const auto* g = static_cast<const T*>(problem.grad_log_prob);
  const auto* q = static_cast<const T*>(problem.grad_logits);
  auto* d_logits = static_cast<T*>(problem.d_visible_bias);
  for (int64_t word = int64_t{me.block} * kBlockWarps + me.thread / kLanes;
       word < problem.rows * partition.tiles; word += int64_t{me.blocks} * kBlockWarps) {
    const int64_t row = word / partition.tiles, unit = word % partition.tiles * kTile + me.thread % kLanes,
                  i = row * problem.visible + unit;
    const bool on = unit < problem.visible, one = on && problem.v[i] != 0;
    if (on) {
      const T sign = one ? T(-1) : T(1);  // v - sigmoid(l) = sigmoid(-l) at a one, without cancellation
      T dl = g ? -g[row] * (sign * Sigmoid::value(sign * logits[i])) : T(0);
      if (q) dl += q[i];
      d_logits[i] = dl;
    }
    const uint32_t ones = word_of_lanes(one && unit + 1 < problem.visible);
    if (partition.ones && me.thread % kLanes == 0) partition.ones[word] = ones;
  }
}

// A warp's work: 32 hidden units, one part of the rows. Each lane accesses only its own columns.
template <class T>
class UnitScan {
 public:
  static constexpr int64_t kSharedElements = (3 * kTile + 1) * kLanes;

  RNNKERNELS_DEVICE UnitScan(const NadeBackward& problem, const Partition<T>& partition, int64_t task)
      : problem_(problem),
        partition_(partition),
        part_(task / partition.blocks),
        unit_(task % partition.blocks * kLanes + device::place().thread),
        column_(least(unit_, problem.hidden - 1)),
        memory_(device::shared_memory<T>(0, kSharedElements)) {}

  RNNKERNELS_DEVICE void run() const {
    const int64_t begin = part_ * partition_.part_rows,
                  end = least(begin + partition_.part_rows, problem_.rows);
    for (int64_t tile = partition_.tiles - 1; tile >= 0; --tile) {
      for (int i = 0; i < 2 * kTile; ++i) set(i, T(0));
      for (int64_t row = begin; row < end; ++row) scan_row(tile, row);
      write_sums(tile);
    }
  }

 private:
  const NadeBackward& problem_;
  const Partition<T>& partition_;
  int64_t part_, unit_;
  int64_t column_;            // of the weights: a lane without a unit reads the last one, and writes nothing
  device::Shared<T> memory_;  // this lane's column of dW and dV, [2][kTile], and h of each segment
  static constexpr int kDecoder = kTile, kSegments = 2 * kTile;

  RNNKERNELS_DEVICE T get(int i) const { return memory_[i * kLanes + device::place().thread]; }
  RNNKERNELS_DEVICE void set(int i, T x) const { memory_.set(i * kLanes + device::place().thread, x); }
  RNNKERNELS_DEVICE const T* column_of(const void* weight, int64_t unit) const {
    return static_cast<const T*>(weight) + unit * problem_.hidden + column_;
  }

  RNNKERNELS_DEVICE void scan_row(int64_t tile, int64_t row) const {
    const uint32_t* const words = partition_.ones + row * partition_.tiles;
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
    T da = tile == partition_.tiles - 1 ? T(0) : *kept;
    const T* const dl = static_cast<const T*>(problem_.d_visible_bias) + row * problem_.visible + begin;
    int end = static_cast<int>(least(kTile, problem_.visible - begin));
    for (uint32_t ones = words[tile]; ones != 0;) {
      const int one = device::highest_bit(ones);
      scan_segment(begin, one + 1, end, dl, get(segment--), da);
      set(one, get(one) + da);
      ones ^= uint32_t{1} << one;
      end = one + 1;
    }
    scan_segment(begin, 0, end, dl, get(segment), da);
    if (unit_ < problem_.hidden) *kept = da;
  }

  // Units first .. end-1 of the tile, which have the same h.
  RNNKERNELS_DEVICE void scan_segment(int64_t begin, int first, int end, const T* dl, T h, T& da) const {
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
          partition_.sums + ((part_ * 2 + which) * problem_.visible + tile * kTile) * problem_.hidden + unit_;
      for (int i = 0; i < count; ++i) to[i * problem_.hidden] = get(which * kTile + i);
    }
  }
};

template <class T>
RNNKERNELS_KERNEL(kLanes, 8)
nade_units(RNNKERNELS_ARGUMENT NadeBackward problem, RNNKERNELS_ARGUMENT Partition<T> partition) {
  const device::Place me = device::place();
  for (int64_t task = me.block; task < partition.parts * partition.blocks; task += me.blocks) {
    UnitScan<T>(problem, partition, task).run();
  }
}

template <class T>
RNNKERNELS_KERNEL(kBlockWarps* kLanes, 4)
nade_join(RNNKERNELS_ARGUMENT NadeBackward problem, RNNKERNELS_ARGUMENT Partition<T> partition) {
  const device::Place me = device::place();
  const int64_t numbers = problem.visible * problem.hidden;
  for (int64_t i = int64_t{me.block} * me.threads + me.thread; i < 2 * numbers;
       i += int64_t{me.blocks} * me.threads) {
    T sum = 0;
    for (int64_t part = 0; part < partition.parts; ++part) sum += partition.sums[part * 2 * numbers + i];
    if (i < numbers) {
      static_cast<T*>(problem.d_encoder)[i] = sum;
    } else {
      static_cast<T*>(problem.d_decoder)[i - numbers] = sum;
    }
  }
}

template <class T>
Status backward(const NadeBackward& problem, int64_t most_blocks, void* workspace, Stream stream) {
  const Partition<T> partition = partition_of<T>(problem, workspace);
  const auto launch = [&](auto* kernel, int64_t blocks, int warps, int64_t shared_bytes) {
    if (blocks == 0) return 0;
    return device::launch(grid_of(blocks, most_blocks, warps, shared_bytes), stream, kernel, problem,
                          partition);
  };
  Status status =
      launch(&nade_prepare<T>, ceil_div(problem.rows * partition.tiles, kBlockWarps), kBlockWarps, 0);
  if (!problem.d_encoder) return status;
  if (status == 0) {
    status = launch(&nade_units<T>, partition.parts * partition.blocks, 1,
                    UnitScan<T>::kSharedElements * static_cast<int64_t>(sizeof(T)));
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
  return parts * 2 * problem.visible * problem.hidden * computed_bytes(problem.type) +
         words * static_cast<int64_t>(sizeof(uint32_t));
}

Status nade_backward(const NadeBackward& problem, int64_t most_blocks, void* workspace, Stream stream) {
  return problem.type == ElementType::kFloat64 ? backward<double>(problem, most_blocks, workspace, stream)
                                               : backward<float>(problem, most_blocks, workspace, stream);
}

}  // namespace rnnkernels::cuda
