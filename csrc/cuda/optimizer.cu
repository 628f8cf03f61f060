// The clipped optimizers on a GPU; the rules are those of core/update_rules.h.
//
//   write         leaves and groups into the workspace (upload.h)
//   norm pass     a block a chunk: sum of |g|^p in float64, in a fixed order, and max |g|; the last block to
//                 arrive joins the chunks', and leaves on the device the norm, whether there is an update,
//                 its factors for each leaf, and what the next step finds
//   update pass   a block a chunk: the rule
//
// Fixed chunks, and a fixed thread for each element: the same bits on every run, whatever the number of
// blocks and wherever the arrays lie. max |g| costs no memory traffic and tells a gradient that is not finite
// from powers that left float64's range; only for the latter does the last block read all gradients again, by
// itself.
#include "cuda/device.h"
#include "cuda/optimizer.h"
#include "cuda/packs.h"
#include "cuda/upload.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // on a multiprocessor at least; asked for more, the compiler spills registers
constexpr int kWarps = kThreads / device::kWarpLanes;

// A thread's part of one chunk, or what was joined of several: sum of (|g| / unit)^p and max |g|.
struct Sums {
  double powers = 0, largest = 0;
};

// Of a leaf, in either type.
struct alignas(8) FactorsOfLeaf {
  char bytes[80];
};

// What lies in the workspace, in this order, and what of a call the kernels read besides.
struct Pass {
  const Leaf* leaves;
  const GroupProblem* groups;
  unsigned* arrived;       // blocks that are done with the norm pass
  unsigned* skip;          // its verdict
  FactorsOfLeaf* factors;  // [count]
  Sums* partial;           // [chunks]
  int64_t count, chunks, group_count;
  double norm_type, unit;
};
constexpr int kCounters = 2;  // arrived and skip

// A block's shared memory, in bytes.
constexpr int64_t kSumsAt = 0, kLastAt = kWarps * sizeof(Sums), kSharedBytes = kLastAt + sizeof(int);

// --- What both passes read ----------------------------------------------------------------------------

RNNKERNELS_DEVICE int64_t begin_of(const Leaf& leaf, int64_t chunk) {
  return (chunk - leaf.first_chunk) * kChunkElements;
}
RNNKERNELS_DEVICE int64_t end_of(const Leaf& leaf, int64_t chunk) {
  const int64_t end = begin_of(leaf, chunk) + kChunkElements;
  return end < leaf.size ? end : leaf.size;
}

// --- The norm pass -------------------------------------------------------------------------------------

// Once a NaN, always a NaN.
template <class T>
RNNKERNELS_DEVICE T larger(T a, T b) {
  return b > a || b != b ? b : a;
}
RNNKERNELS_DEVICE Sums join(const Sums& a, const Sums& b) {
  return {a.powers + b.powers, larger(a.largest, b.largest)};
}

// Of as many neighbouring lanes, for each of them.
RNNKERNELS_DEVICE Sums join_lanes(Sums mine, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    mine = join(mine, {device::shuffle_xor(mine.powers, mask), device::shuffle_xor(mine.largest, mask)});
  }
  return mine;
}

// Over the block, for all of its threads, which may go on to the next at once.
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

RNNKERNELS_DEVICE void add_chunk(const Pass& pass, int64_t chunk, double unit, Sums& sums) {
  const double p = pass.norm_type;
  const Leaf& leaf = pass.leaves[leaf_of_chunk(pass.leaves, pass.count, chunk)];
  with_element(leaf.grad_type, [&](auto element) {
    using E = decltype(element);
    const E* grad = static_cast<const E*>(leaf.grad);
    const bool aligned = is_aligned(grad);
    Number<E> largest = 0;
    for_packs(begin_of(leaf, chunk), end_of(leaf, chunk), [&](int64_t i, int count) {
      Number<E> g[kPack];
      load(grad + i, count, aligned && count == kPack, g);
      RNNKERNELS_UNROLL
      for (int k = 0; k < kPack; ++k) {  // beyond `count` zeros, which add nothing
        const Number<E> magnitude = g[k] < 0 ? -g[k] : g[k];
        largest = larger(largest, magnitude);
        if (p == __builtin_inf()) continue;
        const double x = unit == 1 ? double(magnitude) : double(magnitude) / unit;
        sums.powers += p == 2 ? x * x : p == 1 ? x : __builtin_pow(x, p);
      }
    });
    sums.largest = larger(sums.largest, double(largest));
  });
}

// Whether this block is the last of all to come here.
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

