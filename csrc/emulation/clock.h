// Vector clocks: a thread's clock holds, for every thread t, the time of t up to which t's accesses are
// ordered before this thread's. The threads of a barrier share one past afterwards, and each adds its own
// time to it:
//
//   clock[t] = now if t is self, else past[t]
//
// so that copying a clock, or giving one to all threads of a barrier, does not copy its components.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace rnnkernels::emulation {

class Clock {
 public:
  Clock() = default;  // empty; only join may be called
  // All zero; belongs to the thread `self`, or to no thread.
  explicit Clock(int size, int self = -1) : past_(std::make_shared<Times>(size, 0)), self_(self) {}
  Clock(const Clock& start, int self) : past_(start.past_), self_(self), now_(1) {}

  uint32_t operator[](int t) const {
    const uint32_t past = (*past_)[t];
    return t == self_ && now_ > past ? now_ : past;
  }
  void tick() { ++now_; }
  void raise(int t, uint32_t time) {
    if ((*past_)[t] < time) own()[t] = time;
  }
  void join(const Clock& other) {
    if (!other.past_) return;
    if (!past_) {
      past_ = joined_ = other.past_;
    } else if (other.past_ != past_ && other.past_ != joined_) {
      merge(other.past_);
      joined_ = other.past_;
    }
    if (other.self_ >= 0) raise(other.self_, other.now_);
  }
  // The same as join, for an `other` that includes everything this clock includes.
  void follow(const Clock& other) { past_ = other.past_; }

 private:
  using Times = std::vector<uint32_t>;
  std::shared_ptr<Times> past_;    // modified only while it has a single owner
  std::shared_ptr<Times> joined_;  // the last past that was merged into it
  int self_ = -1;
  uint32_t now_ = 0;

  Times& own() {
    if (past_.use_count() > 1) past_ = std::make_shared<Times>(*past_);
    return *past_;
  }
  void merge(const std::shared_ptr<Times>& other) {
    const uint32_t *mine = past_->data(), *theirs = other->data();
    const size_t size = past_->size();
    bool behind = false, ahead = false;
    for (size_t i = 0; i < size; ++i) {
      behind |= mine[i] < theirs[i];
      ahead |= mine[i] > theirs[i];
    }
    if (!behind) return;
    if (!ahead) {
      past_ = other;
      return;
    }
    Times& times = own();
    for (size_t i = 0; i < size; ++i) times[i] = std::max(times[i], theirs[i]);
  }
};

}  // namespace rnnkernels::emulation
