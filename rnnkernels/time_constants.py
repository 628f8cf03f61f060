"""Conversions between the time constants of rate networks and this package's decay, and noise scales.

tau dh/dt = -h + f(...)        d = 1 - dt / tau  (Euler)        d = exp(-dt / tau)  (exact)
"""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor

from rnnkernels._checks import has_values, unboxed

__all__ = ["decay_from_tau", "draw_decay", "draw_tau", "noise_scale"]


@overload
def decay_from_tau(tau: float, dt: float, *, exact: bool = False) -> float: ...
@overload
def decay_from_tau(tau: Tensor, dt: float, *, exact: bool = False) -> Tensor: ...
def decay_from_tau(tau: float | Tensor, dt: float, *, exact: bool = False) -> float | Tensor:
    r"""Return the decay, the fraction of the state that one step keeps, for a time constant.

    For :math:`\tau \dot h = -h + f(\cdot)` sampled every ``dt``,

    .. math:: d = 1 - dt/\tau \;\text{(Euler)} \qquad d = e^{-dt/\tau} \;\text{(exact)}

    The neuroscience literature's ``alpha = dt / tau``, and the leak rate of echo-state networks, are the
    update fraction ``1 - d``.

        rnn = rnnkernels.LeakyRNN(10, 100, decay=rnnkernels.decay_from_tau(100.0, dt=20.0))  # d = 0.8

    Args:
        tau: Time constant in the unit of ``dt``: a positive number, or a floating-point tensor with one for
            each unit, ``[H]``. The values of a tensor on the meta device are not checked.
        dt: Length of a step, positive. The Euler form needs ``dt <= tau``.
        exact: Use the exponential form, which is exact for an input that is constant during a step.

    Returns:
        The decay in ``[0, 1)``, with the type, shape and dtype of ``tau``.

    Raises:
        ValueError: ``tau`` or ``dt`` is not positive and finite, or ``dt > tau`` in the Euler form, or the
            decay rounds to 1.
    """
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"dt must be positive and finite, got {dt}")
    dt = float(dt)
    # On the CPU, because other devices, and the default device with them, may not have float64.
    taus = tau if isinstance(tau, Tensor) else torch.tensor(float(tau), dtype=torch.float64, device="cpu")
    if not _holds((taus > 0) & torch.isfinite(taus)):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    if not exact and not _holds(taus >= dt):
        raise ValueError(
            f"dt must be at most tau in the Euler form (or use exact=True), got dt={dt}, tau={tau}"
        )
    decay = torch.exp(-dt / taus) if exact else 1 - dt / taus
    if not _holds(decay < 1):
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
    r"""Draw independent random time constants for :func:`decay_from_tau`.

    .. math:: \tau \sim U(low, high) \qquad \text{or} \qquad \log\tau \sim U(\log low, \log high)

    Args:
        size: Shape of the result; ``H`` gives one value for each unit.
        low, high: Range, ``0 < low <= high``, in the unit of ``dt``.
        log_uniform: Draw the logarithm uniformly, so that each factor of two in the range is equally likely.
        generator, device, dtype: As for ``torch.rand``.

    Returns:
        A tensor of that shape with values from ``low`` to ``high``.

    Raises:
        ValueError: The range is not positive, finite and ordered.
    """
    if not (0 < low <= high and math.isfinite(high)):
        raise ValueError(f"low and high must be positive, finite and in order, got {low} and {high}")
    uniform = torch.rand(size, generator=generator, device=device, dtype=dtype)
    drawn = low * (high / low) ** uniform if log_uniform else low + (high - low) * uniform
    return drawn.clamp(low, high)  # rounding may exceed the ends


