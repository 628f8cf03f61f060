// Measures the latencies that a step of a recurrence consists of, in seconds, and prints one JSON object:
//
//   barrier_s        a barrier of a block of 512 threads
//   shared_read_s    a read from the block's shared memory
//   product_s        a product of a warp (m16n8k16 of bfloat16) that depends on the previous one
//   cluster_read_s   a read from the shared memory of another block of the cluster (sm_90 and later)
//   flag_s           a flag of one block becomes visible to another block through L2
//
// Each is measured as a chain of n dependent operations. The difference to a chain of 2 n has no launch.
//   nvcc -O3 -std=c++20 -arch=sm_90a -I csrc benchmarks/latencies.cu -o latencies
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda/device.h"

using namespace rnnkernels::device;

namespace {

constexpr int kChain = 20000;
constexpr int kRuns = 5;
constexpr int kApart = 64;  // distance of the flags, so that each has a cache line of its own

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::printf("\n{\"error\": \"%s\"}\n", cudaGetErrorString(status));
  std::exit(1);
}

__global__ void barriers(int n, unsigned* /*out*/) {
  for (int i = 0; i < n; ++i) sync_block();
}

// Follows a ring of 32 indices, each of which is the position of the next one.
__device__ unsigned follow(int n, const Shared<unsigned>& ring) {
  unsigned at = threadIdx.x;
  for (int i = 0; i < n; ++i) at = ring[at];
  return at;
}

__global__ void shared_reads(int n, unsigned* out) {
  const auto ring = shared_memory<unsigned>(0, 32);
  ring.set(threadIdx.x, (threadIdx.x * 5 + 1) % 32);
  sync_block();
  out[threadIdx.x] = follow(n, ring);
}

__global__ void cluster_reads(int n, unsigned* out) {
  const auto ring = shared_memory<unsigned>(0, 32);
  ring.set(threadIdx.x, (threadIdx.x * 5 + 1) % 32);
  sync_cluster();
  out[threadIdx.x] = follow(n, ring.of_peer(place().cluster_rank ^ 1));
  sync_cluster();  // no block ends while another one reads its memory
}

__global__ void products(int n, unsigned* out) {
  Sums sums{};
  const BFloat16Fragments::A a{{out[0], out[1], out[2], out[3]}};
  const BFloat16Fragments::B b{{out[4], out[5]}};
  for (int i = 0; i < n; ++i) multiply_add(sums, a, b);
  out[threadIdx.x] = __float_as_uint(sums.x[0] + sums.x[1] + sums.x[2] + sums.x[3]);
}

// Two blocks of one thread each. The number of tries is limited, so that the kernel ends in any case.
__global__ void flags(int n, unsigned* flag) {
  unsigned* mine = flag + kApart * blockIdx.x;
  unsigned* theirs = flag + kApart * (1 - blockIdx.x);
  for (unsigned i = 1; i <= static_cast<unsigned>(n); ++i) {
    if (blockIdx.x == 0) store_release(theirs, i);
    for (int tries = 0; tries < 100000 && load_acquire(mine) < i; ++tries) {
    }
    if (blockIdx.x == 1) store_release(theirs, i);
  }
}

struct Launch {
  void (*kernel)(int, unsigned*);
  int blocks, threads, cluster;
};

float milliseconds(const Launch& launch, int n, unsigned* memory) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  check(cudaMemset(memory, 0, 4096));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = launch.cluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = launch.blocks;
  config.blockDim = launch.threads;
  config.dynamicSmemBytes = 1024;
  config.attrs = &cluster;
  config.numAttrs = launch.cluster > 1 ? 1 : 0;
  check(cudaEventRecord(begin));
  check(cudaLaunchKernelEx(&config, launch.kernel, n, memory));
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  float time = 0;
  check(cudaEventElapsedTime(&time, begin, end));
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  return time;
}

double seconds_each(const Launch& launch, unsigned* memory) {
  milliseconds(launch, kChain, memory);  // warms up, so that the clock rate rises
  double each[kRuns];
  for (double& x : each) {
    const float once = milliseconds(launch, kChain, memory), twice = milliseconds(launch, 2 * kChain, memory);
    x = (twice - once) * 1e-3 / kChain;
  }
  std::sort(each, each + kRuns);
  return each[kRuns / 2];
}

}  // namespace

int main() {
  unsigned* memory = nullptr;
  check(cudaMalloc(&memory, 4096));
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  std::printf("{\"barrier_s\": %.4g", seconds_each({barriers, 1, 512, 1}, memory));
  std::printf(", \"shared_read_s\": %.4g", seconds_each({shared_reads, 1, 32, 1}, memory));
  std::printf(", \"product_s\": %.4g", seconds_each({products, 1, 32, 1}, memory));
  if (major >= 9) std::printf(", \"cluster_read_s\": %.4g", seconds_each({cluster_reads, 2, 32, 2}, memory));
  std::printf(", \"flag_s\": %.4g}\n", seconds_each({flags, 2, 1, 1}, memory) / 2);
  check(cudaFree(memory));
  return 0;
}
