"""Parameters that are spread over processes as DTensors (fully_shard): the norm of the whole model.

Each process sums the powers of what it holds. Where a mesh dimension shards, the parts of all its processes
are gathered and joined; where it replicates, every process has them all already. Gathered rather than
reduced, because a maximum that is reduced on the way may lose a NaN, and so that all processes join the same
numbers in the same order: they must decide the same.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

Place = Any  # (mesh, placements) of a DTensor, None for any other tensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; shares its memory."""
    with torch.no_grad():  # with autograd it would be a view
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Gradients:
    """The gradients of one step, each spread as its parameter is (pending sums are carried out).

    Those of one place are dealt with together and by themselves: all processes of its mesh come to the
    same norm, and so to the same next call, whatever the gradients of other places are.
    """

    def __init__(self, grads: list[Tensor | None], params: list[Tensor], operators: Any) -> None:
        self._operators = operators
        self.local: list[Tensor | None] = []
        self._indices: dict[Place, list[int]] = {}
        self._norms: dict[Place, Tensor] = {}
        for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
            if isinstance(grad, DTensor) and isinstance(param, DTensor):
                if grad.placements != param.placements:
                    grad = grad.redistribute(param.device_mesh, param.placements)
                self._indices.setdefault((grad.device_mesh, grad.placements), []).append(i)
            elif grad is not None:
                self._indices.setdefault(None, []).append(i)
            self.local.append(None if grad is None else local(grad))

    def norm(self, p: float) -> Tensor:
        """``(sum |g|^p)^(1/p)`` (or ``max |g|``) over the whole model: a float64 scalar."""
        self._norms = {place: self._norm_of(place, p) for place in self._indices}
        if not self._norms:
            return torch.zeros((), dtype=torch.float64, device="cpu")
        parts = torch.stack(list(self._norms.values()))
        largest = parts.amax()
        if p == math.inf or not 0 < float(largest) < math.inf:
            return largest
        return largest * (parts / largest).pow(p).sum() ** (1 / p)

    def first_not_finite(self) -> int | None:
        """The index of the first infinite or NaN gradient of the whole model, after ``norm``."""
        bad: list[int] = []
        for place, norm in self._norms.items():
            if not bool(torch.isfinite(norm)):
                grads = [cast(Tensor, self.local[i]) for i in self._indices[place]]
                flags = torch.stack([(~torch.isfinite(grad)).any() for grad in grads]).to(torch.float64)
                flags = _joined(flags, place, largest=True)
                bad += [i for i, flag in zip(self._indices[place], flags.tolist(), strict=True) if flag]
        return min(bad, default=None)

    def _norm_of(self, place: Place, p: float) -> Tensor:
        """Where powers leave float64's range in units of the largest gradient, as in core/optimizer.h."""
        total = self._power_sum(place, p, 1.0)
        if p == math.inf:
            return total
        if 2.0**-960 < float(total) < math.inf:
            return total ** (1 / p)
        largest = self._power_sum(place, math.inf, 1.0)
        if not 0 < float(largest) < math.inf:
            return largest
        return largest * self._power_sum(place, p, float(largest)) ** (1 / p)

    def _power_sum(self, place: Place, p: float, unit: float) -> Tensor:
        held = [self.local[i] for i in self._indices[place]]
        part = self._operators.gradient_power_sum(held, p, unit)
        return _joined(part, place, largest=p == math.inf)


def _joined(part: Tensor, place: Place, largest: bool) -> Tensor:
    """The sums, or maxima, over the processes among which the mesh shards."""
    if place is None:
        return part
    mesh, placements = place
    for dimension, placement in enumerate(placements):
        if not placement.is_replicate():
            parts = [torch.empty_like(part) for _ in range(mesh.size(dimension))]
            dist.all_gather(parts, part, group=mesh.get_group(dimension))
            stacked = torch.stack(parts)
            part = stacked.amax(0) if largest else stacked.sum(0)
    return part
