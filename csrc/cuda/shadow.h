// What the emulation knows of each element of a block's shared memory: who wrote it, who has read it since,
// and whether that was ordered. FastTrack (Flanagan and Freund, PLDI 2009): a write is one (thread, time);
// reads are one as long as one thread reads, and a clock from the second on.
#pragma once

#include <cstdint>
#include <vector>

namespace rnnkernels::emulation {

// Of each thread the time up to which its past is known.
using Clock = std::vector<uint32_t>;

inline void join(Clock& clock, const Clock& other) {
  for (size_t i = 0; i < clock.size(); ++i) clock[i] = clock[i] < other[i] ? other[i] : clock[i];
}

struct Conflict {
  enum Kind { kNone, kUnwritten, kPending, kRace } kind = kNone;
  int other = -1;  // the thread that it is with
};

class Shadow {
 public:
  void resize(int64_t bytes, int threads) {
    cells_.assign((bytes + kCellBytes - 1) / kCellBytes, Cell{});
    threads_ = threads;
  }

  Conflict read(int64_t offset, int64_t bytes, int thread, const Clock& now) {
    for (int64_t i = offset / kCellBytes; i * kCellBytes < offset + bytes; ++i) {
      Cell& cell = cells_[i];
      if (cell.pending) return {Conflict::kPending, cell.writer};
      if (cell.writer < 0) return {Conflict::kUnwritten, -1};
      if (cell.written > now[cell.writer]) return {Conflict::kRace, cell.writer};
      note_read(cell, thread, now);
    }
    return {};
  }

  Conflict write(int64_t offset, int64_t bytes, int thread, const Clock& now) {
    for (int64_t i = offset / kCellBytes; i * kCellBytes < offset + bytes; ++i) {
      Cell& cell = cells_[i];
      if (cell.pending) return {Conflict::kPending, cell.writer};
      if (cell.writer >= 0 && cell.written > now[cell.writer]) return {Conflict::kRace, cell.writer};
      if (cell.readers.empty()) {
        if (cell.reader >= 0 && cell.read > now[cell.reader]) return {Conflict::kRace, cell.reader};
      } else {
        for (int t = 0; t < threads_; ++t) {
          if (cell.readers[t] > now[t]) return {Conflict::kRace, t};
        }
      }
      cell.writer = thread;
      cell.written = now[thread];
      cell.reader = -1;
      cell.readers.clear();
    }
    return {};
  }

  // By what is no thread, and was checked when it was ordered.
  void written_by(int64_t offset, int64_t bytes, int writer, uint32_t time) {
    for (int64_t i = offset / kCellBytes; i * kCellBytes < offset + bytes; ++i) {
      cells_[i].writer = writer;
      cells_[i].written = time;
    }
  }

  // While a copy has not landed nobody may touch its cells, not even who ordered it.
  void set_pending(int64_t offset, int64_t bytes, bool pending) {
    for (int64_t i = offset / kCellBytes; i * kCellBytes < offset + bytes; ++i) cells_[i].pending = pending;
  }

 private:
  static constexpr int64_t kCellBytes = 2;  // the smallest element
  struct Cell {
    int writer = -1, reader = -1;
    uint32_t written = 0, read = 0;
    bool pending = false;
    Clock readers;
  };
  std::vector<Cell> cells_;
  int threads_ = 0;

  void note_read(Cell& cell, int thread, const Clock& now) {
    if (!cell.readers.empty()) {
      cell.readers[thread] = now[thread];
    } else if (cell.reader < 0 || cell.reader == thread || cell.read <= now[cell.reader]) {
      cell.reader = thread;
      cell.read = now[thread];
    } else {
      cell.readers.assign(threads_, 0);
      cell.readers[cell.reader] = cell.read;
      cell.readers[thread] = now[thread];
    }
  }
};

}  // namespace rnnkernels::emulation
