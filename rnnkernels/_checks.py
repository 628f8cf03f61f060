"""Checks of arguments. A message names the argument, what was expected and what came."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnnkernels import _C
from rnnkernels._devices import autocasts


def check_tensor(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")


# The dtypes of parameters, states and sequences; those of classes. torch has few operators for the others.
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise ValueError unless modules can have parameters of this dtype; None is torch's default."""
    if dtype is not None and dtype not in FLOATING:
        raise ValueError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")


def check_floating(name: str, x: Tensor) -> None:
    """Raise ValueError unless a tensor has a floating-point dtype of at least 16 bits."""
    if not x.is_floating_point():
        raise ValueError(f"{name} must have a floating-point dtype, got {x.dtype}")
    if x.dtype not in FLOATING:
        raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")


def check_real(name: str, x: Tensor) -> None:
    """Raise ValueError unless a tensor has bools, integers or floating-point numbers of the usual dtypes."""
    if x.dtype not in (torch.bool, *INTEGERS, *FLOATING):
        raise ValueError(
            f"{name} must be bool, uint8, int8, int16, int32, int64, float16, bfloat16, float32 or float64, "
            f"got {x.dtype}"
        )


def has_values(x: Tensor) -> bool:
    """Return whether a tensor has values to check: not on the meta device, nor in torch's fake mode."""
    return not x.is_meta and not hasattr(x, "fake_mode")


def unboxed(value: Any) -> Any:
    """Return the Python number that a NumPy scalar holds, and any other value as it is."""
    return value.item() if isinstance(value, np.generic) else value


def checked_size(name: str, size: Any) -> int:
    """Return a size as an int; raise TypeError or ValueError unless it is a positive integer."""
    number = unboxed(size)
    if not hasattr(number, "__index__") or isinstance(number, bool):
        raise TypeError(f"{name} must be an int, got {type(size).__name__}")
    number = operator.index(number)
    if number <= 0:
        raise ValueError(f"{name} must be greater than zero, got {number}")
    return number


def checked_flag(name: str, flag: Any) -> bool:
    """Return a flag as a bool; raise TypeError unless it is one."""
    value = unboxed(flag)
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(flag).__name__}")
    return value


def check_choice(name: str, value: str, choices: list[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_spec(nonlinearity: str, form: str) -> None:
    """Raise ValueError unless the kernels have this nonlinearity and this form."""
    check_choice("nonlinearity", nonlinearity, _C.nonlinearities())
    check_choice("form", form, ["rate", "current"])


def checked_dropout(dropout: Any, num_layers: int) -> float:
    """Return ``dropout`` as a float, with a warning if it has no effect; raise ValueError unless it is a
    probability.
    """
    number = unboxed(dropout)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= 1:
        raise ValueError(f"dropout must be a number in [0, 1], got {dropout!r}")
    if number > 0 and num_layers == 1:
        warnings.warn(
            f"dropout acts between layers, so dropout={number} does nothing in one layer", stacklevel=3
        )
    return float(number)


def check_like_input(name: str, tensor: Tensor, like: Tensor) -> None:
    """Raise RuntimeError unless a tensor has the dtype and device of the input.

    Under autocast the dtypes may differ.
    """
    if tensor.device != like.device or (tensor.dtype != like.dtype and not autocasts(like.device)):
        raise RuntimeError(
            f"{name} must have the dtype and device of the input, {like.dtype} on {like.device}, "
            f"got {tensor.dtype} on {tensor.device}"
        )


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """Raise an error unless ``generator`` is None or a generator for the device of the tensors."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != device.type:
        raise ValueError(f"generator must be on the device of the tensors, {device}, got {generator.device}")
