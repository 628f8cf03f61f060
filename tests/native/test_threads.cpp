// How the threads of a call wait for each other, and how many there are: a team that one thread holds up, the
// limit beside other processes, and the quotas of control groups.
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#if defined(__linux__)
#include <sched.h>
#endif

#include "cpu/available_cpus.h"
#include "cpu/kernels.h"
#include "cpu/thread_limit.h"
#include "native.h"
#include "recurrences.h"

namespace {

// --- A team -------------------------------------------------------------------------------------------

// In each round the value of each member becomes the sum of all values of the round before, plus its index.
// Whoever does a member's work twice, leaves it out, or comes early makes another value.
struct Relay {
  static constexpr int kMembers = 3, kRounds = 300;
  cpu::TeamBarrier barrier;
  uint64_t values[2][kMembers] = {};
  std::atomic<int> left{0};

  void run(int member, const std::vector<int>& late_rounds) {
    cpu::Attendance mine{cpu::Members{1} << member};
    for (int round = 0; round < kRounds; ++round) {
      for (const int late : late_rounds) {
        if (round == late) std::this_thread::sleep_for(std::chrono::milliseconds(30));
      }
      barrier.wait(&mine, kMembers);
      if (!mine.members) {
        ++left;
        return;
      }
      const uint64_t* before = values[round % 2];
      for (int m = 0; m < kMembers; ++m) {
        if (mine.members >> m & 1) values[(round + 1) % 2][m] = before[0] + before[1] + before[2] + m;
      }
    }
  }

  static uint64_t expected() {
    uint64_t sum = 0, last = 0;
    for (int round = 0; round < kRounds; ++round) {
      last = sum;
      sum = 3 * last + 3;
    }
    return last;
  }
};

// Runs a relay in which member m comes late to the rounds late[m].
void check_relay(const std::string& name, const std::vector<std::vector<int>>& late, int least_left) {
  Relay relay;
  relay.barrier.reset();
  std::vector<std::thread> threads;
  threads.reserve(Relay::kMembers);
  for (int m = 0; m < Relay::kMembers; ++m) threads.emplace_back([&, m] { relay.run(m, late[m]); });
  for (auto& thread : threads) thread.join();
  for (int m = 0; m < Relay::kMembers; ++m) {
    expect(relay.values[Relay::kRounds % 2][m] == Relay::expected() + m, name + ": the values");
  }
  expect(relay.left >= least_left, name + ": the others leave");
  expect(relay.left < Relay::kMembers, name + ": one remains");
}

void test_team() {
  check_relay("a team", {{}, {}, {}}, 0);
  check_relay("one thread is late for the first round", {{0}, {}, {}}, 2);
  check_relay("one thread is late", {{}, {}, {100}}, 2);
  check_relay("two threads are late, one after the other", {{}, {100}, {200}}, 2);
  check_relay("two threads are late for the same round", {{150}, {150}, {}}, 1);
}

#if defined(__linux__)

// All threads of a team on one CPU, where none can arrive while another waits.
void test_one_cpu() {
  cpu_set_t before, one;
  if (sched_getaffinity(0, sizeof(before), &before) != 0) return;
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++i) {
    if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
  }
  expect(sched_setaffinity(0, sizeof(one), &one) == 0, "pin to one CPU");
  expect(cpu::cpus_of_affinity() == 1, "the CPUs of a mask with one");
  const Case c{ElementType::kFloat32, 0, Form::kRate, 2, 40, 3, 200, false, false, true, true};
  const auto data = make_data<float>(c, 1);
  const auto run = [&](int threads) {
    real_threads = threads;
    auto results = empty_results(c, data);
    const cpu::Threads promised{threads, true, &run_threads, 1};
    const cpu::ThreadPlan plan{1, threads, 1};  // one team at a time
    const ForwardProblem forward = forward_problem(c, data, results);
    const BackwardProblem backward = backward_problem(c, data, results);
    const LinearProblem linear = linear_problem(c, data, results);
    const cpu::Kernels& kernels = *cpu::active_instruction_set()->kernels;
    with_memory(kernels.forward_workspace(forward, plan),
                [&](void* memory) { kernels.forward(forward, plan, promised, memory); });
    with_memory(kernels.backward_workspace(backward, plan),
                [&](void* memory) { kernels.backward(backward, plan, promised, memory); });
    with_memory(kernels.linear_workspace(linear, plan),
                [&](void* memory) { kernels.linear(linear, plan, promised, memory); });
    return results;
  };
  const auto expected = run(1);
  for (const int threads : {2, 3, 5}) {
    expect(same_bits(run(threads), expected), std::to_string(threads) + " threads on one CPU: same bits");
  }
  sched_setaffinity(0, sizeof(before), &before);
}

#endif

// --- The number of threads ---------------------------------------------------------------------------