def draw_decay(
    *size: int,
    low: float = 0.02,
    high: float = 0.2,
    log_uniform: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Draw independent random decays, such that the update fraction ``1 - d`` has a given range.

    .. math:: 1 - d \sim U(low, high) \qquad \text{or} \qquad \log(1 - d) \sim U(\log low, \log high)

    In the Euler form the update fraction is ``dt / tau``. So the default range is a ``tau`` of 5 to 50 steps,
    and with ``log_uniform`` the time constants are log-uniform as well.

        rnn = rnnkernels.LeakyRNN(10, 100, decay=rnnkernels.draw_decay(100))

    Args:
        size: Shape of the result: ``H`` gives one value for each unit, ``N, H`` one for each unit of every
            layer and direction.
        low, high: Range of the update fraction, ``0 < low <= high <= 1``.
        log_uniform: Draw the logarithm of the update fraction uniformly.
        generator, device, dtype: As for ``torch.rand``.

    Returns:
        A tensor of that shape with values from ``1 - high`` to ``1 - low``.

    Raises:
        ValueError: The range is not positive, ordered and at most 1, or a decay rounds to 1.
    """
    if not high <= 1:
        raise ValueError(f"high must be at most 1, the whole state, got {high}")
    update_fraction = draw_tau(
        *size, low=low, high=high, log_uniform=log_uniform, generator=generator, device=device, dtype=dtype
    )
    decay = 1 - update_fraction
    if not _holds(decay < 1):
        raise ValueError(f"low must not be so small that a decay rounds to 1, got {low}")
    return decay


@overload
def noise_scale(sigma: float, decay: float, *, added_to: str = "drive") -> float: ...
@overload
def noise_scale(sigma: float, decay: Tensor, *, added_to: str = "drive") -> Tensor: ...
def noise_scale(sigma: float, decay: float | Tensor, *, added_to: str = "drive") -> float | Tensor:
    r"""Return the factor by which to multiply standard normal noise, for a given ``sigma`` of the state.

    A unit with white noise follows :math:`\tau\,dh = (-h + \ldots)\,dt + \sigma\sqrt{2\tau}\,dW`. Without
    input, the standard deviation of its state becomes :math:`\sigma` for any :math:`\tau`. A step of
    Euler-Maruyama, with :math:`\alpha = dt/\tau = 1 - d` and :math:`\xi \sim N(0, 1)`, is

    .. math:: h_t = d\,h_{t-1} + \alpha\,(\ldots) + \sigma\sqrt{2\alpha}\;\xi_t
                 = d\,h_{t-1} + \alpha\,(\ldots + \sigma\sqrt{2/\alpha}\;\xi_t)

    Noise in ``drive`` is multiplied by ``1 - d``, so it needs the second factor. This is exact in the current
    form. In the rate form the drive is an argument of ``f``: the factor is the same by convention (Yang et
    al. 2019, doi 10.1038/s41593-018-0310-2), and exact where ``f`` has slope 1. Noise that is added to the
    state itself, after the leak, needs the first factor. The variance of the sampled state is
    :math:`\sigma^2 \cdot 2/(1 + d)`; the factor is the error of Euler's method, and tends to 1 with ``dt``.

        drive = rnnkernels.noise_scale(0.05, rnn.decay) * torch.randn(T, B, H)

    Args:
        sigma: Standard deviation of the state, in the state's unit, at least 0.
        decay: ``d`` in ``[0, 1)``, a number or a tensor.
        added_to: ``"drive"``, :math:`\sigma\sqrt{2/\alpha}`; or ``"state"``, :math:`\sigma\sqrt{2\alpha}`.

    Returns:
        The factor, with the type and shape of ``decay``.

    Raises:
        ValueError: ``sigma`` is negative, ``decay`` is not in ``[0, 1)``, or ``added_to`` is another string.
    """
    if added_to not in ("drive", "state"):
        raise ValueError(f"added_to must be 'drive' or 'state', got {added_to!r}")
    sigma, decay = unboxed(sigma), unboxed(decay)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and not negative, got {sigma}")
    new = 1 - decay
    if not _holds((new > 0) & (new <= 1)):
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    squared = 2 / new if added_to == "drive" else 2 * new
    return sigma * squared**0.5


def _holds(condition: bool | Tensor) -> bool:
    """Return whether a condition holds everywhere; True if it is a tensor without values."""
    if isinstance(condition, Tensor):
        return not has_values(condition) or bool(condition.all())
    return condition