// Of all chunks, by one block, when they are there.
RNNKERNELS_DEVICE Sums join_chunks(const Pass& pass) {
  Sums mine;
  for (int64_t i = device::place().thread; i < pass.chunks; i += kThreads) mine = join(mine, pass.partial[i]);
  return join_block(mine);
}

// All chunks of all leaves. True for the block that is to go on alone.
RNNKERNELS_DEVICE bool sum_chunks(const Pass& pass) {
  const device::Place me = device::place();
  for (int64_t chunk = me.block; chunk < pass.chunks; chunk += me.blocks) {
    Sums mine;
    add_chunk(pass, chunk, pass.unit, mine);
    const Sums sums = join_block(mine);
    if (me.thread == 0) pass.partial[chunk] = sums;
  }
  return last_to_arrive(pass.arrived);
}

RNNKERNELS_DEVICE double find_norm(const Pass& pass) {
  const double p = pass.norm_type;
  const Sums all = join_chunks(pass);
  if (p == __builtin_inf() || all.largest == 0 || all.largest - all.largest != 0) return all.largest;
  if (in_range(all.powers, p)) return norm_of(all.powers, p, 1.0);
  Sums again;
  for (int64_t chunk = 0; chunk < pass.chunks; ++chunk) add_chunk(pass, chunk, all.largest, again);
  return norm_of(join_block(again).powers, p, all.largest);
}

template <class Rule, class T>
RNNKERNELS_DEVICE typename Rule::template Factors<T>* factors_in(FactorsOfLeaf* place) {
  static_assert(sizeof(typename Rule::template Factors<T>) <= sizeof(FactorsOfLeaf));
  return reinterpret_cast<typename Rule::template Factors<T>*>(place);
}

template <class Rule>
RNNKERNELS_DEVICE void make_factors(const Pass& pass, double norm, double scale, int64_t i) {
  const Leaf& leaf = pass.leaves[i];
  const LeafStep<Rule> step(leaf, pass.groups[leaf.group], norm, scale);
  if (leaf.type == ElementType::kFloat64) {
    *factors_in<Rule, double>(pass.factors + i) = step.template factors<double>();
  } else {
    *factors_in<Rule, float>(pass.factors + i) = step.template factors<float>();
  }
}

// All that the update pass and the next step need to know of the norm, by one block.
template <class Rule>
RNNKERNELS_DEVICE void settle(const StepProblem& problem, const Pass& pass, double norm) {
  const int thread = device::place().thread;
  const double scale = value_of(problem.grad_scale);
  norm /= scale;
  for (int64_t i = thread; i < pass.count; i += kThreads) make_factors<Rule>(pass, norm, scale, i);
  if (thread == 0) *pass.skip = record_step(problem, norm);
  device::sync_block();
  if (*pass.skip) return;
  for (int64_t i = thread; i < pass.count; i += kThreads) count_step(pass.leaves[i]);
  for (int64_t i = thread; i < pass.group_count; i += kThreads) keep_momentum(pass.groups[i]);
}

template <class Rule>
RNNKERNELS_KERNEL(kThreads, kBlocks)
norm_pass(RNNKERNELS_ARGUMENT StepProblem problem, RNNKERNELS_ARGUMENT Pass pass) {
  if (problem.norm_is_known) {
    settle<Rule>(problem, pass, value_of(problem.norm));
  } else if (sum_chunks(pass)) {
    settle<Rule>(problem, pass, find_norm(pass));
  }
}

RNNKERNELS_KERNEL(kThreads, kBlocks) power_sum_pass(RNNKERNELS_ARGUMENT Pass pass, double* sum) {
  if (!sum_chunks(pass)) return;
  const Sums all = join_chunks(pass);
  if (device::place().thread == 0) *sum = pass.norm_type == __builtin_inf() ? all.largest : all.powers;
}

// --- The update pass -----------------------------------------------------------------------------------

