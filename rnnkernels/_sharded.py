"""Parameters that are spread over processes as DTensors (fully_shard): the norm of the whole model.

Each process sums the powers of what it holds. Where a mesh dimension shards, the parts are added up
(or their maximum taken) over it; where it replicates, every process has them all already.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from rnnkernels import _ops


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; shares its memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def placed_like(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient, spread as its parameter is (sums that are still pending are carried out)."""
    if isinstance(grad, DTensor) and isinstance(param, DTensor) and grad.placements != param.placements:
        return cast(Tensor, grad.redistribute(param.device_mesh, param.placements))
    return grad


def norm(grads: list[Tensor | None], norm_type: float) -> Tensor:
    """``(sum |g|^p)^(1/p)`` (or ``max |g|``) over the whole model: a float64 scalar, equal on all processes.

    Where powers leave float64's range it is found in units of the largest gradient, as in core/optimizer.h.
    """
    total = _power_sum(grads, norm_type, 1.0)
    if norm_type == math.inf:
        return total
    if 2.0**-960 < float(total) < math.inf:
        return total ** (1 / norm_type)
    largest = _power_sum(grads, math.inf, 1.0)
    if not 0 < float(largest) < math.inf:
        return largest
    return largest * _power_sum(grads, norm_type, float(largest)) ** (1 / norm_type)


def _power_sum(grads: list[Tensor | None], norm_type: float, unit: float) -> Tensor:
    spread: dict[Any, list[Tensor | None]] = {}
    for grad in grads:
        if grad is not None:
            key = (grad.device_mesh, grad.placements) if isinstance(grad, DTensor) else None
            spread.setdefault(key, []).append(local(grad))
    largest = norm_type == math.inf
    total = torch.zeros((), dtype=torch.float64)
    for key, held in spread.items():
        part = _ops.gradient_power_sum(held, norm_type, unit)
        if key is not None:
            mesh, placements = key
            for dimension, placement in enumerate(placements):
                if placement.is_replicate():
                    continue
                operation = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
                dist.all_reduce(part, operation, group=mesh.get_group(dimension))
        total = torch.maximum(total, part) if largest else total + part
    return total
