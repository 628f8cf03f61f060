"""The kernels' own tests, which use neither torch nor Python: optimized, and under sanitizers."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from background import EMULATED_GPU, CMakeFolder, Job, program
from helpers import ROOT


def module_folder() -> CMakeFolder:
    """The build folder of the Python module, whose kernels are compiled already; or one without torch."""
    cache = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}" / "CMakeCache.txt"
    if cache.exists():
        found = re.search(r"^pybind11_DIR:\w+=(.+)$", cache.read_text(), re.MULTILINE)
        if found and Path(found.group(1)).exists():  # not one of a build in isolation
            return CMakeFolder(cache.parent.name, {})
    return CMakeFolder("native", {"RNNKERNELS_TORCH": ""})


def sanitized(sanitizer: str, generic: str) -> CMakeFolder:
    """Programs with sanitizers, for the generic instruction set only or for all of them."""
    options = {"RNNKERNELS_TORCH": "", "RNNKERNELS_SANITIZE": sanitizer, "RNNKERNELS_GENERIC": generic}
    return CMakeFolder(f"native-{sanitizer.replace(',', '-')}{'-generic' * (generic == 'ON')}", options)


MODULE, GENERIC = module_folder(), sanitized("address,undefined", "ON")
ADDRESS, THREAD = sanitized("address,undefined", "OFF"), sanitized("thread", "OFF")

# Arguments thin a program's cases out: every n-th of them, on the emulated GPU each in so many orders of its
# threads. Optimized and sanitized, in a quick run; the same in a full one.
ON_CPU = {
    "test_cpu": ("3", "11", "1", "1"),
    "test_threads": ("", "", "", ""),
    "test_product": ("3", "11", "1", "1"),
    "test_optimizer": ("5", "7", "1", "1"),
    "test_nade": ("1", "7", "1", "1"),
}
ON_EMULATED_GPU = {
    "test_shadow": ("", "", "", ""),
    "test_emulation": ("", "", "", ""),
    "test_emulated_blocks": ("", "", "", ""),
    "test_gpu_recurrence": ("59 4", "397 4", "1 4", "97 20"),
    "test_gpu_steps": ("7 4", "397 4", "1 4", "97 20"),
    "test_gpu_optimizer": ("7 4", "29 4", "1 4", "13 20"),
    "test_gpu_nade": ("7 4", "13 4", "1 4", "5 8"),
}


def programs() -> Iterator[Any]:
    for optimized, table in ((MODULE, ON_CPU), (EMULATED_GPU, ON_EMULATED_GPU)):
        for name, arguments in table.items():
            folders = [(optimized, 0), (GENERIC, 1), (optimized, 2), (ADDRESS, 3)]
            if table is ON_CPU:  # the emulated GPU is one thread
                folders.append((THREAD, 3))
            for folder, column in folders:
                yield pytest.param(
                    program(folder, name, *arguments[column].split()),
                    id=f"{name} {arguments[column]} in {folder.path.name}",
                    marks=[pytest.mark.slow] if column > 1 else [],
                )


@pytest.mark.parametrize("job", list(programs()))
def test_a_program_has_no_failures(job: Job) -> None:
    done = job.result()
    assert done.returncode == 0, done.stdout[-10000:]
    assert done.stdout.strip().endswith("0 failures")
