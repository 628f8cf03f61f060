// Tests of the emulated GPU's record of order, on random histories: its clocks against plain vectors, and its
// shadow memory against all pairs of accesses.
#include <algorithm>
#include <random>
#include <vector>

#include "emulation/clock.h"
#include "emulation/shadow.h"
#include "native.h"

using namespace rnnkernels;
using emulation::Clock;
using emulation::Conflict;
using emulation::Shadow;

namespace {

constexpr int kThreads = 6, kWords = 3, kCells = 8;
using Times = std::vector<uint32_t>;

void join(Times& times, const Times& other) {
  for (int t = 0; t < kThreads; ++t) times[t] = std::max(times[t], other[t]);
}

// One history, given to both.
class History {
 public:
  explicit History(unsigned seed) : random_(seed) {
    const Clock start(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      clocks_.emplace_back(start, t);
      times_[t][t] = 1;
    }
    shadow_.resize(2 * kCells);
  }

  // Runs the history up to its first fault, and returns the fault.
  Conflict::Kind run(int steps) {
    for (int step = 0; step < steps; ++step) {
      const Conflict::Kind found = below(3) ? order() : access();
      if (found != Conflict::kNone) return found;
      for (int t = 0; t < kThreads; ++t) {
        for (int other = 0; other < kThreads; ++other) {
          expect(clocks_[t][other] == times_[t][other], "the clock of a thread");
        }
      }
      for (int word = 0; word < kWords; ++word) {
        for (int t = 0; t < kThreads; ++t) {
          expect(words_[word][t] == word_times_[word][t], "the clock released to a word");
        }
      }
    }
    return Conflict::kNone;
  }

 private:
  struct Access {
    int thread;
    uint32_t time;
    bool writes;
  };
  std::mt19937 random_;
  std::vector<Clock> clocks_;
  std::vector<Times> times_{kThreads, Times(kThreads, 0)};
  std::vector<Clock> words_{kWords, Clock(kThreads)};
  std::vector<Times> word_times_{kWords, Times(kThreads, 0)};
  Shadow shadow_;
  std::vector<Access> accesses_[kCells];

  int below(int count) { return static_cast<int>(random_() % count); }

  // A barrier, an acquire, or one of two kinds of release.
  Conflict::Kind order() {
    const int thread = below(kThreads), word = below(kWords);
    const auto tick = [&](int t) {
      clocks_[t].tick();
      ++times_[t][t];
    };
    switch (below(6)) {
      case 0: {
        const int last = thread + below(kThreads - thread);
        Clock all;
        Times all_times(kThreads, 0);
        for (int t = thread; t <= last; ++t) all.join(clocks_[t]), join(all_times, times_[t]);
        for (int t = thread; t <= last; ++t) clocks_[t].follow(all), times_[t] = all_times, tick(t);
        break;
      }
      case 1:
        words_[word] = clocks_[thread];
        word_times_[word] = times_[thread];
        tick(thread);
        break;
      case 2:
        words_[word].join(clocks_[thread]);
        join(word_times_[word], times_[thread]);
        tick(thread);
        break;
      default:
        clocks_[thread].join(words_[word]);
        join(times_[thread], word_times_[word]);
    }
    return Conflict::kNone;
  }

  // An access to one or two cells. Most of the wrong ones are not executed, so that histories become long.
  Conflict::Kind access() {
    const int thread = below(kThreads), first = below(kCells), cells = 1 + below(std::min(2, kCells - first));
    const bool writes = below(2);
    Conflict::Kind expected = Conflict::kNone;
    for (int cell = first; cell < first + cells && expected == Conflict::kNone; ++cell) {
      expected = fault_of(cell, thread, writes);
    }
    if (expected != Conflict::kNone && below(60)) return Conflict::kNone;
    const Conflict found = writes ? shadow_.write(2 * first, 2 * cells, thread, clocks_[thread])
                                  : shadow_.read(2 * first, 2 * cells, thread, clocks_[thread]);
    expect(found.kind == expected, "the fault of an access");
    for (int cell = first; cell < first + cells; ++cell) {
      accesses_[cell].push_back({thread, times_[thread][thread], writes});
    }
    return expected;
  }

  Conflict::Kind fault_of(int cell, int thread, bool writes) const {
    bool written = writes;
    for (const Access& before : accesses_[cell]) {
      const bool unordered = before.time > times_[thread][before.thread];
      if ((writes || before.writes) && unordered) return Conflict::kRace;
      written |= before.writes;
    }
    return written ? Conflict::kNone : Conflict::kUnwritten;
  }
};

}  // namespace

int main() {
  int ended[4] = {};
  for (unsigned seed = 0; seed < 2000; ++seed) ++ended[History(seed).run(400)];
  expect(ended[Conflict::kNone] > 100 && ended[Conflict::kRace] > 100 && ended[Conflict::kUnwritten] > 100,
         "histories of all kinds");
  std::printf("%d right, %d races, %d unwritten, %d failures\n", ended[Conflict::kNone],
              ended[Conflict::kRace], ended[Conflict::kUnwritten], failures);
  return failures != 0;
}
