"""The gradients of parameters that are sharded over processes as DTensors (``fully_shard``).

Each process sums the powers of its local gradients. Along a mesh dimension that shards, the sums of all
processes are gathered and added; along one that replicates, every process has the same sums already. They are
gathered and not reduced for two reasons: a reduced maximum may lose a NaN, and all processes must add the
same values in the same order, because they must come to the same decision.
"""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from rnnkernels.optim._decision import norm_over

Placement = Any  # (mesh, placements) of a DTensor, None for any other tensor


def local(tensor: Tensor) -> Tensor:
    """Return the local part of a DTensor, which shares its memory, or the tensor itself."""
    with torch.no_grad():  # with autograd it would be a view
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class ShardedGradients:
    """The gradients of one step, each placed as its parameter is; pending reductions are carried out.

    Gradients with the same placement form a set with a norm of its own. So all processes of a mesh get the
    same norm for a set, and make the same calls, whatever the gradients of other sets are.

    Args:
        grads: The gradient of each parameter, or None.
        params: The parameters.
        operators: Has ``gradient_power_sum``.
    """

    def __init__(self, grads: list[Tensor | None], params: list[Tensor], operators: Any) -> None:
        self._operators = operators
        self.local: list[Tensor | None] = []
        self._indices: dict[Placement, list[int]] = {}
        self._norms: dict[Placement, Tensor] = {}
        for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
            if isinstance(grad, DTensor) and isinstance(param, DTensor):
                if grad.placements != param.placements:
                    grad = grad.redistribute(param.device_mesh, param.placements)
                self._indices.setdefault((grad.device_mesh, grad.placements), []).append(i)
            elif grad is not None:
                self._indices.setdefault(None, []).append(i)
            self.local.append(None if grad is None else local(grad))

    def norm(self, p: float) -> Tensor:
        """Return ``(sum |g|^p)^(1/p)``, or ``max |g|``, over the whole model: a float64 scalar."""
        self._norms = {
            placement: norm_over(functools.partial(self._norm_of, placement), p)
            for placement in self._indices
        }
        if not self._norms:
            return torch.zeros((), dtype=torch.float64, device="cpu")
        norms = torch.stack(list(self._norms.values()))
        largest = norms.amax()
        if p == math.inf or not 0 < float(largest) < math.inf:
            return largest
        return largest * (norms / largest).pow(p).sum() ** (1 / p)

    def first_nonfinite(self) -> int | None:
        """Return the index of the first infinite or NaN gradient of the whole model; call ``norm`` before."""
        found: list[int] = []
        for placement, norm in self._norms.items():
            if not bool(torch.isfinite(norm)):
                grads = [cast(Tensor, self.local[i]) for i in self._indices[placement]]
                flags = torch.stack([(~torch.isfinite(grad)).any() for grad in grads]).to(torch.float64)
                flags = _over_processes(flags, placement, largest=True)
                found += [i for i, flag in zip(self._indices[placement], flags.tolist(), strict=True) if flag]
        return min(found, default=None)

    def _norm_of(self, placement: Placement, p: float, unit: float) -> Tensor:
        held = [self.local[i] for i in self._indices[placement]]
        part = self._operators.gradient_power_sum(held, p, unit)
        total = _over_processes(part, placement, largest=p == math.inf)
        return total if p == math.inf else total ** (1 / p)


def _over_processes(part: Tensor, placement: Placement, largest: bool) -> Tensor:
    """Return the sum, or the maximum, over the processes among which the mesh shards."""
    if placement is None:
        return part
    mesh, placements = placement
    for dimension, each in enumerate(placements):
        if not each.is_replicate():
            parts = [torch.empty_like(part) for _ in range(mesh.size(dimension))]
            dist.all_gather(parts, part, group=mesh.get_group(dimension))
            stacked = torch.stack(parts)
            part = stacked.amax(0) if largest else stacked.sum(0)
    return part
