"""Builds and programs that tests wait for. They run at low priority, beside the tests that need neither.

A test takes a ``job`` from ``@pytest.mark.parametrize("job", ...)``. ``conftest.py`` starts the jobs of the
selected tests when the first test starts, and runs the tests that have one after all others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, TOOLS

WORKERS = len(os.sched_getaffinity(0))

_pool = ThreadPoolExecutor(WORKERS)
_running: set[subprocess.Popen[str]] = set()
_stopped = False


def run(
    *command: str | Path, variables: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program at low priority, and return its status with its output and errors in one text."""
    process = subprocess.Popen(
        ["nice", "-n", "19", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env=os.environ | (variables or {}),
        start_new_session=True,
    )
    _running.add(process)
    if _stopped:
        stop()
    output, _ = process.communicate()
    _running.discard(process)
    return subprocess.CompletedProcess(process.args, process.returncode, output, "")


def stop() -> None:
    """Drop the jobs that wait, and end the programs that run."""
    global _stopped
    _stopped = True
    _pool.shutdown(wait=False, cancel_futures=True)
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


class Job:
    """A function that is called once, in the background. It builds ``targets`` of ``folder``."""

    def __init__(
        self, function: Callable[[], Any], folder: CMakeFolder | None = None, targets: tuple[str, ...] = ()
    ) -> None:
        self._function = function
        self._folder, self._targets = folder, targets
        self._future: Future[Any] | None = None

    def start(self) -> None:
        if self._future is None:
            if self._folder is not None:
                self._folder.announce(*self._targets)
            self._future = _pool.submit(self._function)

    def result(self) -> Any:
        """What the function returned; raises what it raised, ``pytest.skip`` included."""
        self.start()
        assert self._future is not None
        return self._future.result()


class CMakeFolder:
    """A CMake build of this repository in ``build/<name>``, which the next run of the tests finds again.

    The first target that is asked for is built together with all others that were announced.
    """

    def __init__(self, name: str, options: Mapping[str, str] | Callable[[], Mapping[str, str]]) -> None:
        self.path = ROOT / "build" / name
        self._options = options
        self._announced: set[str] = set()
        self._built: set[str] = set()
        self._lock = threading.Lock()

    def announce(self, *targets: str) -> None:
        self._announced.update(targets)

    def build(self, target: str) -> Path:
        """Configure and build, and return the target's path. Skip the test if CMake or Ninja is missing."""
        with self._lock:
            if target not in self._built:
                targets = self._announced - self._built | {target}
                self._configure_and_build(sorted(targets))
                self._built |= targets
        return self.path / target

    def _configure_and_build(self, targets: list[str]) -> None:
        cmake, ninja = (shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja"))
        if cmake is None or ninja is None:
            pytest.skip("needs cmake and ninja")
        options = dict(self._options() if callable(self._options) else self._options)
        options["CMAKE_MAKE_PROGRAM"] = ninja
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        for command in (
            [cmake, "-S", str(ROOT), "-B", str(self.path), "-G", "Ninja", *definitions],
            [cmake, "--build", str(self.path), "--parallel", str(WORKERS), "--target", *targets],
        ):
            done = run(*command)
            assert done.returncode == 0, done.stdout[-20000:]


def program(folder: CMakeFolder, target: str, *arguments: str) -> Job:
    """Build a program and run it with these arguments."""
    return Job(lambda: run(folder.build(target), *arguments), folder, (target,))


def _options_of_emulated_gpu() -> dict[str, str]:
    return {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pytest.importorskip("pybind11").get_cmake_dir(),
        "RNNKERNELS_TORCH": str(Path(torch.__file__).parent),
        "RNNKERNELS_TORCH_VERSION": torch.__version__,
        "RNNKERNELS_CUDA_ARCHITECTURES": "",
        "RNNKERNELS_EMULATED": "ON",
        "RNNKERNELS_GENERIC": "ON",
    }


# A module that gives CPU tensors to the CUDA kernels, on the emulated GPU; with it the native tests of both.
EMULATED_GPU = CMakeFolder(f"emulated-{sys.implementation.cache_tag}", _options_of_emulated_gpu)
