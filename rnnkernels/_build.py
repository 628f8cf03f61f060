"""The build configuration, and the check that the extension exists and fits the installed torch."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch

from rnnkernels._version import __version__

_RECORD = Path(__file__).with_name("_build.json")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def use_installed() -> None:
    """Replace this package by an installed one if this one is a source folder without an extension.

    Python looks into the current folder first. In a clone it finds the sources there, which cannot run,
    before the package that was installed from them. All imports after this call find the installed modules.

    Raises:
        ImportError: The installed package has another version.
    """
    if _RECORD.exists():
        return
    here = _RECORD.parent
    folders = (Path(path, here.name) for path in sys.path)
    installed = next((x for x in folders if Path(x, _RECORD.name).exists()), None)
    if installed is None:
        return  # check_torch says what to do
    if Path(installed, "_version.py").read_text() != Path(here, "_version.py").read_text():
        raise ImportError(
            f"rnnkernels is installed in {installed}, but the sources of another version are found before "
            f"it, in {here}: install these, or run Python in another folder"
        )
    for name in [name for name in sys.modules if name.split(".")[0] == here.name]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        here.name, installed / "__init__.py", submodule_search_locations=[str(installed)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[here.name] = package
    spec.loader.exec_module(package)


def check_torch() -> None:
    """Check that the extension was built against the installed minor version of torch.

    An extension that was built against the headers of another version could crash or give wrong results.

    Raises:
        ImportError: The extension has not been built, or was built against another minor version.
    """
    if not _RECORD.exists():
        raise ImportError(
            "rnnkernels has no compiled extension here: install it with "
            "`pip install --no-build-isolation .` (a source folder on the path is not enough)"
        )
    built = json.loads(_RECORD.read_text())["torch"]
    if _minor(built) != _minor(torch.__version__):
        raise ImportError(
            f"rnnkernels was built against torch {built}, but torch {torch.__version__} is "
            "installed: reinstall rnnkernels to build it against this one"
        )


def build_config() -> dict[str, Any]:
    """Return what the package was built with and what is active in this process.

    ``python -m rnnkernels`` prints the same.

    Returns:
        A dictionary of plain values: ``version``; ``compiler``; ``instruction_sets``, a dictionary that says
        for each instruction set whether this processor has it; ``active_instruction_set``, None if
        ``RNNKERNELS_ISA`` names one that cannot run; ``cuda``, whether CUDA kernels were built;
        ``cuda_architectures``; ``built_against_torch`` and ``torch``, the versions at build time and now;
        ``threads``; and ``nonlinearities``.
    """
    from rnnkernels import _C

    return {
        "version": __version__,
        "compiler": _C.compiler,
        "instruction_sets": _C.instruction_sets(),
        "active_instruction_set": _C.active_instruction_set(),
        "cuda": bool(_C.cuda_architectures),
        "cuda_architectures": list(_C.cuda_architectures),
        "built_against_torch": _C.torch_version,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "nonlinearities": _C.nonlinearities(),
    }
