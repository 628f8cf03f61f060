// A kernel for each few hundred steps.
#include <algorithm>

#include "cuda/device.h"
#include "cuda/layout.h"

namespace rnnkernels::cuda {

namespace {

constexpr int kChunkSteps = 224;  // whole warps; arguments of a kernel are 4 KiB at most

struct Chunk {
  int steps = 0;
  int64_t rows[kChunkSteps], offsets[kChunkSteps];
};

RNNKERNELS_KERNEL(kChunkSteps, 1)
write_layout(RNNKERNELS_ARGUMENT Chunk chunk, int64_t* rows, int64_t* offsets) {
  const int t = device::place().thread;
  if (t >= chunk.steps) return;
  rows[t] = chunk.rows[t];
  offsets[t] = chunk.offsets[t];
}

}  // namespace

int64_t layout_bytes(const Layout& layout) {
  return layout.offsets ? 2 * layout.steps * static_cast<int64_t>(sizeof(int64_t)) : 0;
}

Status put_layout(Layout host, void* memory, Layout* device, Stream stream) {
  *device = host;
  if (!host.offsets) return 0;
  auto* rows = static_cast<int64_t*>(memory);
  int64_t* offsets = rows + host.steps;
  device->rows = rows;
  device->offsets = offsets;
  Status status = 0;
  for (int64_t t = 0; t < host.steps && status == 0; t += kChunkSteps) {
    Chunk chunk;
    chunk.steps = static_cast<int>(std::min<int64_t>(kChunkSteps, host.steps - t));
    std::copy_n(host.rows + t, chunk.steps, chunk.rows);
    std::copy_n(host.offsets + t, chunk.steps, chunk.offsets);
    device::Grid grid;
    grid.blocks = 1;
    grid.threads = static_cast<int>(ceil_div(chunk.steps, kWarpThreads)) * kWarpThreads;
    status = device::launch(grid, stream, &write_layout, chunk, rows + t, offsets + t);
  }
  return status;
}

}  // namespace rnnkernels::cuda
