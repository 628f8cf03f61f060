"""What the extension was built with, and whether that fits the torch that is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rnnkernels._version import __version__

_RECORD = Path(__file__).with_name("_build.json")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check_torch() -> None:
    """Refuse to load an extension that another torch's headers built: it would crash or lie.

    Raises:
        ImportError: The extension was not built, or was built against another minor version of torch.
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
    """What was built and what of it is active, as plain values.

    Returns:
        A dictionary: ``version``, ``compiler``, ``instruction_sets`` (name to whether this processor
        runs it), ``active_instruction_set`` (None if ``RNNKERNELS_ISA`` names an impossible one),
        ``cuda`` (bool), ``cuda_architectures``, ``built_against_torch``, ``torch``, ``threads`` and
        ``nonlinearities``.
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
