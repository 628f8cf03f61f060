"""Checks of arguments that the layer and the cell share: what was expected, what came, of which name."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from rnnkernels import _C


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")


def check_sizes(**sizes: int) -> None:
    """Refuse what is no positive int."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} must be an int, got {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero, got {size}")


def check_flags(**flags: bool) -> None:
    """Refuse what is no bool."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {type(flag).__name__}")


def check_choice(name: str, value: str, choices: list[str]) -> None:
    """Refuse what is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_spec(nonlinearity: str, form: str) -> None:
    """Refuse a nonlinearity or a form that the kernels do not have."""
    check_choice("nonlinearity", nonlinearity, _C.nonlinearities())
    check_choice("form", form, ["rate", "current"])


def check_dropout(dropout: float, num_layers: int) -> None:
    """Refuse what is no probability; warn where dropout has nothing to act on."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be a number in [0, 1], got {dropout!r}")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"dropout acts between layers, so dropout={dropout} does nothing in one layer", stacklevel=3
        )


def _registered(operator: str) -> tuple[str, ...]:
    """The types of device on which an operator runs; on meta it has shapes only."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(key.lower() for key in ("CPU", "Meta", "CUDA") if has(f"rnnkernels::{operator}", key))


_OPERATORS = ("leaky_recurrence", "projected_recurrence", "clipped_nesterov_", "nade", "nade_sample")
_DEVICES = {operator: _registered(operator) for operator in _OPERATORS}


def has_kernels(device: torch.device, operator: str = "leaky_recurrence") -> bool:
    """Whether an operator runs on tensors there; where this one does not, ``_fallback`` does."""
    return device.type in _DEVICES[operator]


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device; on meta there is no such thing."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def check_like_input(name: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse another dtype or device than the input's; autocast may mix dtypes."""
    if tensor.device != like.device or (tensor.dtype != like.dtype and not autocasts(like.device)):
        raise RuntimeError(
            f"{name} must have the dtype and device of the input, {like.dtype} on {like.device}, "
            f"got {tensor.dtype} on {tensor.device}"
        )


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """Refuse a generator of another device than the tensors'."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != device.type:
        raise ValueError(f"generator must be on the device of the tensors, {device}, got {generator.device}")
