"""The schedule of the momentum that Sutskever et al. 2013 use with Nesterov momentum.

mu_t = min(mu_max, 1 - 2^(-1 - log2(floor(t / 250) + 1)))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels._checks import unboxed
from rnnkernels.optim._arguments import check_setting, plain_number

__all__ = ["MomentumSchedule", "paper_momentum"]


def paper_momentum(t: int, mu_max: float = 0.99) -> float:
    """Return ``mu_t = min(mu_max, 1 - 2^(-1 - log2(floor(t / 250) + 1)))``.

    It begins at 0.5 and grows every 250 steps: ``paper_momentum(250)`` is 0.75.

    Args:
        t: Index of the step, from 0.
        mu_max: Largest momentum, in [0, 1).

    Returns:
        The momentum, a float.

    Raises:
        ValueError: ``t`` is negative, or ``mu_max`` is outside [0, 1).

    Source: Sutskever, Martens, Dahl and Hinton 2013 (ICML), section 3.
    """
    check_setting("mu_max", mu_max, 0, 1)
    t, mu_max = unboxed(t), unboxed(mu_max)
    if t < 0:
        raise ValueError(f"t must be at least 0, got {t}")
    return float(min(mu_max, 1 - 0.5 / (t // 250 + 1)))


class MomentumSchedule:
    """Set the momentum of each group to :func:`paper_momentum`, step by step.

        schedule = rnnkernels.MomentumSchedule(optimizer)
        for batch in batches:
            ...
            optimizer.step()
            schedule.step()

    Args:
        optimizer: Has ``momentum`` in its groups. The schedule sets it to the momentum of ``t = 0`` at once.
        mu_max: Largest momentum, in [0, 1).

    Raises:
        ValueError: A group has no momentum, or ``mu_max`` is outside [0, 1).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, mu_max: float = 0.99) -> None:
        if not all("momentum" in group for group in optimizer.param_groups):
            raise ValueError(
                f"optimizer must have a momentum in its groups, got a {type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        self.mu_max = plain_number(mu_max)
        self.t = -1
        self.step()

    def step(self) -> None:
        """Set the momentum of the next ``t``; call it after ``optimizer.step()``."""
        self.t += 1
        self._set_momentum()

    def _set_momentum(self) -> None:
        momentum = paper_momentum(self.t, self.mu_max)
        for group in self.optimizer.param_groups:
            if isinstance(group["momentum"], Tensor):
                group["momentum"].fill_(momentum)
            else:
                group["momentum"] = momentum

    def state_dict(self) -> dict[str, Any]:
        """Return ``t`` and ``mu_max``."""
        return {"t": self.t, "mu_max": self.mu_max}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved ``t`` and ``mu_max``, and set the momentum accordingly."""
        self.t, self.mu_max = state_dict["t"], state_dict["mu_max"]
        self._set_momentum()
