"""What a device supports: the kernels of this package, and autocast.

On a device without kernels, every entry point runs the same mathematics as torch operations and warns once.
"""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import Tensor

from rnnkernels import _ops

# What replaces the kernels, as the warning says it.
LOOP = "a loop of torch operations, many times slower"
OPTIMIZER_STEP = "a list of torch operations for a step of an optimizer, in place of one call"


def _registered(operator: str) -> tuple[str, ...]:
    """Return the types of device on which an operator runs; on meta it computes shapes only."""
    return tuple(key.lower() for key in ("CPU", "Meta", "CUDA") if _ops.has_kernel(operator, key))


_OPERATORS = ("leaky_recurrence", "projected_recurrence", "clipped_nesterov_", "nade", "nade_sample")
_DEVICES = {operator: _registered(operator) for operator in _OPERATORS}


def has_kernels(device: torch.device, operator: str = "leaky_recurrence") -> bool:
    """Return whether an operator has a kernel for a device; if not, torch operations replace it."""
    return device.type in _DEVICES[operator]


def autocasts(device: torch.device) -> bool:
    """Return whether autocast is on for a device. The meta device has no autocast."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast is off on the device of ``like``."""
    on = autocasts(like.device)
    return torch.autocast(like.device.type, enabled=False) if on else contextlib.nullcontext()


_warned: set[str] = set()


def warn_without_kernels(device: torch.device, replacement: str = LOOP, stacklevel: int = 4) -> None:
    """Warn that a device has no kernels, once per process for each kind of replacement.

    Args:
        device: The device of the tensors.
        replacement: ``LOOP`` or ``OPTIMIZER_STEP``.
        stacklevel: As for ``warnings.warn``, counted from this function.
    """
    if replacement not in _warned:
        _warned.add(replacement)
        warnings.warn(warning(device, replacement), stacklevel=stacklevel)


# Dynamo evaluates this function while tracing. torch.compiler.assume_constant_result sets the same attribute,
# but imports all of Dynamo.
warn_without_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def warning(device: torch.device, replacement: str = LOOP) -> str:
    """Return the message that says what replaces the kernels, and how to get them."""
    slow = f"tensors on {device} take {replacement}"
    if device.type == "cuda" and not torch.version.hip:
        how = "where nvcc is found (RNNKERNELS_CUDA=1 pip install --no-build-isolation .)"
        return f"rnnkernels was built without CUDA kernels: {slow}; build it {how}"
    return f"rnnkernels has kernels for the CPU and for CUDA: {slow}"
