// How a call of many networks or steps is cut into blocks whose sequences stay in a cache: some networks, and
// of those some steps.
#pragma once

#include <algorithm>
#include <vector>

#include "binding/problem.h"

namespace rnnkernels::binding {

// Networks or steps, from the first up to the last, which is not of them.
struct Block {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// Some of the networks of a call; of a call without G all there is.
class NetworkBlock {
 public:
  // As many at a time as leave every thread its own, and more while `sequence`, [G, ...], stays small.
  static std::vector<NetworkBlock> blocks(const Sizes& sizes, const at::Tensor& sequence);

  // Their part of [G, ...]. What has no G, as a decay of [H] or bits that were not saved, is everyone's.
  at::Tensor of(const at::Tensor& tensor) const {
    if (!sizes_.grouped || !tensor.defined() || tensor.dim() < 2) return tensor;
    return tensor.narrow(0, block_.first, block_.size());
  }
  OptionalTensor of(const OptionalTensor& tensor) const {
    return tensor ? OptionalTensor(of(*tensor)) : tensor;
  }

  // Those of a call of these networks alone.
  const Sizes& sizes() const { return sizes_; }

 private:
  NetworkBlock(const Sizes& sizes, const Block& block);

  Block block_;
  Sizes sizes_;
};

// The steps of a walk in blocks, so that u, the gradient of pre, never exists for all of them.
class StepBlocks {
 public:
  StepBlocks(const Sizes& sizes, const OptionalTensor& batch_sizes, bool reverse, const at::Tensor& output);

  int64_t blocks() const {
    return std::max<int64_t>(1, (layout_.steps + steps_at_once_ - 1) / steps_at_once_);
  }

  // In the order of the backward walk.
  Block block(int64_t i) const {
    const int64_t place = layout_.reverse ? i : blocks() - 1 - i;
    return {place * steps_at_once_, std::min(layout_.steps, (place + 1) * steps_at_once_)};
  }

  // The rows of a block of a sequence; undefined stays undefined.
  at::Tensor cut(const at::Tensor& sequence, const Block& steps) const;
  OptionalTensor cut(const OptionalTensor& sequence, const Block& steps) const {
    return sequence ? OptionalTensor(cut(*sequence, steps)) : sequence;
  }

  // The same of what forward saved, contiguous; nothing stays nothing.
  at::Tensor cut_saved(const at::Tensor& saved, const Block& steps) const {
    return saved.dim() > 1 ? cut(saved, steps).contiguous() : saved;
  }

  // The batch sizes of a block.
  static OptionalTensor cut_sizes(const OptionalTensor& batch_sizes, const Block& steps) {
    return batch_sizes ? OptionalTensor(batch_sizes->narrow(0, steps.first, steps.size())) : batch_sizes;
  }

  // How many rows a block has at most.
  int64_t batch(const Block& steps) const {
    return layout_.steps == 0 ? layout_.batch : layout_.rows_at(steps.first);
  }

  // The state before a block, for the forward walk: of the step before, where a row has one, else h0.
  OptionalTensor state_before(const Block& steps, const at::Tensor& output, const OptionalTensor& h0) const;

 private:
  LayoutStorage storage_;
  const Layout& layout_;
  bool packed_;
  int64_t dim_;  // of the steps, or of packed rows
  int64_t steps_at_once_;

  int64_t offset(int64_t t) const {
    if (t == 0) return 0;
    return layout_.offsets[t - 1] + layout_.rows[t - 1];
  }
};

}  // namespace rnnkernels::binding
