"""From the time constants of neuroscience to the decay of this package."""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor


@overload
def decay_from_tau(tau: float, dt: float, *, exact: bool = False) -> float: ...
@overload
def decay_from_tau(tau: Tensor, dt: float, *, exact: bool = False) -> Tensor: ...
def decay_from_tau(tau: float | Tensor, dt: float, *, exact: bool = False) -> float | Tensor:
    r"""The share of the state that is kept over one step, from a time constant.

    For :math:`\tau \dot h = -h + f(\cdot)` sampled every ``dt``,

    .. math:: d = 1 - dt/\tau \;\text{(Euler)} \qquad d = e^{-dt/\tau} \;\text{(exact)}

    The literature's ``alpha = dt / tau`` (and the leak rate of echo-state networks) is the other
    share, ``1 - d``.

    Args:
        tau: Time constant, a positive number or a tensor of them (one for each unit), in the unit
            of ``dt``.
        dt: Length of a step, positive. The Euler form needs ``dt <= tau``.
        exact: The exponential form, exact while the input holds still over a step.

    Returns:
        The decay in ``[0, 1)``, with the type, shape and dtype of ``tau``.

    Raises:
        ValueError: ``tau`` or ``dt`` is not positive and finite, or ``dt > tau`` in the Euler form,
            or the decay is so near 1 that it rounds to 1.
    """
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"dt must be positive and finite, got {dt}")
    taus = tau if isinstance(tau, Tensor) else torch.tensor(float(tau), dtype=torch.float64)
    if not bool(((taus > 0) & torch.isfinite(taus)).all()):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    if not exact and bool((taus < dt).any()):
        raise ValueError(
            f"dt must be at most tau in the Euler form (or use exact=True), got dt={dt}, tau={tau}"
        )
    decay = torch.exp(-dt / taus) if exact else 1 - dt / taus
    if bool((decay >= 1).any()):
        raise ValueError(f"dt must not vanish beside tau: the decay rounds to 1, got dt={dt}, tau={tau}")
    return decay if isinstance(tau, Tensor) else float(decay)
