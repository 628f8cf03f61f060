"""Schedules of the momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels.optim._base import check_setting

__all__ = ["MomentumSchedule", "paper_momentum"]


def paper_momentum(t: int, mu_max: float = 0.99) -> float:
    """``mu_t = min(mu_max, 1 - 2^(-1 - log2(floor(t / 250) + 1)))``, the schedule of the paper's time.

    Args:
        t: The number of the step, from 0.
        mu_max: What it grows to, in [0, 1).

    Source: Sutskever, Martens, Dahl and Hinton 2013 (ICML), section 3.
    """
    check_setting("mu_max", mu_max, 0, 1)
    if t < 0:
        raise ValueError(f"t must be at least 0, got {t}")
    return min(mu_max, 1 - 0.5 / (t // 250 + 1))


class MomentumSchedule:
    """Sets each group's momentum to :func:`paper_momentum`; call ``step()`` after ``optimizer.step()``.

    Args:
        optimizer: With a ``momentum`` in its groups; its momentum is that of t = 0 from here on.
        mu_max: What the momentum grows to, in [0, 1).

    Raises:
        ValueError: A group has no momentum, or ``mu_max`` is outside [0, 1).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, mu_max: float = 0.99) -> None:
        if not all("momentum" in group for group in optimizer.param_groups):
            raise ValueError(
                f"optimizer must have a momentum in its groups, got a {type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        self.mu_max = mu_max
        self.t = -1
        self.step()

    def step(self) -> None:
        """Go on to the next t."""
        self.t += 1
        self._set()

    def _set(self) -> None:
        momentum = paper_momentum(self.t, self.mu_max)
        for group in self.optimizer.param_groups:
            if isinstance(group["momentum"], Tensor):
                group["momentum"].fill_(momentum)
            else:
                group["momentum"] = momentum

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes."""
        return {"t": self.t, "mu_max": self.mu_max}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where another schedule was."""
        self.t, self.mu_max = state_dict["t"], state_dict["mu_max"]
        self._set()
