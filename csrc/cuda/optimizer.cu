// The optimizers with clipping on a GPU; core/optimizer.h has the equations and core/update_rules.h the
// rules.
//
//   upload        writes leaves and groups into the workspace (upload.h)
//   norm pass     one block per chunk: sum |g|^p in float64, in a fixed order, and max |g|. The last block to
//                 finish joins the sums of all chunks, and writes the norm, the decision whether to update,
//                 the coefficients of each leaf, and the state that the next step reads.
//   update pass   one block per chunk: the rule
//
// Chunks are fixed, and so is the thread that processes an element. So results are the same bits on every
// run, for any number of blocks and any alignment of the arrays. max |g| needs no further memory traffic. It
// distinguishes gradients that are not finite from powers that are beyond the range of float64. Only for the
// latter, the last block reads all gradients a second time, alone.
#include "cuda/device.h"
#include "cuda/optimizer.h"
#include "cuda/packs.h"
#include "cuda/upload.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // minimum per multiprocessor; with more, the compiler spills registers
constexpr int kWarps = kThreads / device::kWarpLanes;

// sum (|g| / unit)^p and max |g|, over a thread's part of a chunk or over several parts.
struct Sums {
  double powers = 0, largest = 0;
};

// The coefficients of a leaf, in float or double.
struct alignas(8) CoefficientsOfLeaf {
  char bytes[80];
};

// The kernels' arguments: the workspace, whose parts have this order, and values of the call.
struct Arguments {
  const Leaf* leaves;
  const GroupProblem* groups;
  unsigned* arrived;                 // number of blocks that have finished the norm pass
  unsigned* skip;                    // whether the update is skipped
  CoefficientsOfLeaf* coefficients;  // [count]
  Sums* partial;                     // [chunks]
  int64_t count, chunks, group_count;
  double norm_type, unit;
};
constexpr int kCounters = 2;  // arrived and skip

// Byte offsets in a block's shared memory.
constexpr int64_t kSumsAt = 0, kLastAt = kWarps * sizeof(Sums), kSharedBytes = kLastAt + sizeof(int);

// --- Both passes ---------------------------------------------------------------------------------------

RNNKERNELS_DEVICE int64_t begin_of(const Leaf& leaf, int64_t chunk) {
  return (chunk - leaf.first_chunk) * kChunkElements;
}
RNNKERNELS_DEVICE int64_t end_of(const Leaf& leaf, int64_t chunk) {
  const int64_t end = begin_of(leaf, chunk) + kChunkElements;
  return end < leaf.size ? end : leaf.size;
}

// --- The norm pass -------------------------------------------------------------------------------------

// The maximum; NaN if either is NaN.
template <class T>
RNNKERNELS_DEVICE T larger(T a, T b) {
  return b > a || b != b ? b : a;
}
RNNKERNELS_DEVICE Sums join(const Sums& a, const Sums& b) {
  return {a.powers + b.powers, larger(a.largest, b.largest)};
}

// Joins the values of groups of `lanes` adjacent lanes; every lane of a group returns the result.
RNNKERNELS_DEVICE Sums join_lanes(Sums mine, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    mine = join(mine, {device::shuffle_xor(mine.powers, mask), device::shuffle_xor(mine.largest, mask)});
  }
  return mine;
}

// Joins the values of all threads of the block; every thread returns the result. It may be called again at
// once.
RNNKERNELS_DEVICE Sums join_block(const Sums& mine) {
  const device::Shared<Sums> sums = device::shared_memory<Sums>(kSumsAt, kWarps);
  const int thread = device::place().thread;
  const Sums of_warp = join_lanes(mine, device::kWarpLanes);
  if (thread % device::kWarpLanes == 0) sums.set(thread / device::kWarpLanes, of_warp);
  device::sync_block();
  const Sums all = join_lanes(sums[thread % kWarps], kWarps);
  device::sync_block();
  return all;
}

