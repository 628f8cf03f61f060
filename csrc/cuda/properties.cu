// Properties of a GPU, read with the CUDA runtime.
#include <cuda_runtime_api.h>

#include "cuda/properties.h"

namespace rnnkernels::cuda {

namespace {

constexpr int kClustersSince = 90;  // capability
constexpr int kLargestCluster = 16;

// An empty kernel, compiled for the same architectures as all others.
__global__ void probe() {}

// The largest cluster of blocks that use all shared memory. CUDA guarantees 8 blocks; more depend on how the
// device's multiprocessors are grouped.
int largest_cluster(int shared_bytes) {
  const auto allow = [](cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(&probe), attribute, value);
  };
  allow(cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  allow(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  int count = 0, blocks = kLargestCluster;
  for (; blocks > 1; blocks /= 2) {
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kMostWarps * kWarpThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.attrs = &cluster;
    config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&count, &probe, &config) == cudaSuccess && count > 0) break;
  }
  cudaGetLastError();  // clears the error of a size that is not supported
  return blocks;
}

}  // namespace

Status current_device(Device* device) {
  int index = 0;
  cudaError_t status = cudaGetDevice(&index);
  const auto read = [&](cudaDeviceAttr attribute) {
    int value = 0;
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, index);
    return value;
  };
  const int major = read(cudaDevAttrComputeCapabilityMajor);
  device->name = "GPU";
  device->capability = 10 * major + read(cudaDevAttrComputeCapabilityMinor);
  device->multiprocessors = read(cudaDevAttrMultiProcessorCount);
  device->shared_bytes = read(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  // A GPU with clusters may run kernels that were compiled for an architecture without them.
  cudaFuncAttributes compiled{};
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&compiled, probe);
  const bool clusters = device->capability >= kClustersSince && compiled.ptxVersion >= kClustersSince;
  device->largest_cluster =
      status == cudaSuccess && clusters ? largest_cluster(static_cast<int>(device->shared_bytes)) : 1;
  return status;
}

}  // namespace rnnkernels::cuda
