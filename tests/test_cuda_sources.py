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


def compile_cuda(source: Path, folder: Path, arch: str) -> subprocess.CompletedProcess[str]:
    command = [NVCC, "-std=c++20", f"-arch={arch}", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-c"]
    command += ["-Xptxas", "-v"]
    return subprocess.run(
        [*command, str(source), "-o", str(folder / "out.o")], capture_output=True, text=True
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_cell_compiles_for_the_gpu(tmp_path: Path, arch: str) -> None:
    source = tmp_path / "cells.cu"
    source.write_text(ALL_CELLS)
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
