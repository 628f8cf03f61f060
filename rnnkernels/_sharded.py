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


def power_sum(params: list[Tensor], grads: list[Tensor | None], norm_type: float) -> Tensor:
    """``sum |g|^p`` (or ``max |g|``) over the whole model: a float64 scalar, equal on all processes."""
    spread: dict[Any, list[Tensor | None]] = {}
    for param, grad in zip(params, grads, strict=True):
        if grad is None:
            continue
        placed = placed_like(grad, param)
        key = (placed.device_mesh, placed.placements) if isinstance(placed, DTensor) else None
        spread.setdefault(key, []).append(local(placed))
    largest = norm_type == math.inf
    total = torch.zeros((), dtype=torch.float64)
    for key, held in spread.items():
        part = _ops.gradient_power_sum(held, norm_type)
        if key is not None:
            mesh, placements = key
            for dimension, placement in enumerate(placements):
                if placement.is_replicate():
                    continue
                operation = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
                dist.all_reduce(part, operation, group=mesh.get_group(dimension))
        total = torch.maximum(total, part) if largest else total + part
    return total
