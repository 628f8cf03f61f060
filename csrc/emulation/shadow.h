// Shadow memory: for each element of a block's shared memory the last write, and the reads since then, to
// find accesses that nothing orders. After FastTrack (Flanagan and Freund, PLDI 2009): an access is a pair
// (thread, time). A read is dropped once a later read is ordered after it, because an access that is ordered
// after the later read is also ordered after the earlier one.
#pragma once

#include <cstdint>
#include <vector>

#include "emulation/clock.h"

namespace rnnkernels::emulation {

struct Conflict {
  enum Kind { kNone, kUnwritten, kPending, kRace } kind = kNone;
  int other = -1;  // the thread of the conflicting access
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

  // Records a write of an asynchronous store, which was checked when the store was issued.
  void written_by(int64_t offset, int64_t bytes, int writer, uint32_t time) {
    for (int64_t i = offset / kCellBytes; i * kCellBytes < offset + bytes; ++i) {
      cells_[i].writer = writer;
      cells_[i].written = time;
    }
  }

  // While a copy is pending no thread may access its cells, including the thread that issued it.
  void set_pending(int64_t offset, int64_t bytes, bool pending) {
    for (int64_t i = offset / kCellBytes; i * kCellBytes < offset + bytes; ++i) cells_[i].pending = pending;
  }

 private:
  static constexpr int64_t kCellBytes = 2;  // the smallest element
  struct Cell {
    int writer = -1;
    uint32_t written = 0;
    int reads = -1;  // head of a list in reads_
    bool pending = false;
  };
  struct Read {
    int thread;
    uint32_t time;
    int next;
  };
  std::vector<Cell> cells_;
  std::vector<Read> reads_;
  int unused_ = -1;  // head of the list of free entries of reads_

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
  // Removes the first entry of a list.
  void drop(int& list) {
    const int read = list;
    list = reads_[read].next;
    reads_[read].next = unused_;
    unused_ = read;
  }
};

}  // namespace rnnkernels::emulation
