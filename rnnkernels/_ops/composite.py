"""The recurrence on devices that the kernels do not know: a loop of torch's operations over the steps.

    h_t = d h_{t-1} + (1-d) y_t,   y_t = f(p_t + W h_{t-1})  or  p_t + W f(h_{t-1})

torch differentiates it, in any mode and any number of times. Half precision is storage, as in the kernels.
Unlike there, the values of a tensor ``d`` are not checked, for which one would have to wait for the device;
and where they are 0 an infinite state does not vanish, but becomes NaN. With the number 0 it does.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnkernels._autograd import forward as _autograd
from rnnkernels._checks import autocasts
from rnnkernels._ops.nonlinearities import NONLINEARITIES


def leaky_recurrence(
    pre: Tensor,
    h0: Tensor | None,
    weight_hh: Tensor,
    decay: float | Tensor,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    form: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """As ``_autograd.forward.leaky_recurrence``, also for G networks; ``decay`` may be a number."""
    _check(pre, h0, weight_hh, decay, batch_sizes, nonlinearity, form, reverse)
    _warn_once(pre.device)
    wide = torch.promote_types(pre.dtype, torch.float32)
    if batch_sizes is None:
        steps: Sequence[Tensor] = pre.to(wide).unbind(-3)
        h = pre.new_zeros(*pre.shape[:-3], *pre.shape[-2:]) if h0 is None else h0
    else:
        assert h0 is not None
        steps, h = torch.split(pre.to(wide), _rows(batch_sizes, pre, h0), -2), h0
    if not steps:
        return pre.clone(), h.clone()
    h, weight, outputs = h.to(wide), weight_hh.to(wide), []
    if isinstance(decay, Tensor):
        decay = decay.to(wide)
        decay = decay.unsqueeze(-2) if decay.dim() == 2 else decay  # [G, 1, H]
    with (
        torch.autocast(pre.device.type, enabled=False) if autocasts(pre.device) else contextlib.nullcontext()
    ):
        for p in reversed(steps) if reverse else steps:
            rows, others = p.shape[-2], h.shape[-2] - p.shape[-2]
            after = step(h.narrow(-2, 0, rows), p, weight, decay, nonlinearity, form)
            outputs.append(after)
            # Rows that have ended, or in reverse not begun, keep their state.
            h = after if batch_sizes is None else torch.cat([after, h.narrow(-2, rows, others)], -2)
    outputs = outputs[::-1] if reverse else outputs
    output = torch.stack(outputs, -3) if batch_sizes is None else torch.cat(outputs, -2)
    return output.to(pre.dtype), h.to(pre.dtype)


def step(h: Tensor, p: Tensor, weight: Tensor, d: float | Tensor, nonlinearity: str, form: str) -> Tensor:
    """``h_t``, of ``h_{t-1}`` and ``p_t``."""
    f = NONLINEARITIES[nonlinearity].value
    y = f(p + h @ weight.mT) if form == "rate" else p + f(h) @ weight.mT
    return y if isinstance(d, float) and d == 0 else d * h + (1 - d) * y


def _check(
    pre: Tensor,
    h0: Tensor | None,
    weight_hh: Tensor,
    decay: float | Tensor,
    batch_sizes: Tensor | None,
    *others: Any,
) -> None:
    """The operator's own checks, by a call with tensors that have no memory."""
    d = decay if isinstance(decay, Tensor) else pre.new_empty(())
    for name, x in (("h0", h0), ("weight_hh", weight_hh), ("decay", d)):
        if x is not None and x.device != pre.device:
            raise ValueError(f"{name} must be on the device of pre, {pre.device}, got {x.device}")
    shapes: Any = (
        None if x is None else torch.empty(x.shape, dtype=x.dtype, device="meta")
        for x in (pre, h0, weight_hh, d, batch_sizes)
    )
    _autograd.leaky_recurrence(*shapes, *others)


def _rows(batch_sizes: Tensor, pre: Tensor, h0: Tensor) -> list[int]:
    """The rows of each step, checked as the kernels check them."""
    if batch_sizes.device.type != "cpu":
        raise ValueError(f"batch_sizes must be on the CPU, got {batch_sizes.device}")
    sizes: list[int] = batch_sizes.tolist()
    batch, rows = h0.shape[-2], pre.shape[-2]
    if sizes[:1] != [batch]:
        raise ValueError(f"batch_sizes must begin with the rows of h0, {batch}, got {sizes[:1]}")
    if sizes[-1] <= 0 or any(after > before for before, after in itertools.pairwise(sizes)):
        raise ValueError(f"batch_sizes must be positive and never grow, got {sizes}")
    if sum(sizes) != rows:
        raise ValueError(f"pre must have sum(batch_sizes) rows, got {rows} rows")
    return sizes


_warned: list[torch.device] = []


def _warn_once(device: torch.device) -> None:
    if not _warned:
        _warned.append(device)
        warnings.warn(warning(device), stacklevel=4)


# Dynamo calls it as it is: what torch.compiler.assume_constant_result does, which imports all of Dynamo.
_warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]


def warning(device: torch.device, what: str = "a loop of torch operations, many times slower") -> str:
    """What is done in place of the kernels, and what can be done about it."""
    slow = f"tensors on {device} take {what}"
    if device.type == "cuda" and not torch.version.hip:
        how = "where nvcc is found (RNNKERNELS_CUDA=1 pip install --no-build-isolation .)"
        return f"rnnkernels was built without CUDA kernels: {slow}; build it {how}"
    return f"rnnkernels has kernels for the CPU and for CUDA: {slow}"