template <class Rule, class P, class G>
RNNKERNELS_DEVICE void update_run(const Leaf& leaf, int64_t begin, int64_t end,
                                  const typename Rule::template Factors<Number<P>>& factors) {
  using T = Number<P>;
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
    if (master) {
      load(master + i, count, whole, theta);
    } else {
      load(param + i, count, whole, theta);
    }
    load(grad + i, count, whole, g);
    load(first + i, count, whole, a);
    if constexpr (Rule::kStates > 1) load(second + i, count, whole, b);
    RNNKERNELS_UNROLL
    for (int k = 0; k < kPack; ++k) {
      T state[2] = {a[k], b[k]};
      theta[k] = Rule::template update<T>(theta[k], g[k], state, factors);
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
RNNKERNELS_DEVICE void update_chunk(const Pass& pass, int64_t place, int64_t chunk) {
  const Leaf& leaf = pass.leaves[place];
  const auto factors = *factors_in<Rule, Number<P>>(pass.factors + place);
  const int64_t begin = begin_of(leaf, chunk), end = end_of(leaf, chunk);
  if (leaf.grad_type == leaf.type) {
    update_run<Rule, P, P>(leaf, begin, end, factors);
  } else {
    update_run<Rule, P, float>(leaf, begin, end, factors);
  }
}

// Backwards, because the gradients that were read last are still in the second cache.
template <class Rule>
RNNKERNELS_KERNEL(kThreads, kBlocks)
update_pass(RNNKERNELS_ARGUMENT Pass pass) {
  if (*pass.skip) return;
  const device::Place me = device::place();
  for (int64_t chunk = pass.chunks - 1 - me.block; chunk >= 0; chunk -= me.blocks) {
    const int64_t place = leaf_of_chunk(pass.leaves, pass.count, chunk);
    with_element(pass.leaves[place].type,
                 [&](auto element) { update_chunk<Rule, decltype(element)>(pass, place, chunk); });
  }
}

// --- Launches ------------------------------------------------------------------------------------------

// Writes the tables into the workspace.
Status prepare(const Leaf* leaves, int64_t count, int64_t chunks, const GroupProblem* groups,
               int64_t group_count, void* workspace, Stream stream, Pass* pass) {
  const unsigned counters[kCounters] = {};
  Upload upload(workspace, stream);
  pass->leaves = upload.add(leaves, count);
  pass->groups = upload.add(groups, group_count);
  pass->arrived = upload.add(counters, kCounters);
  pass->skip = pass->arrived + 1;
  pass->factors = static_cast<FactorsOfLeaf*>(upload.end());
  pass->partial = reinterpret_cast<Sums*>(pass->factors + count);
  pass->count = count;
  pass->chunks = chunks;
  pass->group_count = group_count;
  return upload.finish();
}

device::Grid grid_of(int64_t chunks, int64_t most_blocks) {
  device::Grid grid;
  grid.blocks = chunks < 1 ? 1 : chunks < most_blocks ? chunks : most_blocks;
  grid.threads = kThreads;
  grid.shared_bytes = kSharedBytes;
  return grid;
}

template <class Rule>
Status step(StepProblem problem, int64_t most_blocks, void* workspace, Stream stream) {
  Pass pass{};
  Status status = prepare(problem.leaves, problem.count, problem.chunks, problem.groups, problem.group_count,
                          workspace, stream, &pass);
  pass.norm_type = problem.norm_type;
  pass.unit = 1;
  const device::Grid grid = grid_of(problem.chunks, most_blocks);
  const device::Grid of_norm = problem.norm_is_known ? grid_of(1, 1) : grid;
  if (status == 0) status = device::launch(of_norm, stream, &norm_pass<Rule>, problem, pass);
  if (status == 0) status = device::launch(grid, stream, &update_pass<Rule>, pass);
  return status;
}

int64_t workspace_bytes(int64_t leaves, int64_t groups, int64_t chunks) {
  return leaves * int64_t{sizeof(Leaf) + sizeof(FactorsOfLeaf)} + groups * int64_t{sizeof(GroupProblem)} +
         kCounters * int64_t{sizeof(unsigned)} + chunks * int64_t{sizeof(Sums)};
}

}  // namespace

int64_t workspace_bytes(const StepProblem& problem) {
  return workspace_bytes(problem.count, problem.group_count, problem.chunks);
}
int64_t workspace_bytes(const PowerSum& problem) { return workspace_bytes(problem.count, 0, problem.chunks); }

Status nesterov_step(const StepProblem& problem, int64_t most_blocks, void* workspace, Stream stream) {
  return step<NesterovRule>(problem, most_blocks, workspace, stream);
}
Status adamw_step(const StepProblem& problem, int64_t most_blocks, void* workspace, Stream stream) {
  return step<AdamWRule>(problem, most_blocks, workspace, stream);
}

Status power_sum(const PowerSum& problem, double* sum, int64_t most_blocks, void* workspace, Stream stream) {
  Pass pass{};
  const Status status =
      prepare(problem.leaves, problem.count, problem.chunks, nullptr, 0, workspace, stream, &pass);
  pass.norm_type = problem.norm_type;
  pass.unit = problem.unit;
  if (status != 0) return status;
  return device::launch(grid_of(problem.chunks, most_blocks), stream, &power_sum_pass, pass, sum);
}

}  // namespace rnnkernels::cuda
