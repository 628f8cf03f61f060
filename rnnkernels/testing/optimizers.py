"""Clipping by the global norm and the optimizers' steps in plain NumPy, float64."""

from __future__ import annotations

import numpy as np

from rnnkernels.testing.recurrence import Array


def clip_coefficient(grads: list[Array | None], max_norm: float | None, norm_type: float = 2.0) -> Array:
    """``min(1, max_norm / (norm + 1e-6))`` and the norm over all gradients: two numbers."""
    values = [np.abs(np.asarray(g, np.float64)).ravel() for g in grads if g is not None]
    every = np.concatenate([np.zeros(1), *values])
    largest = float(every.max())
    if norm_type == np.inf or largest == 0 or not np.isfinite(largest):
        norm = largest
    else:
        norm = largest * float(((every / largest) ** norm_type).sum()) ** (1 / norm_type)
    off = max_norm is None or max_norm == np.inf
    return np.array([1.0 if off else min(1.0, float(max_norm or 0) / (norm + 1e-6)), norm])


def nesterov_step(
    theta: Array,
    v: Array,
    grad: Array,
    *,
    lr: float,
    momentum: float,
    previous_momentum: float,
    coefficient: float = 1.0,
    weight_decay: float = 0.0,
) -> tuple[Array, Array]:
    """``theta_t, v_t`` of section 3.5 of arXiv 1212.0901, with the gradient clipped by ``coefficient``.

    v_t = mu_{t-1} v_{t-1} - eps g
    theta_t = theta_{t-1} + mu_t mu_{t-1} v_{t-1} - (1 + mu_t) eps g
    """
    g = coefficient * grad + weight_decay * theta
    after = theta + momentum * previous_momentum * v - (1 + momentum) * lr * g
    return after, previous_momentum * v - lr * g


def adamw_step(
    theta: Array,
    m: Array,
    s: Array,
    grad: Array,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    coefficient: float = 1.0,
    weight_decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """``theta_t, m_t, s_t`` of AdamW (arXiv 1711.05101); ``t`` counts this step, too."""
    g = coefficient * grad
    m = betas[0] * m + (1 - betas[0]) * g
    s = betas[1] * s + (1 - betas[1]) * g**2
    root = np.sqrt(s / (1 - betas[1] ** t)) + eps
    return (1 - lr * weight_decay) * theta - lr * m / (1 - betas[0] ** t) / root, m, s
