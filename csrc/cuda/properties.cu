#include <cuda_runtime_api.h>

#include "cuda/properties.h"

namespace rnnkernels::cuda {

namespace {

constexpr int kClusters = 90;  // the first capability that has them

// Compiled as all kernels are.
__global__ void probe() {}

// What a cluster may have at most; 8 blocks is what all of them promise.
int largest_cluster(int capability, int compiled_for) {
  if (capability < kClusters || compiled_for < kClusters) return 1;
  return capability == 90 || capability == 100 ? 16 : 8;
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
  // A GPU with clusters may run what was compiled for one without.
  cudaFuncAttributes compiled{};
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&compiled, probe);
  device->largest_cluster = largest_cluster(device->capability, compiled.ptxVersion);
  return status;
}

}  // namespace rnnkernels::cuda
