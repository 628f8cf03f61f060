// What the emulation knows of each element of a block's shared memory: who wrote it, who has read it since,
// and whether that was ordered. After FastTrack (Flanagan and Freund, PLDI 2009): a write is one (thread,
// time), and so is a read. Of the reads since the last write only those are kept that no later one comes
// after: what is ordered after the later one is ordered after them, too.
#pragma once

#include <cstdint>
#include <vector>

#include "emulation/clock.h"

namespace rnnkernels::emulation {

struct Conflict {
  enum Kind { kNone, kUnwritten, kPending, kRace } kind = kNone;
  int other = -1;  // the thread that it is with
};

class Shadow {
 public:
  void resize(int64_t bytes) { cells_.assign((bytes + kCellBytes - 1) / kCellBytes, Cell{}); }

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
      for (int r = cell.reads; r >= 0; r = reads_[r].next) {
        if (reads_[r].time > now[reads_[r].thread]) return {Conflict::kRace, reads_[r].thread};
      }
      cell.writer = thread;
      cell.written = now[thread];
      while (cell.reads >= 0) drop(cell.reads);
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
    int writer = -1;
    uint32_t written = 0;
    int reads = -1;  // a list of them
    bool pending = false;
  };
  struct Read {
    int thread;
    uint32_t time;
    int next;
  };
  std::vector<Cell> cells_;
  std::vector<Read> reads_;
  int unused_ = -1;  // a list of reads_ to use again

  void note_read(Cell& cell, int thread, const Clock& now) {
    for (int* at = &cell.reads; *at >= 0;) {
      Read& read = reads_[*at];
      if (read.thread == thread) {
        read.time = now[thread];
        return;
      }
      if (read.time <= now[read.thread]) {
        drop(*at);
      } else {
        at = &read.next;
      }
    }
    int read = unused_;
    if (read >= 0) {
      unused_ = reads_[read].next;
    } else {
      read = static_cast<int>(reads_.size());
      reads_.emplace_back();
    }
    reads_[read] = {thread, now[thread], cell.reads};
    cell.reads = read;
  }
  // Takes the first one out of a list.
  void drop(int& list) {
    const int read = list;
    list = reads_[read].next;
    reads_[read].next = unused_;
    unused_ = read;
  }
};

}  // namespace rnnkernels::emulation
