// The clipped optimizers on a GPU; the rules are those of core/update_rules.h.
//
//   norm pass     a block a chunk: sum of |g|^p in float64, in a fixed tree, and max |g|; the last block to
//                 arrive joins the chunks' and leaves norm and verdict on the device
//   update pass   a block a chunk: coefficient from the norm, then the rule
//
// Fixed chunks and fixed trees: the same bits on every run, whatever the number of blocks. max |g| costs no
// memory traffic and tells a gradient that is not finite from powers that left float64's range; only for
// the latter does the last block read all gradients again, by itself.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/optimizer.cuh"

namespace rnnkernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // on a multiprocessor at least; asked for more, the compiler spills registers

template <class E>
struct NumberOf {
  using type = float;
};
template <>
struct NumberOf<double> {
  using type = double;
};

__device__ float number(float x) { return x; }
__device__ double number(double x) { return x; }
__device__ float number(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float number(__half x) { return __half2float(x); }
__device__ void assign(float* to, float x) { *to = x; }
__device__ void assign(double* to, double x) { *to = x; }
__device__ void assign(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ void assign(__half* to, float x) { *to = __float2half_rn(x); }

template <class Fn>
__device__ void with_element(ElementType type, const Fn& fn) {
  switch (type) {
    case ElementType::kFloat32:
      return fn(float{});
    case ElementType::kFloat64:
      return fn(double{});
    case ElementType::kBFloat16:
      return fn(__nv_bfloat16{});
    case ElementType::kFloat16:
      return fn(__half{});
  }
}

__device__ const DeviceLeaf& leaf_of(const DeviceStep& step, int64_t chunk) {
  return step.leaves[leaf_of_chunk(step.leaves, step.count, chunk)];
}

// Once a NaN, always a NaN.
__device__ double join(double a, double b, bool largest) {
  if (!largest) return a + b;
  return b > a || b != b ? b : a;
}

// The block's sum (or maximum) of one value a thread, in thread 0.
__device__ double join_block(double mine, bool largest, double* shared) {
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      shared[threadIdx.x] = join(shared[threadIdx.x], shared[threadIdx.x + half], largest);
    }
    __syncthreads();
  }
  const double result = shared[0];
  __syncthreads();  // before anybody writes the next one
  return result;
}

// A thread's part of one chunk: sum of (|g| / unit)^p and max |g|.
struct Sums {
  double powers = 0, largest = 0;
};

__device__ void add_chunk(const DeviceStep& step, int64_t chunk, double unit, Sums& sums) {
  const double p = step.norm_type;
  const DeviceLeaf& leaf = leaf_of(step, chunk);
  const int64_t begin = (chunk - leaf.first_chunk) * kChunk;
  const int64_t end = min(begin + kChunk, leaf.size);
  with_element(leaf.grad_type, [&](auto element) {
    const auto* grad = static_cast<const decltype(element)*>(leaf.grad);
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const double magnitude = fabs(static_cast<double>(number(grad[i])));
      sums.largest = join(sums.largest, magnitude, true);
      if (isinf(p)) continue;
      const double x = unit == 1 ? magnitude : magnitude / unit;
      sums.powers += p == 2 ? x * x : p == 1 ? x : pow(x, p);
    }
  });
}

// Joined over the block, for all of its threads.
__device__ Sums join_block(const Sums& mine, double* shared) {
  const double powers = join_block(mine.powers, false, shared);
  return {powers, join_block(mine.largest, true, shared)};
}

// The norm, by one block, when all chunks' sums are there.
__device__ double find_norm(const DeviceStep& step, double* shared) {
  if (step.norm) return *step.norm;
  const double p = step.norm_type;
  Sums mine;
  for (int64_t i = threadIdx.x; i < step.chunks; i += kThreads) {
    mine.powers += step.partial[2 * i];
    mine.largest = join(mine.largest, step.partial[2 * i + 1], true);
  }
  const Sums all = join_block(mine, shared);
  if (isinf(p) || all.largest == 0 || !isfinite(all.largest)) return all.largest;
  if (in_range(all.powers, p)) return norm_of(all.powers, p, 1.0);
  Sums again;
  for (int64_t chunk = 0; chunk < step.chunks; ++chunk) add_chunk(step, chunk, all.largest, again);
  return norm_of(join_block(again, shared).powers, p, all.largest);
}

