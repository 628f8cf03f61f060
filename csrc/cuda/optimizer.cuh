// One optimizer step on a GPU: what the launchers below take. Nothing here is read by the host, so a
// captured graph replays with whatever the device's memory holds then.
//
// Bytes a float32 parameter: 4 in the norm pass (g), 20 in the update pass (theta, g, v read; theta, v
// written), 24 in all. For AdamW 32, because it has a state more.
#pragma once

#include <cuda_runtime_api.h>

#include "core/optimizer.h"

namespace rnnkernels::cuda {

// A chunk is one block's turn; a step's arrays lie in device memory, filled in once for a list of tensors.
struct DeviceLeaf {
  void* param;
  const void* grad;
  void* state[2];
  void* master;       // or null
  float* step_count;  // one number, or null
  int64_t size;
  int64_t first_chunk;
  int group;
  ElementType type, grad_type;
};

// A setting in device memory wins over the number.
struct DeviceSetting {
  double number;
  const double* on_device;
};

constexpr int kMaxSettings = 5;
struct DeviceGroup {
  DeviceSetting settings[kMaxSettings];  // lr, weight_decay, then the rule's own
  DeviceSetting max_norm;                // infinity: no clipping
  double* previous_momentum;             // or null
  bool maximize;
};

struct DeviceStep {
  const DeviceLeaf* leaves;  // [count], none empty
  int64_t count;
  int64_t chunks;
  const DeviceGroup* groups;
  int group_count;
  double norm_type;
  const float* grad_scale;  // or null
  const float* found_inf;   // or null
  const double* norm;       // of the gradients as they come, or null: from these gradients
  bool apply_nonfinite, raise_nonfinite;
  double* partial;    // [2 chunks] workspace
  double* record;     // [norm, steps skipped, steps taken, whether to raise]
  int* skip;          // one number, the verdict of the norm pass for the update pass
  unsigned* arrived;  // one number, 0 between steps: blocks that are done
};

// Norm pass, then update pass: two launches, or one cooperative launch where `cooperative`, which the
// caller may only ask for when all blocks fit on the device at once.
cudaError_t nesterov_step(const DeviceStep& step, int blocks, bool cooperative, cudaStream_t stream);
cudaError_t adamw_step(const DeviceStep& step, int blocks, bool cooperative, cudaStream_t stream);

// How many blocks of the cooperative kernel fit at once on the current device.
cudaError_t nesterov_blocks(int* blocks);
cudaError_t adamw_blocks(int* blocks);

}  // namespace rnnkernels::cuda
