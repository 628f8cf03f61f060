// The Python module _C: what was built, and which plan the CUDA kernels would follow. Loading it also
// registers the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "binding/direct.h"
#include "binding/host.h"
#include "core/limits.h"
#include "core/nonlinearities.h"
#include "cpu/kernels.h"
#include "cuda/plan.h"

namespace py = pybind11;

namespace {

std::vector<std::string> nonlinearities() {
  std::vector<std::string> names;
  for (int i = 0; const char* name = rnnkernels::name_at(i, rnnkernels::Nonlinearities{}); ++i) {
    names.emplace_back(name);
  }
  return names;
}

py::dict instruction_sets() {
  py::dict sets;
  int count = 0;
  const auto* all = rnnkernels::cpu::instruction_sets(&count);
  for (int i = 0; i < count; ++i) sets[all[i].name] = all[i].runs_here();
  return sets;
}

py::object active_instruction_set() {
  const auto* set = rnnkernels::cpu::active_instruction_set();
  return set ? py::object(py::str(set->name)) : py::object(py::none());
}

// Seconds that one thread takes to read `bytes` bytes `times` times.
double read_memory(int64_t bytes, int64_t times) {
  const auto* set = rnnkernels::cpu::active_instruction_set();
  if (!set) throw std::runtime_error("RNNKERNELS_ISA names a set that was not built or does not run here");
  if (bytes < 0 || times < 0) throw py::value_error("bytes and times must not be negative");
  const py::gil_scoped_release released;
  constexpr size_t kLine = 64 / sizeof(float);
  std::vector<float> memory(bytes / sizeof(float) + kLine, 1.0F);
  const size_t past_line = reinterpret_cast<uintptr_t>(memory.data()) / sizeof(float) % kLine;
  const float* values = memory.data() + (kLine - past_line) % kLine;
  const auto count = static_cast<int64_t>(bytes / sizeof(float));
  volatile float sum = set->kernels->read(values, count, 1);
  const auto start = std::chrono::steady_clock::now();
  sum = set->kernels->read(values, count, times);
  (void)sum;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Device properties to plan with: built-in ones by the name of the GPU, and as cuda:0 and so on those of the
// GPUs of this host.
std::vector<std::pair<std::string, const rnnkernels::cuda::Device*>> devices() {
  std::vector<std::pair<std::string, const rnnkernels::cuda::Device*>> all;
  for (int i = 0; const auto* device = rnnkernels::cuda::known_device(i); ++i) {
    all.emplace_back(device->name, device);
  }
  try {
    for (int i = 0; const auto* device = rnnkernels::binding::gpu(i); ++i) {
      all.emplace_back("cuda:" + std::to_string(i), device);
    }
    // NOLINTNEXTLINE(bugprone-empty-catch): a GPU that the kernels cannot use ends the list
  } catch (const std::exception&) {
  }
  return all;
}

py::dict known_devices() {
  py::dict known;
  for (const auto& [name, device] : devices()) {
    py::dict facts;
    facts["capability"] = py::make_tuple(device->capability / 10, device->capability % 10);
    facts["multiprocessors"] = device->multiprocessors;
    facts["shared_bytes"] = device->shared_bytes;
    facts["largest_cluster"] = device->largest_cluster;
    known[py::str(name)] = facts;
  }
  return known;
}

rnnkernels::ElementType element_type_of(const std::string& dtype) {
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
  for (int i = 0; i < 4; ++i) {
    if (dtype == kNames[i]) return static_cast<rnnkernels::ElementType>(i);
  }
  throw py::value_error("dtype must be float32, float64, bfloat16 or float16, got " + dtype);
}

const rnnkernels::cuda::Device& device_of(const std::string& name) {
  std::string names;
  for (const auto& [known, device] : devices()) {
    if (known == name) return *device;
    names += (names.empty() ? "" : ", ") + known;
  }
  throw py::value_error("device must be one of " + names + ", got " + name);
}

py::dict plan(int64_t hidden, int64_t batch, const std::string& dtype, int64_t networks,
              const std::string& device, const std::string& team) {
  namespace cuda = rnnkernels::cuda;
  if (hidden < 1 || batch < 1 || networks < 1) {
    throw py::value_error("hidden, batch and networks must be at least 1, got " + std::to_string(hidden) +
                          ", " + std::to_string(batch) + " and " + std::to_string(networks));
  }
  using rnnkernels::kMostElements;
  using rnnkernels::limited_product;
  const int64_t most = std::max(batch, hidden);
  if (limited_product(limited_product(networks, hidden), most) > kMostElements) {
    throw py::value_error("networks * hidden * max(batch, hidden) must be at most 2^48, got " +
                          std::to_string(networks) + ", " + std::to_string(hidden) + " and " +
                          std::to_string(most));
  }
  cuda::LaunchPlan plan;
  std::string message;
  if (!cuda::make_plan({element_type_of(dtype), networks, batch, hidden}, device_of(device), team, &plan,
                       &message)) {
    throw py::value_error("team " + message);
  }
  constexpr const char* kTeams[] = {"block", "cluster", "grid", "steps"};
  const int slices = std::min(plan.part_slices, cuda::register_slices(plan.shape));
  py::dict result;
  result["team"] = kTeams[static_cast<int>(plan.team)];
  result["teams"] = plan.teams;
  result["blocks"] = plan.blocks;
  result["warps"] = plan.warps;
  result["matrix_registers"] = 4 * slices * cuda::tiles_of_warp(plan.shape);
  result["shared_bytes"] = plan.shared_bytes;
  result["workspace_bytes"] = plan.workspace_bytes;
  result["cycles"] = plan.cycles;
  result["text"] = cuda::text(plan);
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What rnnkernels was built with. Importing it registers the torch.ops.rnnkernels operators.";
  m.attr("version") = RNNKERNELS_VERSION;
  m.attr("compiler") = RNNKERNELS_COMPILER;
  m.attr("torch_version") = RNNKERNELS_TORCH_VERSION;
  m.attr("cuda_architectures") = py::tuple(py::str(RNNKERNELS_CUDA_ARCHITECTURES).attr("split")());
  rnnkernels::binding::add_direct_functions(m.ptr());
  m.def("nonlinearities", &nonlinearities, "Names of the nonlinearities, in the order of the C++ list.");
  m.def("instruction_sets", &instruction_sets,
        "The CPU instruction sets that were built, fastest first, with whether each runs here.");
  m.def("active_instruction_set", &active_instruction_set,
        "The CPU instruction set in use, or None if RNNKERNELS_ISA names one that was not built or cannot "
        "run.");
  m.def("known_devices", &known_devices,
        "The devices that plan() accepts, by name: built-in device properties, usable without a GPU, and the "
        "GPUs of this host (cuda:0 ...).");
  m.def(
      "plan", &plan, py::arg("hidden"), py::arg("batch"), py::arg("dtype"), py::arg("networks"),
      py::arg("device"), py::arg("team"),
      "The launch plan of a recurrence of this size on a device: the team of blocks that holds W_hh, the "
      "registers per thread that hold it, the memory of a block and of a launch, and the model's cycles per "
      "step. team: the requested team, one of block, cluster2 to cluster16, grid and steps, or the empty "
      "string for the fastest one by the model. Raises ValueError unless the recurrence fits that team.");
  m.def(
      "read_memory", &read_memory, py::arg("bytes"), py::arg("times"),
      "Seconds that one thread takes to read `bytes` bytes of memory `times` times: the cache's bandwidth.");
}