RNNKERNELS_DEVICE void add_chunk(const Arguments& args, int64_t chunk, double unit, Sums& sums) {
  const double p = args.norm_type;
  const Leaf& leaf = args.leaves[leaf_of_chunk(args.leaves, args.count, chunk)];
  with_element(leaf.grad_type, [&](auto element) {
    using E = decltype(element);
    const E* grad = static_cast<const E*>(leaf.grad);
    const bool aligned = is_aligned(grad);
    ComputeType<E> largest = 0;
    for_packs(begin_of(leaf, chunk), end_of(leaf, chunk), [&](int64_t i, int count) {
      ComputeType<E> g[kPack];
      load(grad + i, count, aligned && count == kPack, g);
      RNNKERNELS_UNROLL
      for (int k = 0; k < kPack; ++k) {  // elements beyond `count` are 0 and add nothing
        const ComputeType<E> magnitude = g[k] < 0 ? -g[k] : g[k];
        largest = larger(largest, magnitude);
        if (p == __builtin_inf()) continue;
        const double x = unit == 1 ? double(magnitude) : double(magnitude) / unit;
        sums.powers += p == 2 ? x * x : p == 1 ? x : __builtin_pow(x, p);
      }
    });
    sums.largest = larger(sums.largest, double(largest));
  });
}

// Whether this block is the last of the grid to call this function.
RNNKERNELS_DEVICE bool last_to_arrive(unsigned* arrived) {
  const device::Shared<int> last = device::shared_memory<int>(kLastAt, 1);
  const device::Place me = device::place();
  device::sync_block();
  if (me.thread == 0) {
    const bool is_last = device::add_release(arrived, 1) + 1 == static_cast<unsigned>(me.blocks);
    if (is_last) device::load_acquire(arrived);
    last.set(0, is_last);
  }
  device::sync_block();
  return last[0] != 0;
}

// Joins the sums of all chunks, in one block, after all of them have been written.
RNNKERNELS_DEVICE Sums join_chunks(const Arguments& args) {
  Sums mine;
  for (int64_t i = device::place().thread; i < args.chunks; i += kThreads) mine = join(mine, args.partial[i]);
  return join_block(mine);
}

// Writes the sums of all chunks of all leaves. Returns true in the last block, which continues alone.
RNNKERNELS_DEVICE bool sum_chunks(const Arguments& args) {
  const device::Place me = device::place();
  for (int64_t chunk = me.block; chunk < args.chunks; chunk += me.blocks) {
    Sums mine;
    add_chunk(args, chunk, args.unit, mine);
    const Sums sums = join_block(mine);
    if (me.thread == 0) args.partial[chunk] = sums;
  }
  return last_to_arrive(args.arrived);
}

RNNKERNELS_DEVICE double find_norm(const Arguments& args) {
  const double p = args.norm_type;
  const Sums all = join_chunks(args);
  if (p == __builtin_inf() || all.largest == 0 || all.largest - all.largest != 0) return all.largest;
  if (in_range(all.powers, p)) return norm_of(all.powers, p, 1.0);
  Sums again;
  for (int64_t chunk = 0; chunk < args.chunks; ++chunk) add_chunk(args, chunk, all.largest, again);
  return norm_of(join_block(again).powers, p, all.largest);
}

template <class Rule, class T>
RNNKERNELS_DEVICE typename Rule::template Coefficients<T>* coefficients_in(CoefficientsOfLeaf* place) {
  static_assert(sizeof(typename Rule::template Coefficients<T>) <= sizeof(CoefficientsOfLeaf));
  return reinterpret_cast<typename Rule::template Coefficients<T>*>(place);
}

template <class Rule>
RNNKERNELS_DEVICE void make_factors(const Arguments& args, double norm, double scale, int64_t i) {
  const Leaf& leaf = args.leaves[i];
  const LeafStep<Rule> step(leaf, args.groups[leaf.group], norm, scale);
  if (leaf.type == ElementType::kFloat64) {
    *coefficients_in<Rule, double>(args.coefficients + i) = step.template coefficients<double>();
  } else {
    *coefficients_in<Rule, float>(args.coefficients + i) = step.template coefficients<float>();
  }
}

