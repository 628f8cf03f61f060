"""Checks of the optimizers' settings and parameters; the dtype in which a parameter is updated."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rnnkernels._checks import unboxed

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_setting(
    name: str, value: Any, least: float, below: float = math.inf, *, above: bool = False
) -> None:
    """Raise ValueError unless ``value`` is a number in ``[least, below)``.

    Args:
        name: The setting's name, for the message.
        value: A number, or a tensor of one element. The value of a tensor is read on the CPU only, because
            reading it from another device would synchronize.
        least: The lower end of the interval.
        below: The upper end of the interval.
        above: Check for ``(least, below]`` instead.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or have one element, got shape {list(value.shape)}")
        if value.device.type != "cpu":
            return
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not (least < number <= below if above else least <= number < below):
        interval = f"({least:g}, {below:g}]" if above else f"[{least:g}, {below:g})"
        raise ValueError(f"{name} must lie in {interval}, got {value!r}")


def check_norm_type(norm_type: Any) -> None:
    """Raise ValueError unless ``norm_type`` is positive or inf."""
    if isinstance(norm_type, bool) or not isinstance(norm_type, Real) or not float(norm_type) > 0:
        raise ValueError(f"norm_type must be a positive number or inf, got {norm_type!r}")


def plain_number(value: Any) -> Any:
    """Return a number or flag that is not Python's, such as NumPy's, as Python's, and all else as it is.

    ``torch.load`` refuses a state dictionary with NumPy's numbers. The numbers of a tuple or a list are
    converted, too.
    """
    if type(value) in (tuple, list) and all(isinstance(each, Real) for each in value):
        return type(value)(map(plain_number, value))
    value = unboxed(value)
    is_other = isinstance(value, Real) and not isinstance(value, (int, float))
    return float(value) if is_other else value


def check_bool(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a bool."""
    if not isinstance(unboxed(value), bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_param(name: str, param: Any, device: torch.device) -> None:
    """Raise ValueError unless ``param`` is a dense, real floating-point tensor on ``device``."""
    if not isinstance(param, Tensor):
        return  # torch.optim.Optimizer has raised a TypeError before
    if param.device.type == "meta":
        raise ValueError(f"{name} must have memory, got a tensor on the meta device: materialize it first")
    if param.is_complex():
        raise ValueError(f"{name} must be real, got {param.dtype}: torch.view_as_real gives the two parts")
    check_dense(name, param)
    if param.dtype not in _DTYPES:
        raise ValueError(f"{name} must be float32, float64, bfloat16 or float16, got {param.dtype}")
    if param.device != device:
        raise ValueError(f"{name} must be on the device of the others, {device}, got {param.device}")


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise ValueError if ``tensor`` is sparse."""
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got layout {tensor.layout}")


def compute_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's states, master copy and update: float64 for float64, else float32."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32
