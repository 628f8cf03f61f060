"""Clipping by the global norm, and the steps of the optimizers, in plain NumPy, float64."""

from __future__ import annotations

import numpy as np

from rnnkernels.testing.recurrence import Array


def clip_coefficient(grads: list[Array | None], max_norm: float | None, norm_type: float = 2.0) -> Array:
    """Return the factor that clips the gradients by their global norm, and that norm.

        norm = (sum |g|^p)^(1/p) over all entries of all gradients, or max |g| for p = inf
        factor = min(1, max_norm / (norm + 1e-6))

    Args:
        grads: The gradients, of any shapes; None is left out.
        max_norm: None or infinity for a factor of 1.
        norm_type: ``p``.

    Returns:
        ``[factor, norm]``.
    """
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
    """Return ``(theta_t, v_t)`` of Nesterov momentum, in the form of section 3.5 of arXiv 1212.0901.

        g = coefficient * grad + weight_decay * theta_{t-1}
        v_t = mu_{t-1} v_{t-1} - lr g
        theta_t = theta_{t-1} + mu_t mu_{t-1} v_{t-1} - (1 + mu_t) lr g

    Args:
        theta, v, grad: Parameters, velocity and gradient, of one shape.
        lr: Learning rate, which the paper calls epsilon.
        momentum: ``mu_t``.
        previous_momentum: ``mu_{t-1}``.
        coefficient: Factor of the gradient, from :func:`clip_coefficient`.
        weight_decay: Factor of the parameters that is added to the gradient.
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
    """Return ``(theta_t, m_t, s_t)`` of AdamW (arXiv 1711.05101).

        g = coefficient * grad
        m_t = beta_1 m_{t-1} + (1 - beta_1) g
        s_t = beta_2 s_{t-1} + (1 - beta_2) g^2
        theta_t = (1 - lr weight_decay) theta_{t-1}
                  - lr m_t / (1 - beta_1^t) / (sqrt(s_t / (1 - beta_2^t)) + eps)

    Args:
        theta, m, s, grad: Parameters, both moments and gradient, of one shape.
        t: The number of this step; the first step is 1.
        lr: Learning rate.
        betas: ``(beta_1, beta_2)``.
        eps: Added to the denominator.
        coefficient: Factor of the gradient, from :func:`clip_coefficient`.
        weight_decay: Decoupled weight decay.
    """
    g = coefficient * grad
    m = betas[0] * m + (1 - betas[0]) * g
    s = betas[1] * s + (1 - betas[1]) * g**2
    root = np.sqrt(s / (1 - betas[1] ** t)) + eps
    return (1 - lr * weight_decay) * theta - lr * m / (1 - betas[0] ** t) / root, m, s
