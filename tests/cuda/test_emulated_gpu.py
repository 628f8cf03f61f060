"""The operators on the emulated GPU. A separate module runs CPU tensors through the code for CUDA tensors
(binding, choice of the team, kernels). It must pass the tests of CUDA tensors, except for streams and graphs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TOOLS, run_python

from benchmarks.gpu_report import GPU_TESTS


def build(folder: Path) -> Path:
    """Configure and build in ``folder``, incrementally, and return the path of the module."""
    pybind11 = pytest.importorskip("pybind11")
    cmake, ninja = (shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        pytest.skip("needs cmake and ninja")
    options = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "RNNKERNELS_TORCH": str(Path(torch.__file__).parent),
        "RNNKERNELS_TORCH_VERSION": torch.__version__,
        "RNNKERNELS_CUDA_ARCHITECTURES": "",
        "RNNKERNELS_EMULATED": "ON",
    }
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    for command in (
        configure + [f"-D{name}={value}" for name, value in options.items()],
        [cmake, "--build", str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (module,) = folder.glob("_C*.so")
    return module


def test_cuda_tests_pass_on_the_emulated_gpu(tmp_path: Path) -> None:
    module = build(ROOT / "build" / f"emulated-{sys.implementation.cache_tag}")
    package = tmp_path / "rnnkernels"
    package.mkdir()
    sources = (ROOT / "rnnkernels").iterdir()
    for source in [module, *(path for path in sources if path.suffix == ".py" or path.is_dir())]:
        (package / source.name).symlink_to(source)
    (package / "_build.json").write_text(json.dumps({"torch": torch.__version__}))
    variables = {"PYTHONPATH": str(tmp_path), "RNNKERNELS_TEST_DEVICE": "cpu"}

    program = "from rnnkernels import _C; print(_C.known_devices()['cuda:0'])"
    assert "'largest_cluster': 16" in run_python("-c", program, cwd=tmp_path, **variables).stdout
    pytest_command = ("-m", "pytest", *GPU_TESTS, "-p", "no:cacheprovider")
    done = run_python(*pytest_command, cwd=tmp_path, timeout=600, **variables)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert " passed" in done.stdout
