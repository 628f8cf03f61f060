// torch's threads and GPUs in the terms of the kernels.
#include "binding/host.h"

#include <ATen/Config.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <time.h>

#include <algorithm>
#include <atomic>

#include "cpu/available_cpus.h"
#include "cpu/thread_limit.h"
#if defined(RNNKERNELS_CUDA)
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <map>
#include <mutex>

#include "cuda/properties.h"
#endif

namespace rnnkernels::binding {

const cpu::Kernels& active_kernels() {
  const cpu::InstructionSet* set = cpu::active_instruction_set();
  TORCH_CHECK(set != nullptr,
              "RNNKERNELS_ISA must name an instruction set that was built and runs on this processor; "
              "python -m rnnkernels lists them");
  return *set->kernels;
}

namespace {

cpu::ThreadLimit thread_limit;

using Work = void(void* argument, int first, int last);

#if AT_PARALLEL_OPENMP && defined(_OPENMP)

// The time on a CPU of the calling thread.
int64_t cpu_nanoseconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Reading that clock takes a system call, so short regions are measured one time in kEach.
bool measures_next_region(int64_t last_wall) {
  constexpr int64_t kLong = 200'000;
  constexpr unsigned kEach = 16;
  static std::atomic<unsigned> regions{0};
  return last_wall > kLong || regions.fetch_add(1, std::memory_order_relaxed) % kEach == 0;
}

// Runs all slices in a parallel region of OpenMP, and reports the longest time for which one of the threads
// did not run: before its work began and while it lasted.
void run_in_region(const cpu::Threads& threads, int slices, Work* work, void* argument) {
  static std::atomic<int64_t> last_wall{0};
  const bool measures = measures_next_region(last_wall.load(std::memory_order_relaxed));
  const int64_t start = cpu::nanoseconds();
  std::atomic<int64_t> lost{0};
#pragma omp parallel
  {
    const int each = (slices + omp_get_num_threads() - 1) / omp_get_num_threads();
    const int first = omp_get_thread_num() * each, last = std::min(slices, first + each);
    if (first < last && measures) {
      const int64_t cpu_start = cpu_nanoseconds();
      work(argument, first, last);
      const int64_t mine = cpu::nanoseconds() - start - (cpu_nanoseconds() - cpu_start);
      for (int64_t most = lost.load(); mine > most && !lost.compare_exchange_weak(most, mine);) {
      }
    } else if (first < last) {
      work(argument, first, last);
    }
  }
  const int64_t now = cpu::nanoseconds();
  last_wall.store(now - start, std::memory_order_relaxed);
  if (measures) thread_limit.report(threads.count, now, now - start, lost.load());
}

#else

void run_in_region(const cpu::Threads&, int slices, Work* work, void* argument) {
  at::parallel_for(0, slices, 1, [&](int64_t first, int64_t last) {
    work(argument, static_cast<int>(first), static_cast<int>(last));
  });
}

#endif

}  // namespace

cpu::Threads torch_threads() {
  cpu::Threads threads;
  threads.run = run_in_region;
  // OpenMP runs all ranges of a region at the same time. torch's own thread pool only queues them, so two
  // calls could each wait for a range of theirs that is queued behind the other's.
  threads.may_wait = AT_PARALLEL_OPENMP;
  threads.count = at::in_parallel_region() ? 1 : at::get_num_threads();
  return threads;
}

#if AT_PARALLEL_OPENMP && defined(_OPENMP)
LimitedThreads::LimitedThreads() : before_(at::get_num_threads()) {
  if (before_ == 1 || at::in_parallel_region()) return;
  const int64_t now = cpu::nanoseconds();
  const int limit = thread_limit.limit(std::min(before_, cpu::available_cpus(now)), now);
  limits_ = limit < before_;
  if (limits_) omp_set_num_threads(limit);
}
LimitedThreads::~LimitedThreads() {
  if (limits_) omp_set_num_threads(before_);
}
#else
LimitedThreads::LimitedThreads() = default;
LimitedThreads::~LimitedThreads() = default;
#endif

at::Tensor empty_bytes(int64_t bytes, const c10::Device& device) {
  return at::empty({bytes}, at::TensorOptions().device(device).dtype(at::kByte));
}

#if defined(RNNKERNELS_EMULATED)
const cuda::Device* gpu(int index) {
  static constexpr cuda::Device kEmulated = {"emulated", 90, 16, 232448, 16};
  return index <= 0 ? &kEmulated : nullptr;  // a CPU tensor has index -1
}
cuda::Stream current_stream(const c10::Device&) { return nullptr; }
#elif defined(RNNKERNELS_CUDA)
const cuda::Device* gpu(int index) {
  constexpr auto kType = c10::DeviceType::CUDA;
  if (index < 0 || !c10::impl::hasDeviceGuardImpl(kType)) return nullptr;
  if (index >= c10::impl::VirtualGuardImpl(kType).deviceCount()) return nullptr;
  static std::mutex mutex;
  static std::map<int, cuda::Device> read;  // a map's elements never move
  const std::lock_guard lock(mutex);
  if (const auto known = read.find(index); known != read.end()) return &known->second;
  const c10::DeviceGuard guard(c10::Device(kType, static_cast<c10::DeviceIndex>(index)));
  cuda::Device device;
  const cuda::Status status = cuda::current_device(&device);
  TORCH_CHECK(status == 0, "rnnkernels cannot use GPU ", index, ": ", cuda::text(status));
  return &(read[index] = device);
}

namespace {

// Stream::native_handle, or in torch before 2.11 a function of libtorch_cuda.so. That one is looked up at run
// time, because a torch without CUDA has no such library to link with.
template <class Stream>
cuda::Stream handle_of(const Stream& stream) {
  if constexpr (requires { stream.native_handle(); }) {
    return stream.native_handle();
  } else {
    using Get = int32_t (*)(int32_t device, void** stream);
    static const auto get = reinterpret_cast<Get>(
        dlsym(dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD), "aoti_torch_get_current_cuda_stream"));
    void* handle = nullptr;
    TORCH_CHECK(get && get(stream.device_index(), &handle) == 0,
                "rnnkernels cannot find the current CUDA stream of this torch");
    return handle;
  }
}

}  // namespace

cuda::Stream current_stream(const c10::Device& device) {
  return handle_of(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}
#else
const cuda::Device* gpu(int) { return nullptr; }
#endif

#if defined(RNNKERNELS_CUDA) || defined(RNNKERNELS_EMULATED)
void check_launched(cuda::Status status) {
  TORCH_CHECK(status == 0, "a CUDA kernel failed: ", cuda::text(status));
}
#endif

}  // namespace rnnkernels::binding
