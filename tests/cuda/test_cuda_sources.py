"""The CUDA sources compiled by nvcc, if it is installed: warnings, registers, spills and instructions. No
test needs a GPU.
"""

import functools
import itertools
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from background import Job, run
from helpers import ROOT

NVCC = shutil.which("nvcc")
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
QUICK_ARCHITECTURE = "sm_90a"  # the one that a quick run compiles for
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

# Every cell of the list, forward and backward, in a kernel.
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


# Every name of device.h, in its implementation on a GPU. Those of clusters trap before sm_90.
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
  memory.store(4 * me.thread, four);
  flag[1] = lowest_bit(flag[0]) + highest_bit(flag[0]);
  auto* words = reinterpret_cast<uint64_t*>(out);
  store_word(words, rounded_pair(four.x, four.y) + rounded<rnnkernels::Float16>(opaque(four.z)), 1);
  uint32_t pairs[2][2];
  await_words(words, 16, 2, 1, pairs);
  out[me.thread] = memory[me.thread];
}
"""


def for_(arch: str) -> list[pytest.MarkDecorator]:
    return [] if arch == QUICK_ARCHITECTURE else [pytest.mark.slow]


class Compiled(NamedTuple):
    """The result of a compilation: exit status, messages, and the object file if there was no error."""

    status: int
    log: str
    object: Path


def compile_cuda(source: Path, folder: Path, arch: str) -> Compiled:
    target = folder / f"{source.stem}.{arch}.o"
    assert NVCC
    command = [NVCC, "-std=c++20", f"-arch={arch}", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-c"]
    done = run(*command, "-Xptxas", "-v", source, "-o", target)
    return Compiled(done.returncode, done.stdout, target)


class Kernel(NamedTuple):
    """A kernel as ptxas reports it; stack and spills in bytes."""

    name: str
    stack: int
    spilled: int
    registers: int


def kernels_of(log: str) -> Iterator[Kernel]:
    entries = re.finditer(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    for name, stack, stores, loads, registers in (entry.groups() for entry in entries):
        yield Kernel(name, int(stack), int(stores) + int(loads), int(registers))


@pytest.mark.parametrize("arch", [pytest.param(arch, marks=for_(arch)) for arch in ARCHITECTURES])
@pytest.mark.parametrize("text", [ALL_CELLS, ALL_PRIMITIVES], ids=["cells", "primitives"])
def test_shared_headers_compile_for_the_gpu(tmp_path: Path, text: str, arch: str) -> None:
    source = tmp_path / "source.cu"
    source.write_text(text)
    done = compile_cuda(source, tmp_path, arch)
    assert done.status == 0, done.log


# The instruction of the products in the kernels of the recurrence.
PRODUCTS = {"recurrence_bfloat16": "HMMA.16816.F32.BF16", "recurrence_float32": "HMMA.1688.F32.TF32",
            "recurrence_float16": "HMMA.1688.F32.TF32"}  # fmt: skip
SOURCES = sorted((ROOT / "csrc").rglob("*.cu"))


def compiled() -> dict[tuple[str, str], Job]:
    """Every source for every architecture, each compiled once for all tests."""
    folder = ROOT / "build" / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = itertools.product(SOURCES, ARCHITECTURES)
    return {
        (source.stem, arch): Job(functools.partial(compile_cuda, source, folder, arch))
        for source, arch in pairs
    }


COMPILED = compiled()


def of_every_architecture(sources: Iterable[str]) -> list[Any]:
    return [
        pytest.param(source, arch, COMPILED[source, arch], id=f"{source}-{arch}", marks=for_(arch))
        for source, arch in itertools.product(sources, ARCHITECTURES)
    ]


@pytest.mark.parametrize(("source", "arch", "job"), of_every_architecture(path.stem for path in SOURCES))
def test_every_kernel_keeps_to_its_registers(source: str, arch: str, job: Job) -> None:
    done = job.result()
    assert done.status == 0, done.log
    kernels = list(kernels_of(done.log))
    assert len(kernels) == done.log.count("Compiling entry function"), done.log
    assert not [kernel for kernel in kernels if kernel.stack or kernel.spilled]
    # A multiprocessor has 65536 registers and runs two blocks of the small shape, with 256 threads each.
    small = [kernel for kernel in kernels if re.search("ForwardPass.*ShapeE0", kernel.name)]
    assert len(small) == (3 if source in PRODUCTS else 0)
    assert all(kernel.registers <= 128 for kernel in small)


@pytest.mark.parametrize(("source", "arch", "job"), of_every_architecture(PRODUCTS))
def test_products_are_the_tensor_cores(source: str, arch: str, job: Job) -> None:
    code = disassembled(job.result().object)
    kernels = {name: text for name, text in code.items() if "recurrence_kernel" in name}
    assert len(kernels) == 28
    for name, text in kernels.items():
        if arch == "sm_80" and "ClusterTeam" in name:
            assert "HMMA" not in text  # without clusters the kernel traps
            continue
        found = set(re.findall(r"HMMA[.\w]*", text))
        assert found == {PRODUCTS[source]}, name
        # Shared memory is accessed by its own instructions, without generic addresses or local memory.
        assert "LDS" in text, name
        assert not re.search(r"\bLD\.E\b|\bST\.E\b|\bLDL\b|\bSTL\b", text), name


def disassembled(path: Path) -> dict[str, str]:
    """The SASS of each kernel, by name."""
    folders = [os.environ["PATH"]]
    for kind in ("purelib", "platlib"):
        folders += [str(p) for p in Path(sysconfig.get_path(kind)).glob("nvidia/*/bin")]
    path_variable = os.pathsep.join(folders)
    tool = shutil.which("cuobjdump", path=path_variable)
    if tool is None or shutil.which("nvdisasm", path=path_variable) is None:
        pytest.skip("needs cuobjdump and nvdisasm (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm on PyPI)")
    command = [tool, "-sass", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path_variable})
    assert done.returncode == 0, done.stderr
    _, *kernels = re.split(r"Function : (\S+)", done.stdout)
    return dict(zip(kernels[::2], kernels[1::2], strict=True))