// Writes everything that the update pass and the next step read of the norm pass; in one block.
template <class Rule>
RNNKERNELS_DEVICE void settle(const StepProblem& problem, const Arguments& args, double norm) {
  const int thread = device::place().thread;
  const double scale = value_of(problem.grad_scale);
  norm /= scale;
  for (int64_t i = thread; i < args.count; i += kThreads) make_factors<Rule>(args, norm, scale, i);
  if (thread == 0) *args.skip = record_step(problem, norm);
  device::sync_block();
  if (*args.skip) return;
  for (int64_t i = thread; i < args.count; i += kThreads) count_step(args.leaves[i]);
  for (int64_t i = thread; i < args.group_count; i += kThreads) keep_momentum(args.groups[i]);
}

template <class Rule>
RNNKERNELS_KERNEL(kThreads, kBlocks)
norm_pass(RNNKERNELS_ARGUMENT StepProblem problem, RNNKERNELS_ARGUMENT Arguments args) {
  if (problem.norm_is_known) {
    settle<Rule>(problem, args, value_of(problem.norm));
  } else if (sum_chunks(args)) {
    settle<Rule>(problem, args, find_norm(args));
  }
}

RNNKERNELS_KERNEL(kThreads, kBlocks) power_sum_pass(RNNKERNELS_ARGUMENT Arguments args, double* sum) {
  if (!sum_chunks(args)) return;
  const Sums all = join_chunks(args);
  if (device::place().thread == 0) *sum = args.norm_type == __builtin_inf() ? all.largest : all.powers;
}

// --- The update pass -----------------------------------------------------------------------------------

template <class Rule, class P, class G>
RNNKERNELS_DEVICE void update_run(const Leaf& leaf, int64_t begin, int64_t end,
                                  const typename Rule::template Coefficients<ComputeType<P>>& coefficients) {
  using T = ComputeType<P>;
  P* __restrict__ param = static_cast<P*>(leaf.param);
  const G* __restrict__ grad = static_cast<const G*>(leaf.grad);
  T* __restrict__ first = static_cast<T*>(leaf.state[0]);
  T* __restrict__ second = static_cast<T*>(leaf.state[Rule::kStates - 1]);
  T* __restrict__ master = static_cast<T*>(leaf.master);
  const bool aligned =
      is_aligned(param) && is_aligned(grad) && is_aligned(first) && is_aligned(second) && is_aligned(master);
  for_packs(begin, end, [&](int64_t i, int count) {
    const bool whole = aligned && count == kPack;
    T theta[kPack], g[kPack], a[kPack], b[kPack] = {};
    const Pack<P> before = load(param + i, count, whole);
    if (master) load(master + i, count, whole, theta);
    RNNKERNELS_UNROLL
    for (int k = 0; k < kPack; ++k) {
      theta[k] = master ? start_of(before.x[k], theta[k]) : static_cast<T>(widen(before.x[k]));
    }
    load(grad + i, count, whole, g);
    load(first + i, count, whole, a);
    if constexpr (Rule::kStates > 1) load(second + i, count, whole, b);
    RNNKERNELS_UNROLL
    for (int k = 0; k < kPack; ++k) {
      T state[2] = {a[k], b[k]};
      theta[k] = Rule::template update<T>(theta[k], g[k], state, coefficients);
      a[k] = state[0];
      b[k] = state[1];
    }
    store(first + i, count, whole, a);
    if constexpr (Rule::kStates > 1) store(second + i, count, whole, b);
    if (master) store(master + i, count, whole, theta);
    store(param + i, count, whole, theta);
  });
}

template <class Rule, class P>
RNNKERNELS_DEVICE void update_chunk(const Arguments& args, int64_t place, int64_t chunk) {
  const Leaf& leaf = args.leaves[place];
  const auto coefficients = *coefficients_in<Rule, ComputeType<P>>(args.coefficients + place);
  const int64_t begin = begin_of(leaf, chunk), end = end_of(leaf, chunk);
  if (leaf.grad_type == leaf.type) {
    update_run<Rule, P, P>(leaf, begin, end, coefficients);
  } else {
    update_run<Rule, P, float>(leaf, begin, end, coefficients);
  }
}

