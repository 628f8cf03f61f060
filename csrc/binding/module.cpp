// The Python module: what was built. Loading it registers the operators, too.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/nonlinearities.h"
#include "cpu/kernels.h"

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

// Seconds.
double read_memory(int64_t bytes, int64_t times) {
  const auto* set = rnnkernels::cpu::active_instruction_set();
  if (!set) throw std::runtime_error("RNNKERNELS_ISA names a set that was not built or does not run here");
  if (bytes < 0 || times < 0) throw py::value_error("bytes and times must not be negative");
  const py::gil_scoped_release released;
  constexpr size_t kLine = 64;
  std::vector<float> memory(bytes / sizeof(float) + kLine / sizeof(float), 1.0F);
  const auto begin = (reinterpret_cast<uintptr_t>(memory.data()) + kLine - 1) / kLine * kLine;
  const auto* numbers = reinterpret_cast<const float*>(begin);
  const auto count = static_cast<int64_t>(bytes / sizeof(float));
  volatile float sum = set->kernels->read(numbers, count, 1);
  const auto start = std::chrono::steady_clock::now();
  sum = set->kernels->read(numbers, count, times);
  (void)sum;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What rnnkernels was built with; importing it registers the torch.ops.rnnkernels operators.";
  m.attr("version") = RNNKERNELS_VERSION;
  m.attr("compiler") = RNNKERNELS_COMPILER;
  m.attr("torch_version") = RNNKERNELS_TORCH_VERSION;
  m.attr("cuda_architectures") = py::tuple(py::str(RNNKERNELS_CUDA_ARCHITECTURES).attr("split")());
  m.def("nonlinearities", &nonlinearities, "Names of the nonlinearities, in the order of the C++ list.");
  m.def("instruction_sets", &instruction_sets,
        "The CPU instruction sets that were built, fastest first, and whether each runs here.");
  m.def("active_instruction_set", &active_instruction_set,
        "The one in use, or None if RNNKERNELS_ISA names one that was not built or does not run here.");
  m.def(
      "read_memory", &read_memory, py::arg("bytes"), py::arg("times"),
      "Seconds to read that much memory so many times with one thread: what the cache that holds it gives.");
}