// By the block that came last: what this step does, as in binding/optimizer.cpp.
__device__ void decide(const DeviceStep& step, double* shared) {
  const double norm = find_norm(step, shared) / (step.grad_scale ? *step.grad_scale : 1.0);
  if (threadIdx.x != 0) return;
  const bool found_inf = step.found_inf && *step.found_inf != 0;
  const bool skip = found_inf || (!isfinite(norm) && !step.apply_nonfinite);
  const bool raises = skip && !found_inf && step.raise_nonfinite;
  step.record[0] = norm;
  step.record[1] += skip && !raises;
  step.record[2] += !skip;
  step.record[3] = raises;
  *step.skip = skip;
}

__device__ double value_of(const DeviceSetting& setting) {
  return setting.on_device ? *setting.on_device : setting.number;
}

template <class Rule>
__device__ typename Rule::Settings settings_of(const DeviceGroup& group);
template <>
__device__ NesterovRule::Settings settings_of<NesterovRule>(const DeviceGroup& group) {
  const DeviceSetting* s = group.settings;
  return {value_of(s[0]), value_of(s[2]), *group.previous_momentum, value_of(s[1])};
}
template <>
__device__ AdamWRule::Settings settings_of<AdamWRule>(const DeviceGroup& group) {
  const DeviceSetting* s = group.settings;
  return {value_of(s[0]), value_of(s[2]), value_of(s[3]), value_of(s[4]), value_of(s[1])};
}

template <class Rule, class P, class G>
__device__ void update_run(const DeviceLeaf& leaf, int64_t begin, int64_t end,
                           const typename Rule::template Factors<typename NumberOf<P>::type>& factors) {
  using T = typename NumberOf<P>::type;
  P* __restrict__ param = static_cast<P*>(leaf.param);
  const G* __restrict__ grad = static_cast<const G*>(leaf.grad);
  T* __restrict__ first = static_cast<T*>(leaf.state[0]);
  T* __restrict__ second = static_cast<T*>(leaf.state[1]);
  T* __restrict__ master = static_cast<T*>(leaf.master);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    T state[2] = {first[i], T(0)};
    if constexpr (Rule::kStates > 1) state[1] = second[i];
    const T theta = master ? master[i] : T(number(param[i]));
    const T after = Rule::template update<T>(theta, T(number(grad[i])), state, factors);
    first[i] = state[0];
    if constexpr (Rule::kStates > 1) second[i] = state[1];
    if (master) master[i] = after;
    assign(param + i, after);
  }
}

// One thread works out the factors, because AdamW's powers of beta cost more than a thread's elements.
template <class Rule, class P>
__device__ void update_chunk_of(const DeviceStep& step, const DeviceLeaf& leaf, int64_t chunk) {
  using T = typename NumberOf<P>::type;
  __shared__ typename Rule::template Factors<T> shared;
  if (threadIdx.x == 0) {
    const DeviceGroup& group = step.groups[leaf.group];
    const double scale = step.grad_scale ? *step.grad_scale : 1.0;
    const double c =
        clip_coefficient(step.record[0], value_of(group.max_norm)) / (group.maximize ? -scale : scale);
    const double t = leaf.step_count ? *leaf.step_count + 1.0 : 0.0;
    shared = Rule::template factors<T>(settings_of<Rule>(group), c, t);
  }
  __syncthreads();
  const auto factors = shared;
  __syncthreads();  // before the next chunk's are written
  const int64_t begin = (chunk - leaf.first_chunk) * kChunk;
  const int64_t end = min(begin + kChunk, leaf.size);
  if (leaf.grad_type == leaf.type) {
    update_run<Rule, P, P>(leaf, begin, end, factors);
  } else {
    update_run<Rule, P, float>(leaf, begin, end, factors);
  }
}

