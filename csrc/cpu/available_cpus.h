// How many CPUs this process may use: those of its affinity mask, and no more than its control group's quota.
#pragma once

#include <cstdint>
#include <string>

namespace rnnkernels::cpu {

// The CPUs of the calling thread's affinity mask; the number of processors where there are no masks.
int cpus_of_affinity();

// The CPUs that the quotas of this process's control group and of all groups above it allow (cgroup v1 and v2),
// rounded up; 0 if there is no quota. `root` is prepended to the paths of all files that are read.
int cpus_of_quota(const std::string& root = "");

// The smaller of both, at least 1. `now` is a time in nanoseconds: the system is asked once per second.
int available_cpus(int64_t now);

}  // namespace rnnkernels::cpu
