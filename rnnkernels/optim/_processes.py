"""The processes among which parameters are divided other than as DTensors, whose mesh says it.

A process group comes from the caller. ``ZeroRedundancyOptimizer`` makes an optimizer of the parameters of one
process, without telling it, so its group is looked up while it does. A parameter of
``FullyShardedDataParallel`` is marked, but does not know its group, so there the caller must pass it.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch import Tensor

ProcessGroup = Any  # torch.distributed.ProcessGroup, which a torch that was built without it lacks

# Takes the place of a process group in a copied or unpickled optimizer.
NOT_COPIED = "not copied"

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"


def check_process_group(group: object) -> None:
    """Raise ValueError unless ``group`` is None or a process group that this process belongs to."""
    if group is None:
        return
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        again = ": assign optimizer.process_group again" if group == NOT_COPIED else ""
        expected = "process_group must be a torch.distributed.ProcessGroup with this process, or None"
        raise ValueError(f"{expected}, got {group!r}{again}")


def is_flattened(param: Tensor) -> bool:
    """Return whether a parameter is a shard of ``FullyShardedDataParallel``, or is part of one."""
    return getattr(param, "_fsdp_flattened", False)


def check_whole(name: str, param: Tensor) -> None:
    """Raise ValueError if a parameter is marked as a shard, for an optimizer without a process group."""
    if is_flattened(param) and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"{name} must be whole, got a shard of FullyShardedDataParallel: pass the sharding group,"
            " process_group=model.process_group, so that the norm is that of all shards"
        )


def group_of_zero() -> ProcessGroup | None:
    """Return the process group of the ``ZeroRedundancyOptimizer`` that is making an optimizer, if one is.

    It passes the optimizer nothing but parameters and settings, so the calling functions are the only place
    to find it.
    """
    if _ZERO not in sys.modules:
        return None
    zero = sys.modules[_ZERO].ZeroRedundancyOptimizer
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _ZERO and isinstance(frame.f_locals.get("self"), zero):
            return frame.f_locals["self"].process_group
        frame = frame.f_back
    return None
