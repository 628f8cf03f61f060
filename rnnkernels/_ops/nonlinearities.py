"""The nonlinearities as differentiable torch functions, for derivatives and devices without kernels.

Each is one line, under its name in the C++ list: ``f(z)``, and ``f'(z)`` as a function of ``a = f(z)``,
because forward saves ``a``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Nonlinearity(NamedTuple):
    """``f``, and its slope given ``f(z)``."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    binary_slope: bool = False  # whether f' is 0 or 1: forward saves bits


NONLINEARITIES: dict[str, Nonlinearity] = {
    "relu": Nonlinearity(torch.relu, lambda a: (a > 0).to(a.dtype), binary_slope=True),
    "tanh": Nonlinearity(torch.tanh, lambda a: 1 - a * a),
    "sigmoid": Nonlinearity(torch.sigmoid, lambda a: a * (1 - a)),
    "softplus": Nonlinearity(lambda z: torch.logaddexp(z, torch.zeros_like(z)), lambda a: -torch.expm1(-a)),
}
