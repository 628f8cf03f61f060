// Copies tables of the host into device memory through the arguments of small kernels. The values are part of
// the launch, so nothing synchronizes, the host's memory can be reused at once, and a captured graph contains
// them. A copy from pageable memory would synchronize, and a graph would read that memory again at every
// replay.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/device.h"

namespace rnnkernels::cuda {
namespace {

constexpr int kPieceThreads = 256;
constexpr int kPieceWords = 508;
struct Piece {
  uint64_t* to;
  int64_t count;
  uint64_t words[kPieceWords];
};
static_assert(sizeof(Piece) <= 4096, "the arguments of a launch are limited to 4096 bytes");

RNNKERNELS_KERNEL(kPieceThreads, 1) write_piece(RNNKERNELS_ARGUMENT Piece piece) {
  for (int i = device::place().thread; i < piece.count; i += kPieceThreads) piece.to[i] = piece.words[i];
}

// Writes tables one after another, starting at `memory`. After a failed launch no further one is made.
class Upload {
 public:
  Upload(void* memory, device::Stream stream) : stream_(stream) {
    piece_.to = static_cast<uint64_t*>(memory);
  }

  // Returns the table's address in device memory. Its size must be a multiple of 8 bytes.
  template <class T>
  T* add(const T* table, int64_t count) {
    static_assert(std::is_trivially_copyable_v<T>);
    constexpr int64_t kWord = sizeof(uint64_t);
    T* const place = static_cast<T*>(end());
    const char* from = reinterpret_cast<const char*>(table);
    for (int64_t left = count * static_cast<int64_t>(sizeof(T)) / kWord; left > 0;) {
      if (piece_.count == kPieceWords) write();
      const int64_t words = left < kPieceWords - piece_.count ? left : kPieceWords - piece_.count;
      std::memcpy(piece_.words + piece_.count, from, static_cast<size_t>(words * kWord));
      from += words * kWord;
      piece_.count += words;
      left -= words;
    }
    return place;
  }
  // The address of the next table.
  void* end() const { return piece_.to + piece_.count; }

  device::Status finish() {
    write();
    return status_;
  }

 private:
  device::Stream stream_;
  device::Status status_ = 0;
  Piece piece_{};

  void write() {
    device::Grid grid;
    grid.blocks = 1;
    grid.threads = kPieceThreads;
    if (status_ == 0 && piece_.count > 0) status_ = device::launch(grid, stream_, &write_piece, piece_);
    piece_.to += piece_.count;
    piece_.count = 0;
  }
};

}  // namespace
}  // namespace rnnkernels::cuda
