"""The recurrence as a loop of torch operations over the steps, for devices without kernels.

    h_t = d h_{t-1} + (1-d) y_t,   y_t = f(p_t + W h_{t-1})  or  p_t + W f(h_{t-1})

torch differentiates it in any mode and any number of times. As in the kernels, half precision is a storage
format. Two things differ from the kernels: the values of a tensor ``d`` are not checked, because reading them
would synchronize with the device; and where such a tensor is 0, an infinite state becomes NaN instead of
being dropped. With the number 0 it is dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._devices import warn_without_kernels, without_autocast
from rnnkernels._ops.nonlinearities import NONLINEARITIES
from rnnkernels._ops.spec import SAVE_NOTHING, RecurrenceSpec, RecurrenceTensors


def leaky_recurrence(
    tensors: RecurrenceTensors, decay: float | Tensor, spec: RecurrenceSpec
) -> tuple[Tensor, Tensor]:
    """``(output, h_n)``, also for G networks. ``decay`` is ``tensors.decay``, or the number that it holds."""
    _check(tensors, spec)
    pre, h0, weight, _, batch_sizes = tensors
    warn_without_kernels(pre.device)
    wide = torch.promote_types(pre.dtype, torch.float32)
    if batch_sizes is None:
        steps: Sequence[Tensor] = pre.to(wide).unbind(-3)
        h = pre.new_zeros(*pre.shape[:-3], *pre.shape[-2:]) if h0 is None else h0
    else:
        assert h0 is not None
        steps, h = torch.split(pre.to(wide), _rows(batch_sizes, pre, h0), -2), h0
    if not steps:
        return pre.clone(), h.clone()
    h, weight, outputs = h.to(wide), weight.to(wide), []
    if isinstance(decay, Tensor):
        decay = decay.to(wide)
        decay = decay.unsqueeze(-2) if decay.dim() == 2 else decay  # [G, 1, H]
    with without_autocast(pre):
        for p in reversed(steps) if spec.reverse else steps:
            rows, others = p.shape[-2], h.shape[-2] - p.shape[-2]
            after = step(h.narrow(-2, 0, rows), p, weight, decay, spec)
            outputs.append(after)
            # Rows that have ended (in reverse: not started) keep their state.
            h = after if batch_sizes is None else torch.cat([after, h.narrow(-2, rows, others)], -2)
    outputs = outputs[::-1] if spec.reverse else outputs
    output = torch.stack(outputs, -3) if batch_sizes is None else torch.cat(outputs, -2)
    return output.to(pre.dtype), h.to(pre.dtype)


def step(h: Tensor, p: Tensor, weight: Tensor, d: float | Tensor, spec: RecurrenceSpec) -> Tensor:
    """``h_t`` from ``h_{t-1}`` and ``p_t``."""
    f = NONLINEARITIES[spec.nonlinearity].value
    y = f(p + h @ weight.mT) if spec.form == "rate" else p + f(h) @ weight.mT
    return y if isinstance(d, float) and d == 0 else d * h + (1 - d) * y


def _check(tensors: RecurrenceTensors, spec: RecurrenceSpec) -> None:
    """Run the operator's own checks, by calling it with meta tensors."""
    device = tensors.pre.device
    for name in ("h0", "weight_hh", "decay"):
        x = getattr(tensors, name)
        if x is not None and x.device != device:
            raise ValueError(f"{name} must be on the device of pre, {device}, got {x.device}")
    shapes = (None if x is None else torch.empty(x.shape, dtype=x.dtype, device="meta") for x in tensors)
    _ops.leaky_recurrence(*shapes, *spec, SAVE_NOTHING)


def _rows(batch_sizes: Tensor, pre: Tensor, h0: Tensor) -> list[int]:
    """The number of rows of each step, checked as the kernels check them."""
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