// In reverse order, because the gradients that the norm pass read last are still in L2.
template <class Rule>
RNNKERNELS_KERNEL(kThreads, kBlocks)
update_pass(RNNKERNELS_ARGUMENT Arguments args) {
  if (*args.skip) return;
  const device::Place me = device::place();
  for (int64_t chunk = args.chunks - 1 - me.block; chunk >= 0; chunk -= me.blocks) {
    const int64_t place = leaf_of_chunk(args.leaves, args.count, chunk);
    with_element(args.leaves[place].type,
                 [&](auto element) { update_chunk<Rule, decltype(element)>(args, place, chunk); });
  }
}

// --- Launches ------------------------------------------------------------------------------------------

// Writes the tables into the workspace, and fills in the arguments.
template <class Problem>
Status prepare(const Problem& problem, const GroupProblem* groups, int64_t group_count, void* workspace,
               Stream stream, Arguments* args) {
  const unsigned counters[kCounters] = {};
  Upload upload(workspace, stream);
  args->leaves = upload.add(problem.leaves, problem.count);
  args->groups = upload.add(groups, group_count);
  args->arrived = upload.add(counters, kCounters);
  args->skip = args->arrived + 1;
  args->coefficients = static_cast<CoefficientsOfLeaf*>(upload.end());
  args->partial = reinterpret_cast<Sums*>(args->coefficients + problem.count);
  args->count = problem.count;
  args->chunks = problem.chunks;
  args->group_count = group_count;
  args->norm_type = problem.norm_type;
  args->unit = 1;
  return upload.finish();
}

device::Grid grid_of(int64_t chunks, int64_t most_blocks) {
  device::Grid grid;
  grid.blocks = chunks < 1 ? 1 : chunks < most_blocks ? chunks : most_blocks;
  grid.threads = kThreads;
  grid.shared_bytes = kSharedBytes;
  return grid;
}

int64_t workspace_bytes(int64_t leaves, int64_t groups, int64_t chunks) {
  return leaves * int64_t{sizeof(Leaf) + sizeof(CoefficientsOfLeaf)} +
         groups * int64_t{sizeof(GroupProblem)} + kCounters * int64_t{sizeof(unsigned)} +
         chunks * int64_t{sizeof(Sums)};
}

}  // namespace

int64_t workspace_bytes(const StepProblem& problem) {
  return workspace_bytes(problem.count, problem.group_count, problem.chunks);
}
int64_t workspace_bytes(const PowerSum& problem) { return workspace_bytes(problem.count, 0, problem.chunks); }

template <class Rule>
Status optimizer_step(const StepProblem& problem, int64_t most_blocks, void* workspace, Stream stream) {
  Arguments args{};
  Status status = prepare(problem, problem.groups, problem.group_count, workspace, stream, &args);
  const device::Grid grid = grid_of(problem.chunks, most_blocks);
  const device::Grid norm_grid = problem.norm_is_known ? grid_of(1, 1) : grid;
  if (status == 0) status = device::launch(norm_grid, stream, &norm_pass<Rule>, problem, args);
  if (status == 0) status = device::launch(grid, stream, &update_pass<Rule>, args);
  return status;
}
template Status optimizer_step<NesterovRule>(const StepProblem&, int64_t, void*, Stream);
template Status optimizer_step<AdamWRule>(const StepProblem&, int64_t, void*, Stream);

Status power_sum(const PowerSum& problem, double* sum, int64_t most_blocks, void* workspace, Stream stream) {
  Arguments args{};
  const Status status = prepare(problem, nullptr, 0, workspace, stream, &args);
  args.unit = problem.unit;
  if (status != 0) return status;
  return device::launch(grid_of(problem.chunks, most_blocks), stream, &power_sum_pass, args, sum);
}

}  // namespace rnnkernels::cuda
