// Blocks of networks and of steps: a call processes them one after the other, so that their sequences stay in
// cache.
#pragma once

#include <algorithm>
#include <vector>

#include "binding/problem.h"

namespace rnnkernels::binding {

// Networks or steps from `first` to `last`, exclusive.
struct Block {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// Some of the networks of a call. A call without G has one block, which is everything.
class NetworkBlock {
 public:
  // One network per thread in each block, and more as long as their part of `sequence`, [G, ...], stays
  // small.
  static std::vector<NetworkBlock> blocks(const Sizes& sizes, const at::Tensor& sequence);

  // The block's part of a tensor [G, ...]. A tensor with fewer than two dimensions has no G and is returned
  // whole: a decay [H], batch sizes, or an empty tensor in place of saved bits.
  at::Tensor of(const at::Tensor& tensor) const {
    if (!sizes_.grouped || !tensor.defined() || tensor.dim() < 2) return tensor;
    return tensor.narrow(0, block_.first, block_.size());
  }
  OptionalTensor of(const OptionalTensor& tensor) const {
    return tensor ? OptionalTensor(of(*tensor)) : tensor;
  }

  // The block's part of a call. Arguments that are not tensors are the same for all networks.
  template <class Call>
    requires requires { typename Call::Result; }
  Call of(const Call& call) const {
    return call.unpack([&](const auto&... arguments) { return Call{part(arguments)...}; });
  }

  // The sizes of a call of these networks alone.
  const Sizes& sizes() const { return sizes_; }

 private:
  NetworkBlock(const Sizes& sizes, const Block& block);

  at::Tensor part(const at::Tensor& tensor) const { return of(tensor); }
  OptionalTensor part(const OptionalTensor& tensor) const { return of(tensor); }
  template <class Other>
  Other part(const Other& other) const {
    return other;
  }

  Block block_;
  Sizes sizes_;
};

// Blocks of steps, so that the gradient of pre never has to exist for all steps at once.
class StepBlocks {
 public:
  StepBlocks(const Sizes& sizes, const OptionalTensor& batch_sizes, bool reverse, const at::Tensor& output);

  int64_t blocks() const {
    return std::max<int64_t>(1, (layout_.steps + steps_at_once_ - 1) / steps_at_once_);
  }

  // The i-th block in the order of the backward pass.
  Block block(int64_t i) const {
    const int64_t place = layout_.reverse ? i : blocks() - 1 - i;
    return {place * steps_at_once_, std::min(layout_.steps, (place + 1) * steps_at_once_)};
  }

  // The block's part of a sequence. An undefined tensor stays undefined.
  at::Tensor of(const at::Tensor& sequence, const Block& steps) const;
  OptionalTensor of(const OptionalTensor& sequence, const Block& steps) const {
    return sequence ? OptionalTensor(of(*sequence, steps)) : sequence;
  }

  // The block's part of the tensor that forward saved, contiguous. An empty tensor is returned whole.
  at::Tensor saved(const at::Tensor& saved, const Block& steps) const {
    return saved.dim() > 1 ? of(saved, steps).contiguous() : saved;
  }

  // The batch sizes of a block.
  static OptionalTensor sizes(const OptionalTensor& batch_sizes, const Block& steps) {
    return batch_sizes ? OptionalTensor(batch_sizes->narrow(0, steps.first, steps.size())) : batch_sizes;
  }

  // The largest number of rows of a step of the block.
  int64_t batch(const Block& steps) const {
    return layout_.steps == 0 ? layout_.batch : layout_.rows_at(steps.first);
  }

  // The state before a block in the order of the forward pass: that of the previous step for the rows that
  // have one, else h0.
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
