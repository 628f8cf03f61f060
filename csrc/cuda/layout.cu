// The layout of a packed sequence in device memory.
#include "cuda/layout.h"
#include "cuda/upload.h"

namespace rnnkernels::cuda {

int64_t layout_bytes(const Layout& layout) {
  return layout.offsets ? 2 * layout.steps * static_cast<int64_t>(sizeof(int64_t)) : 0;
}

Status put_layout(Layout host, void* memory, Layout* device, Stream stream) {
  *device = host;
  if (!host.offsets) return 0;
  Upload upload(memory, stream);
  device->rows = upload.add(host.rows, host.steps);
  device->offsets = upload.add(host.offsets, host.steps);
  return upload.finish();
}

}  // namespace rnnkernels::cuda
