"""The kernels' own tests, built without torch: plain, and under the address and thread sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT, TOOLS


def build(sanitizer: str, program: str) -> Path:
    """Configure and build one of the tests (only what changed since the last time), and return its path."""
    cmake, ninja = (shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        pytest.skip("needs cmake and ninja")
    folder = ROOT / "build" / f"native-{sanitizer or 'plain'}"
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DRNNKERNELS_SANITIZE={sanitizer}", "-DRNNKERNELS_TORCH="]
    for command in (
        [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *options],
        [cmake, "--build", str(folder), "--target", program],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / program


@pytest.mark.parametrize("program", ["test_cpu", "test_product", "test_optimizer", "test_nade"])
@pytest.mark.parametrize(("sanitizer", "each"), [("", 1), ("address", 3), ("thread", 7)])
def test_kernels_equal_plain_loops(sanitizer: str, each: int, program: str) -> None:
    """`each` thins the cases out where a sanitizer makes them slow."""
    done = subprocess.run([build(sanitizer, program), str(each)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert done.stdout.strip().endswith("0 failures")


# Every n-th case in so many orders of its threads; each of them checks memory and order by itself, too.
@pytest.mark.parametrize(("sanitizer", "each", "orders"), [("", 29, 4), ("address", 397, 20)])
@pytest.mark.parametrize(
    "program",
    ["test_shadow", "test_emulation", "test_emulated_blocks", "test_gpu_recurrence", "test_gpu_steps"],
)
def test_gpu_kernels_on_the_emulated_gpu(program: str, sanitizer: str, each: int, orders: int) -> None:
    check_emulated(program, sanitizer, each, orders)


@pytest.mark.parametrize(("sanitizer", "each", "orders"), [("", 1, 4), ("address", 13, 20)])
def test_the_gpu_s_optimizer_on_the_emulated_gpu(sanitizer: str, each: int, orders: int) -> None:
    check_emulated("test_gpu_optimizer", sanitizer, each, orders)


@pytest.mark.parametrize(("sanitizer", "each", "orders"), [("", 1, 4), ("address", 5, 8)])
def test_the_gpu_s_nade_on_the_emulated_gpu(sanitizer: str, each: int, orders: int) -> None:
    check_emulated("test_gpu_nade", sanitizer, each, orders)


def check_emulated(program: str, sanitizer: str, each: int, orders: int) -> None:
    command = [build(sanitizer, program), str(each), str(orders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert done.stdout.strip().endswith("0 failures")
