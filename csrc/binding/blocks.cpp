// How the networks and the steps of a call are divided into blocks.
#include "binding/blocks.h"

#include <ATen/ops/cat.h>

#include "binding/host.h"

namespace rnnkernels::binding {

namespace {

// Limits of the memory of a sequence: of the networks of a block, per thread; of the steps of a block, for
// one network. The cuts between steps do not depend on the number of networks or threads, because sums are
// split there.
constexpr int64_t kNetworkBytes = int64_t{512} << 10;
constexpr int64_t kStepBytes = int64_t{8} << 20;

int64_t bytes_of(const at::Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(tensor.element_size());
}

}  // namespace

NetworkBlock::NetworkBlock(const Sizes& sizes, const Block& block) : block_(block), sizes_(sizes) {
  if (sizes.grouped) sizes_.networks = block.size();
}

std::vector<NetworkBlock> NetworkBlock::blocks(const Sizes& sizes, const at::Tensor& sequence) {
  if (!sizes.grouped) return {NetworkBlock(sizes, {0, 1})};
  const int64_t networks = sequence.size(0), threads = torch_threads().count;
  if (sequence.numel() == 0) return {NetworkBlock(sizes, {0, networks})};
  const int64_t bytes = bytes_of(sequence) / networks;
  const int64_t at_once = threads * std::max<int64_t>(1, kNetworkBytes / bytes);
  const int64_t count = (networks + at_once - 1) / at_once;
  std::vector<NetworkBlock> blocks;
  blocks.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    blocks.push_back(NetworkBlock(sizes, {networks * i / count, networks * (i + 1) / count}));
  }
  return blocks;
}

StepBlocks::StepBlocks(const Sizes& sizes, const OptionalTensor& batch_sizes, bool reverse,
                       const at::Tensor& output)
    : storage_(sizes, batch_sizes, reverse, output),
      layout_(storage_.layout),
      packed_(sizes.packed),
      dim_(sizes.grouped ? 1 : 0) {
  const int64_t row_bytes = output.size(-1) * static_cast<int64_t>(output.element_size());
  const int64_t rows = std::max<int64_t>(1024, kStepBytes / row_bytes);
  steps_at_once_ = std::max<int64_t>(1, output.numel() == 0 ? layout_.steps : rows / layout_.batch);
}

at::Tensor StepBlocks::of(const at::Tensor& sequence, const Block& steps) const {
  if (!sequence.defined()) return sequence;
  const int64_t first = packed_ ? offset(steps.first) : steps.first;
  return sequence.narrow(dim_, first, (packed_ ? offset(steps.last) : steps.last) - first);
}

OptionalTensor StepBlocks::state_before(const Block& steps, const at::Tensor& output,
                                        const OptionalTensor& h0) const {
  const int64_t first = layout_.reverse ? steps.last - 1 : steps.first;  // of the forward pass
  const int64_t rows = batch(steps), carried = layout_.carried_rows(first);
  if (carried == 0) return h0 ? OptionalTensor(h0->narrow(-2, 0, rows)) : h0;
  const int64_t previous = layout_.previous_step(first);
  at::Tensor states =
      packed_ ? output.narrow(dim_, offset(previous), carried) : output.select(dim_, previous);
  if (carried == rows) return states;
  return at::cat({states, h0.value().narrow(-2, carried, rows - carried)}, -2);
}

}  // namespace rnnkernels::binding