template <class Rule>
__device__ void update_chunk(const DeviceStep& step, int64_t chunk) {
  const DeviceLeaf& leaf = leaf_of(step, chunk);
  with_element(leaf.type, [&](auto element) { update_chunk_of<Rule, decltype(element)>(step, leaf, chunk); });
}

// Whether this block is the last of all to come here. The count is back at zero afterwards.
__device__ bool last_to_arrive(unsigned* arrived) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    if (last) *arrived = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// When every element is done: what the next step finds.
template <class Rule>
__device__ void finish(const DeviceStep& step) {
  for (int64_t i = threadIdx.x; i < step.count; i += kThreads) {
    if (step.leaves[i].step_count) *step.leaves[i].step_count += 1;
  }
  for (int i = threadIdx.x; i < step.group_count; i += kThreads) {
    const DeviceGroup& group = step.groups[i];
    if (group.previous_momentum) *group.previous_momentum = value_of(group.settings[2]);
  }
}

__device__ void norm_pass(const DeviceStep& step, double* shared) {
  for (int64_t chunk = blockIdx.x; !step.norm && chunk < step.chunks; chunk += gridDim.x) {
    Sums mine;
    add_chunk(step, chunk, 1.0, mine);
    const Sums sums = join_block(mine, shared);
    if (threadIdx.x != 0) continue;
    step.partial[2 * chunk] = sums.powers;
    step.partial[2 * chunk + 1] = sums.largest;
  }
  if (last_to_arrive(step.arrived)) decide(step, shared);
}

// Backwards, because the gradients that were read last are still in the second cache.
template <class Rule>
__device__ void update_pass(const DeviceStep& step) {
  if (*step.skip) return;
  for (int64_t left = step.chunks - 1 - blockIdx.x; left >= 0; left -= gridDim.x)
    update_chunk<Rule>(step, left);
  if (last_to_arrive(step.arrived)) finish<Rule>(step);
}

__global__ void __launch_bounds__(kThreads, kBlocks) norm_kernel(const DeviceStep step) {
  __shared__ double shared[kThreads];
  norm_pass(step, shared);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kBlocks) update_kernel(const DeviceStep step) {
  update_pass<Rule>(step);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kBlocks) step_kernel(const DeviceStep step) {
  __shared__ double shared[kThreads];
  norm_pass(step, shared);
  cooperative_groups::this_grid().sync();
  update_pass<Rule>(step);
}

template <class Rule>
cudaError_t launch(const DeviceStep& step, int blocks, bool cooperative, cudaStream_t stream) {
  if (cooperative) {
    DeviceStep copy = step;
    void* arguments[] = {&copy};
    return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(&step_kernel<Rule>), dim3(blocks),
                                       dim3(kThreads), arguments, 0, stream);
  }
  norm_kernel<<<blocks, kThreads, 0, stream>>>(step);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  update_kernel<Rule><<<blocks, kThreads, 0, stream>>>(step);
  return cudaGetLastError();
}

template <class Rule>
cudaError_t blocks_that_fit(int* blocks) {
  int device = 0, units = 0, each = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&units, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, step_kernel<Rule>, kThreads, 0);
  }
  *blocks = units * each;
  return error;
}

}  // namespace

cudaError_t nesterov_step(const DeviceStep& step, int blocks, bool cooperative, cudaStream_t stream) {
  return launch<NesterovRule>(step, blocks, cooperative, stream);
}
cudaError_t adamw_step(const DeviceStep& step, int blocks, bool cooperative, cudaStream_t stream) {
  return launch<AdamWRule>(step, blocks, cooperative, stream);
}
cudaError_t nesterov_blocks(int* blocks) { return blocks_that_fit<NesterovRule>(blocks); }
cudaError_t adamw_blocks(int* blocks) { return blocks_that_fit<AdamWRule>(blocks); }

}  // namespace rnnkernels::cuda
