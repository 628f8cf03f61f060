// Affinity masks and the quotas of control groups.
#include "cpu/available_cpus.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace rnnkernels::cpu {

namespace {

// The files of one hierarchy of control groups: its folder, and the quota and period in it.
struct Hierarchy {
  std::string folder;  // of this process's group
  std::string top;     // of the hierarchy's root, where the search upward ends
  bool unified;        // cgroup v2
};

// The quota of one group in CPUs; infinite without one, or if the files cannot be read.
double quota_of(const std::string& folder, bool unified) {
  double quota = -1, period = 0;
  if (unified) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;  // "max 100000" or "50000 100000"
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;  // -1 is no quota
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : HUGE_VAL;
}

bool has_word(const std::string& list, const std::string& word) {
  return ("," + list + ",").find("," + word + ",") != std::string::npos;
}

// The path of this process's group within its hierarchy, from a line `id:controllers:path` of
// /proc/self/cgroup; empty if there is no such line.
std::string group_path(const std::string& root, bool unified) {
  std::ifstream lines(root + "/proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (unified ? controllers.empty() : has_word(controllers, "cpu")) return line.substr(second + 1);
  }
  return {};
}

// Where a hierarchy is mounted, from a line of /proc/self/mountinfo: `id parent device root mount options
// [optional ...] - type source super_options`. A container may see only the part below `root`.
bool find_hierarchy(const std::string& root, bool unified, Hierarchy* found) {
  std::string path = group_path(root, unified);
  if (path.empty()) return false;
  std::ifstream lines(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(lines, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::string skipped, mounted_root, mount, type, source, options;
    std::istringstream(line) >> skipped >> skipped >> skipped >> mounted_root >> mount;
    std::istringstream(line.substr(dash + 3)) >> type >> source >> options;
    if (unified ? type != "cgroup2" : type != "cgroup" || !has_word(options, "cpu")) continue;
    const std::string prefix = mounted_root == "/" ? "" : mounted_root;
    path = path.compare(0, prefix.size(), prefix) == 0 ? path.substr(prefix.size()) : "";
    *found = {root + mount + (path == "/" ? "" : path), root + mount, unified};
    return true;
  }
  return false;
}

}  // namespace

int cpus_of_affinity() {
#if defined(__linux__)
  cpu_set_t cpus;
  if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) return CPU_COUNT(&cpus);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

int cpus_of_quota(const std::string& root) {
  double least = HUGE_VAL;
  for (const bool unified : {true, false}) {
    Hierarchy hierarchy;
    if (!find_hierarchy(root, unified, &hierarchy)) continue;
    for (std::string folder = hierarchy.folder; folder.size() >= hierarchy.top.size();
         folder.resize(folder.rfind('/'))) {
      least = std::min(least, quota_of(folder, unified));
    }
  }
  return least < 1e6 ? static_cast<int>(std::ceil(least)) : 0;
}

int available_cpus(int64_t now) {
  constexpr int64_t kSecond = 1'000'000'000;
  static std::atomic<int64_t> asked{-kSecond};
  static std::atomic<int> cpus{0};
  if (now - asked.load(std::memory_order_relaxed) >= kSecond) {
    const int affinity = std::max(1, cpus_of_affinity()), quota = cpus_of_quota();
    cpus.store(quota > 0 ? std::min(affinity, quota) : affinity, std::memory_order_relaxed);
    asked.store(now, std::memory_order_relaxed);
  }
  return std::max(1, cpus.load(std::memory_order_relaxed));
}

}  // namespace rnnkernels::cpu