void test_limit() {
  constexpr int64_t kMillisecond = 1'000'000, kHold = cpu::ThreadLimit::kShortestHold;
  int64_t now = 1000 * kMillisecond;
  cpu::ThreadLimit limit;
  expect(limit.limit(8, now) == 8, "no limit at first");
  limit.report(8, now, 10 * kMillisecond, kMillisecond);
  expect(limit.limit(8, now) == 8, "no limit after a tenth is lost");
  limit.report(8, now, kMillisecond / 10, kMillisecond / 10);
  expect(limit.limit(8, now) == 8, "no limit after 0.1 ms is lost");

  limit.report(8, now, 10 * kMillisecond, 5 * kMillisecond);
  expect(limit.limit(8, now) == 4 && limit.limit(2, now) == 2, "half as many after half is lost");
  limit.report(4, now, 10 * kMillisecond, 5 * kMillisecond);
  limit.report(2, now, 10 * kMillisecond, 5 * kMillisecond);
  limit.report(1, now, 10 * kMillisecond, 5 * kMillisecond);
  expect(limit.limit(8, now) == 1, "one at least");
  int64_t later = now + kHold;
  for (const int threads : {2, 4, 8}) {
    expect(limit.limit(8, later) == threads && limit.limit(8, later) == threads, "the limit is doubled");
    later += kHold;
  }

  // With a process that stays, the trials become rare; without it, the limit ends within the longest hold.
  int64_t failures = 0;
  for (now = later; now < later + 20'000 * kMillisecond; now += kMillisecond) {
    if (limit.limit(2, now) == 1) continue;
    limit.report(2, now, 10 * kMillisecond, 5 * kMillisecond);
    ++failures;
  }
  expect(failures >= 18 && failures <= 30, "about one trial per second, got " + std::to_string(failures));
  int64_t waited = 0;
  for (; limit.limit(2, now) == 1; now += kMillisecond) waited += kMillisecond;
  expect(waited <= cpu::ThreadLimit::kLongestHold, "the limit ends");
  expect(limit.limit(2, now + 100'000 * kMillisecond) == 2, "no limit any more");
  now += 100'000 * kMillisecond;
  limit.report(2, now, 10 * kMillisecond, 5 * kMillisecond);
  expect(limit.limit(2, now + cpu::ThreadLimit::kLongestHold / 2) == 2,
         "a shorter hold after a long quiet time");
}

// --- Control groups ----------------------------------------------------------------------------------

class Tree {
 public:
  Tree() : root_(std::filesystem::temp_directory_path() / ("rnnkernels-" + std::to_string(getpid()))) {}
  ~Tree() { std::filesystem::remove_all(root_); }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  void write(const std::string& path, const std::string& text) const {
    const std::filesystem::path file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  int cpus() const { return cpu::cpus_of_quota(root_.string()); }

 private:
  std::filesystem::path root_;
};

void test_no_quota() {
  const Tree tree;
  expect(tree.cpus() == 0, "no files");
  tree.write("proc/self/cgroup", "nonsense\n\n0:\n");
  tree.write("proc/self/mountinfo", "nonsense\n - cgroup2\n");
  expect(tree.cpus() == 0, "files without sense");
}

void test_version_2() {
  const Tree tree;
  tree.write("proc/self/cgroup", "0::/a/b\n");
  tree.write("proc/self/mountinfo",
             "25 30 0:22 / /proc rw - proc proc rw\n"
             "30 23 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n");
  tree.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  expect(tree.cpus() == 0, "v2 without a quota");
  tree.write("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n");
  expect(tree.cpus() == 2, "v2, one and a half CPUs are two");
  tree.write("sys/fs/cgroup/a/cpu.max", "50000 50000\n");
  expect(tree.cpus() == 1, "v2, the quota of a group above");
}

void test_version_1() {
  const Tree tree;
  tree.write("proc/self/cgroup", "5:cpuset:/x\n4:cpu,cpuacct:/docker/id/inner\n1:name=systemd:/\n");
  tree.write("proc/self/mountinfo",
             "30 23 0:26 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
             "31 23 0:27 /docker/id /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n");
  tree.write("sys/fs/cgroup/cpu/inner/cpu.cfs_quota_us", "-1\n");
  tree.write("sys/fs/cgroup/cpu/inner/cpu.cfs_period_us", "100000\n");
  expect(tree.cpus() == 0, "v1 without a quota");
  tree.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n");
  tree.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  expect(tree.cpus() == 3, "v1, the quota of the container");
}

}  // namespace

int main() {
  test_team();
#if defined(__linux__)
  test_one_cpu();
#endif
  test_limit();
  test_no_quota();
  test_version_2();
  test_version_1();
  expect(cpu::available_cpus(1) >= 1, "there is a CPU");
  std::printf("%d failures\n", failures);
  return failures != 0;
}
