"""The gradients of parameters that are divided among processes.

Each process sums the powers of its local gradients. A DTensor (``fully_shard``) tells its processes: along a
mesh dimension that shards, the sums of all processes are gathered and added; along one that replicates, every
process has the same sums already. With a process group, each process has other parameters; the norms of all
processes are gathered and joined. They are gathered and not reduced for two reasons: a reduced maximum may
lose a NaN, and all processes must add the same values in the same order, because they must come to the same
decision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from rnnkernels.optim._decision import norm_over
from rnnkernels.optim._processes import ProcessGroup, check_process_group, is_flattened


class _Place(NamedTuple):
    """Where gradients are: those of one place have a norm of their own."""

    mesh: Any  # of DTensors, None for other tensors
    placements: Any
    divided: bool  # whether each process of the process group has other gradients; False: the same ones


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
        params: The parameters. If some of them are shards of ``FullyShardedDataParallel``, all processes of
            ``group`` have the others; if none is, each process has parameters of its own.
        operators: Has ``gradient_power_sum``.
        group: The processes among which the parameters are divided, or None.
    """

    def __init__(
        self, grads: list[Tensor | None], params: list[Tensor], operators: Any, group: ProcessGroup | None
    ) -> None:
        check_process_group(group)
        self._operators = operators
        self._group = group
        self.local: list[Tensor | None] = []
        self._indices: dict[_Place, list[int]] = {}
        self._norms: dict[_Place, Tensor] = {}
        some_flattened = any(map(is_flattened, params))
        for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
            mesh = placements = None
            if isinstance(grad, DTensor) and isinstance(param, DTensor):
                mesh, placements = param.device_mesh, param.placements
                if grad.placements != placements:
                    grad = grad.redistribute(mesh, placements)
            if grad is not None:
                divided = group is not None and (is_flattened(param) or not some_flattened)
                self._indices.setdefault(_Place(mesh, placements, divided), []).append(i)
            self.local.append(None if grad is None else local(grad))

    def norm(self, p: float, found_inf: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the norm over the whole model, and whether a loss scaler found an overflow anywhere.

        Args:
            p: Of the norm ``(sum |g|^p)^(1/p)``, or ``max |g|`` for inf.
            found_inf: The loss scaler's result in this process.

        Returns:
            The norm, a float64 scalar, and ``found_inf`` of all processes of the process group: a scalar.
        """
        self._norms = {
            place: norm_over(functools.partial(self._norm_of, place), p) for place in self._indices
        }
        whole = _joined((norm for place, norm in self._norms.items() if not place.divided), p)
        if self._group is None:
            return whole, found_inf
        divided = _joined((norm for place, norm in self._norms.items() if place.divided), p)
        mine = [divided, whole, torch.zeros(()) if found_inf is None else found_inf]
        home = next((norm.device for norm in self._norms.values()), torch.device("cpu"))
        if home.type == "cpu" and dist.get_backend(self._group) in ("nccl", "xccl"):
            home = cast(torch.device, torch.accelerator.current_accelerator())
        values = torch.stack([value.detach().to(home, torch.float64).reshape(()) for value in mine])
        norms, wholes, overflows = torch.stack(_gathered(values, self._group)).unbind(1)
        return _joined([*norms, wholes.amax()], p), overflows.amax()

    def first_nonfinite(self) -> int | None:
        """Return the index of the first infinite or NaN gradient of this process; call ``norm`` before."""
        found: list[int] = []
        for place, norm in self._norms.items():
            if not bool(torch.isfinite(norm)):
                grads = [cast(Tensor, self.local[i]) for i in self._indices[place]]
                flags = torch.stack([(~torch.isfinite(grad)).any() for grad in grads]).to(torch.float64)
                flags = _over_mesh(flags, place, largest=True)
                found += [i for i, flag in zip(self._indices[place], flags.tolist(), strict=True) if flag]
        return min(found, default=None)

    def _norm_of(self, place: _Place, p: float, unit: float) -> Tensor:
        held = [self.local[i] for i in self._indices[place]]
        part = self._operators.gradient_power_sum(held, p, unit)
        total = _over_mesh(part, place, largest=p == math.inf)
        return total if p == math.inf else total ** (1 / p)


def first_message(message: str | None, group: ProcessGroup) -> str | None:
    """Return the message of the first process that has one, and the process; every process gets the same."""
    messages: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(messages, message, group=group)
    found = (f"in process {rank} of process_group, {text}" for rank, text in enumerate(messages) if text)
    return next(found, None)


def _joined(norms: Iterable[Tensor], p: float) -> Tensor:
    """Return the norm over several sets of gradients from the norm of each; 0 for none."""
    norms = list(norms)
    if not norms:
        return torch.zeros((), dtype=torch.float64, device="cpu")
    stacked = torch.stack(norms)
    largest = stacked.amax()
    if p == math.inf or not 0 < float(largest) < math.inf:
        return largest
    return largest * (stacked / largest).pow(p).sum() ** (1 / p)


def _over_mesh(part: Tensor, place: _Place, largest: bool) -> Tensor:
    """Return the sum, or the maximum, over the processes among which the mesh shards."""
    for dimension, each in enumerate(place.placements or ()):
        if not each.is_replicate():
            stacked = torch.stack(_gathered(part, place.mesh.get_group(dimension)))
            part = stacked.amax(0) if largest else stacked.sum(0)
    return part


def _gathered(part: Tensor, group: ProcessGroup) -> list[Tensor]:
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part, group=group)
    return parts
