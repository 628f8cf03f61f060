"""What nvcc makes of the sources, wherever it is installed; nothing here needs a GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("sm_80", "sm_90a")
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

# Every cell of the list, in both directions, as one thread of a GPU would run it.
ALL_CELLS = """
#include "core/cells.h"

using namespace rnnkernels;

template <class Cell, class T>
__global__ void step(T* h, const T* p, T d) {
  T a;
  const T x = Cell::operand(h[threadIdx.x]);
  h[threadIdx.x] = Cell::update(h[threadIdx.x], p[threadIdx.x], x, d, a);
  const T u = Cell::backward_operand(x, d, Cell::Nonlinearity::slope(a));
  h[threadIdx.x] = Cell::backward_update(x, u, d, h[threadIdx.x]);
}

template <class... F>
void launch(NonlinearityList<F...>, float* f, double* g) {
  (step<RateCell<F>><<<1, 32>>>(f, f, 0.5f), ...);
  (step<CurrentCell<F>><<<1, 32>>>(f, f, 0.5f), ...);
  (step<RateCell<F>><<<1, 32>>>(g, g, 0.5), ...);
  (step<CurrentCell<F>><<<1, 32>>>(g, g, 0.5), ...);
}

void launch_all(float* f, double* g) { launch(Nonlinearities{}, f, g); }
"""


# Every name of device.h, in the GPU's body. The clusters' trap before sm_90.
ALL_PRIMITIVES = """
#include "cuda/device.h"

using namespace rnnkernels::device;

__global__ void every_primitive(float* out, const float* in, unsigned* flag) {
  const Place me = place();
  const Shared<float> memory = shared_memory<float>(128, 256);
  const Mbarrier barrier(shared_memory<uint64_t>(0, 1));
  if (me.thread == 0) barrier.init(me.threads);
  copy_async(memory, 4 * me.thread, me.block == 0 ? in + 4 * me.thread : nullptr);
  commit_copies();
  wait_copies<0>();
  sync_block();
  sync_warp();
  sync_cluster();
  barrier.expect(4);
  store_async(memory.of_peer(me.cluster_rank ^ 1), me.thread, 1.0f, barrier.of_peer(me.cluster_rank ^ 1));
  barrier.arrive();
  barrier.arrive_at_peer(0);
  barrier.wait(0);
  Sums c{};
  const float4 four = memory.slice(0, 128).load<float4>(4 * (me.thread % 32));
  multiply_add(c, TF32Fragments::A{{four.x, four.y, four.z, four.w}}, TF32Fragments::B{{four.x, four.y}});
  multiply_add(c, BFloat16Fragments::A{{1, 2, 3, 4}}, BFloat16Fragments::B{{5, 6}});
  memory.set(me.thread, shuffle_xor(c.x[0] + memory[me.thread], 1));
  store_release(flag, load_acquire(flag) + add_release(flag, 1));
  out[me.thread] = memory[me.thread];
}
"""


def compile_cuda(source: Path, folder: Path, arch: str) -> subprocess.CompletedProcess[str]:
    command = [NVCC, "-std=c++20", f"-arch={arch}", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-c"]
    command += ["-Xptxas", "-v"]
    return subprocess.run(
        [*command, str(source), "-o", str(folder / "out.o")], capture_output=True, text=True
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("text", [ALL_CELLS, ALL_PRIMITIVES], ids=["cells", "primitives"])
def test_what_the_host_compiles_too_compiles_for_the_gpu(tmp_path: Path, text: str, arch: str) -> None:
    source = tmp_path / "source.cu"
    source.write_text(text)
    done = compile_cuda(source, tmp_path, arch)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", sorted((ROOT / "csrc").rglob("*.cu")), ids=lambda path: path.stem)
def test_every_cuda_source_compiles_and_keeps_to_its_registers(
    tmp_path: Path, source: Path, arch: str
) -> None:
    done = compile_cuda(source, tmp_path, arch)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert spills and set(spills) == {"0"}, done.stderr
