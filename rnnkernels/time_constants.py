"""From the time constants of neuroscience to the decay of this package, and the noise that suits it."""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor

__all__ = ["decay_from_tau", "draw_decay", "draw_tau", "noise_scale"]


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


def draw_tau(
    *size: int,
    low: float,
    high: float,
    log_uniform: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Time constants for :func:`decay_from_tau`, drawn independently.

    .. math:: \tau \sim U(low, high) \qquad \text{or} \qquad \log\tau \sim U(\log low, \log high)

    Args:
        size: Shape, ``H`` for one for each unit.
        low, high: Range, ``0 < low <= high``, in the unit of ``dt``.
        log_uniform: Each factor of two within the range is equally likely, not each millisecond.
        generator, device, dtype: As for ``torch.rand``.

    Returns:
        A tensor of that size with values from ``low`` to ``high``.

    Raises:
        ValueError: The range is not positive, finite and ordered.
    """
    if not (0 < low <= high and math.isfinite(high)):
        raise ValueError(f"low and high must be positive, finite and in order, got {low} and {high}")
    share = torch.rand(size, generator=generator, device=device, dtype=dtype)
    drawn = low * (high / low) ** share if log_uniform else low + (high - low) * share
    return drawn.clamp(low, high)  # against rounding at the ends


def draw_decay(
    *size: int,
    low: float = 0.02,
    high: float = 0.2,
    log_uniform: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Decays drawn by the share of the state that is new, independently.

    .. math:: 1 - d \sim U(low, high) \qquad \text{or} \qquad \log(1 - d) \sim U(\log low, \log high)

    In Euler's form the new share is ``dt / tau``: the default range is a ``tau`` of 5 to 50 steps, and the
    log-uniform draw is that of ``tau`` too.

    Args:
        size: Shape, ``H`` for one for each unit, ``(N, H)`` for one for each of every layer and direction.
        low, high: Range of the new share, ``0 < low <= high <= 1``.
        log_uniform: Draw its logarithm uniformly.
        generator, device, dtype: As for ``torch.rand``.

    Returns:
        A tensor of that size with values from ``1 - high`` to ``1 - low``.

    Raises:
        ValueError: The range is not positive, ordered and at most 1, or so low that a decay rounds to 1.
    """
    if not high <= 1:
        raise ValueError(f"high must be at most 1, the whole state, got {high}")
    kind = {"generator": generator, "device": device, "dtype": dtype}
    decay = 1 - draw_tau(*size, low=low, high=high, log_uniform=log_uniform, **kind)  # type: ignore[arg-type]
    if bool((decay >= 1).any()):
        raise ValueError(f"low must not be so small that a decay rounds to 1, got {low}")
    return decay


@overload
def noise_scale(sigma: float, decay: float, *, added_to: str = "drive") -> float: ...
@overload
def noise_scale(sigma: float, decay: Tensor, *, added_to: str = "drive") -> Tensor: ...
def noise_scale(sigma: float, decay: float | Tensor, *, added_to: str = "drive") -> float | Tensor:
    r"""By what to multiply standard normal numbers so that noise has the size ``sigma`` in the state.

    The state of a unit with white noise is :math:`\tau\,dh = (-h + \ldots)\,dt + \sigma\sqrt{2\tau}\,dW`,
    which by itself settles at the standard deviation :math:`\sigma`, whatever :math:`\tau` is. A step of
    Euler-Maruyama, with :math:`\alpha = dt/\tau = 1 - d` and :math:`\xi \sim N(0, 1)`, is

    .. math:: h_t = d\,h_{t-1} + \alpha\,(\ldots) + \sigma\sqrt{2\alpha}\;\xi_t
                 = d\,h_{t-1} + \alpha\,(\ldots + \sigma\sqrt{2/\alpha}\;\xi_t)

    The drive is inside of the bracket that ``1 - d`` multiplies, so it takes the second factor: exactly
    so in the current form; in the rate form it is inside of ``f``, where the factor is the same by
    convention (Yang et al. 2019, doi 10.1038/s41593-018-0310-2) and exact where ``f`` has slope 1.
    Noise added to the state itself, after the leak, takes the first. Sampled in steps, the variance of
    the state is :math:`\sigma^2 \cdot 2/(1 + d)`: Euler's error, which vanishes with ``dt``.

        drive = rnnkernels.noise_scale(0.05, rnn.decay) * torch.randn(T, B, H)

    Args:
        sigma: Standard deviation of the state, in its unit.
        decay: ``d``, a number or a tensor.
        added_to: ``"drive"``, :math:`\sigma\sqrt{2/\alpha}`; or ``"state"``, :math:`\sigma\sqrt{2\alpha}`.

    Returns:
        The factor, with the type and shape of ``decay``.

    Raises:
        ValueError: ``sigma`` is negative, ``decay`` is not in ``[0, 1)``, or ``added_to`` is neither.
    """
    if added_to not in ("drive", "state"):
        raise ValueError(f"added_to must be 'drive' or 'state', got {added_to!r}")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and not negative, got {sigma}")
    new = 1 - decay
    if not bool(torch.as_tensor((new > 0) & (new <= 1)).all()):
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    squared = 2 / new if added_to == "drive" else 2 * new
    return sigma * squared**0.5
