"""The operators on the emulated GPU. A separate module runs CPU tensors through the code for CUDA tensors
(binding, choice of the team, kernels). It must pass the tests of CUDA tensors, except for streams and graphs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from background import EMULATED_GPU, Job, run
from helpers import ROOT

from benchmarks.gpu_report import GPU_TESTS


def run_cuda_tests() -> tuple[CompletedProcess[str], CompletedProcess[str]]:
    """What the module says of its GPU, and the tests of CUDA tensors with it."""
    EMULATED_GPU.build("_C")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = folder / "rnnkernels"
        package.mkdir()
        sources = (ROOT / "rnnkernels").iterdir()
        modules = [path for path in sources if path.suffix == ".py" or path.is_dir()]
        for source in (*EMULATED_GPU.path.glob("_C*.so"), *modules):
            (package / source.name).symlink_to(source)
        (package / "_build.json").write_text(json.dumps({"torch": torch.__version__}))
        paths = os.pathsep.join([name, str(ROOT / "tests")])
        variables = {"PYTHONPATH": paths, "RNNKERNELS_TEST_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}

        python = [sys.executable, "-X", "faulthandler"]
        code = "from rnnkernels import _C; print(_C.known_devices()['cuda:0'])"
        asked = run(*python, "-c", code, variables=variables, cwd=folder)
        command = [*python, "-m", "pytest", *GPU_TESTS, "-p", "no:cacheprovider"]
        return asked, run(*command, variables=variables, cwd=folder)


@pytest.mark.parametrize("job", [pytest.param(Job(run_cuda_tests, EMULATED_GPU, ("_C",)), id="")])
def test_cuda_tests_pass_on_the_emulated_gpu(job: Job) -> None:
    asked, done = job.result()
    assert "'largest_cluster': 16" in asked.stdout
    assert done.returncode == 0, done.stdout[-10000:]
    assert " passed" in done.stdout
