"""The leaky recurrence in plain NumPy, float64, forward and backward. The kernels are tested against it.

    rate:     h_t = d h_{t-1} + (1-d) f(z_t),             z_t = p_t + W h_{t-1}
    current:  h_t = d h_{t-1} + (1-d) (p_t + W f(h_{t-1}))

Source: Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), section 3.2, where ``d`` is called
alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


class Nonlinearity(NamedTuple):
    """``f`` and its derivative, both functions of ``z``."""

    value: Function
    slope: Function


# The keys are the names in the C++ list. ReLU has slope 0 at 0, as in torch.
NONLINEARITIES: dict[str, Nonlinearity] = {
    "relu": Nonlinearity(lambda z: np.maximum(z, 0), lambda z: np.asarray(z > 0, np.float64)),
    "tanh": Nonlinearity(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": Nonlinearity(
        lambda z: np.exp(-np.logaddexp(0, -z)), lambda z: np.exp(-np.logaddexp(0, -z) - np.logaddexp(0, z))
    ),
    "softplus": Nonlinearity(lambda z: np.logaddexp(0, z), lambda z: np.exp(-np.logaddexp(0, -z))),
}


class Gradients(NamedTuple):
    """Derivatives of ``sum(grad_output * output) + sum(grad_h_n * h_n)``."""

    pre: Array  # shaped like pre
    h0: Array  # [B, H]
    weight_hh: Array  # [H, H]
    decay: Array  # [H]


class _Step(NamedTuple):
    t: int
    rows: slice  # the step's rows in a packed array
    batch: int  # the number of rows; they are the first ones of the batch


def _time_loop(batch_sizes: Any, reverse: bool) -> list[_Step]:
    """Return the steps in the order of the forward time loop."""
    sizes = [int(n) for n in batch_sizes]
    ends = np.cumsum(sizes)
    steps = [
        _Step(t, slice(int(end) - n, int(end)), n) for t, (n, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    return steps[::-1] if reverse else steps


class _Problem(NamedTuple):
    """Checked arguments."""

    pre: Array  # [rows, H]
    h0: Array  # [B, H]
    weight: Array  # [H, H]
    decay: Array  # [H]
    f: Nonlinearity
    current: bool
    steps: list[_Step]
    shape: tuple[int, ...]  # shape of the caller's pre


def _problem(
    pre: ArrayLike,
    h0: ArrayLike | None,
    weight_hh: ArrayLike,
    decay: ArrayLike,
    nonlinearity: str,
    form: str,
    batch_sizes: Any,
    reverse: bool,
) -> _Problem:
    p = np.asarray(pre, np.float64)
    hidden = p.shape[-1]
    if batch_sizes is None:
        batch_sizes = [p.shape[1]] * p.shape[0]
        batch = p.shape[1]
    else:
        batch = int(batch_sizes[0])
    start = np.zeros((batch, hidden)) if h0 is None else np.asarray(h0, np.float64)
    d = np.broadcast_to(np.asarray(decay, np.float64), (hidden,))
    if form not in ("rate", "current"):
        raise ValueError(f"form must be 'rate' or 'current', got {form!r}")
    return _Problem(
        p.reshape(-1, hidden),
        start,
        np.asarray(weight_hh, np.float64),
        d,
        NONLINEARITIES[nonlinearity],
        form == "current",
        _time_loop(batch_sizes, reverse),
        p.shape,
    )


def _states(problem: _Problem) -> Iterator[tuple[_Step, Array, Array, Array]]:
    """Yield ``(step, h_{t-1}, z_t, h_t)`` in the order of the time loop.

    ``z_t`` is ``p_t + W h_{t-1}`` in the rate form and ``p_t + W f(h_{t-1})`` in the current form.
    """
    p, h0, weight, d, f, current, steps, _ = problem
    state = h0.copy()  # [B, H]; rows that have ended (in reverse: not started) keep their state
    for step in steps:
        before = state[: step.batch].copy()
        if current:
            z = p[step.rows] + f.value(before) @ weight.T
            after = d * before + (1 - d) * z
        else:
            z = p[step.rows] + before @ weight.T
            after = d * before + (1 - d) * f.value(z)
        state[: step.batch] = after
        yield step, before, z, after


def leaky_recurrence(
    pre: ArrayLike,
    h0: ArrayLike | None,
    weight_hh: ArrayLike,
    decay: ArrayLike,
    *,
    nonlinearity: str = "relu",
    form: str = "rate",
    batch_sizes: Any = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Return ``(output, h_n)``; arguments are those of :func:`rnnkernels.functional.leaky_recurrence`.

    Args:
        pre: ``p``, ``[T, B, H]``, or ``[sum(batch_sizes), H]`` with ``batch_sizes``.
        h0: State before the first step, ``[B, H]``; None for zero.
        weight_hh: ``W``, ``[H, H]``.
        decay: ``d``, a number or ``[H]``.
        nonlinearity: ``f``, a key of ``NONLINEARITIES``.
        form: ``"rate"`` or ``"current"``.
        batch_sizes: Rows of each step of a packed batch.
        reverse: Run from the last step to the first.

    Returns:
        ``output``, every ``h_t``, shaped like ``pre``; and ``h_n``, ``[B, H]``, the last state of each row.

    Raises:
        ValueError: ``form`` is unknown.
        KeyError: ``nonlinearity`` is unknown.
    """
    problem = _problem(pre, h0, weight_hh, decay, nonlinearity, form, batch_sizes, reverse)
    output = np.empty_like(problem.pre)
    h_n = problem.h0.copy()
    for step, _, _, after in _states(problem):
        output[step.rows] = after
        h_n[: step.batch] = after
    return output.reshape(problem.shape), h_n


def leaky_recurrence_backward(
    grad_output: ArrayLike,
    grad_h_n: ArrayLike,
    pre: ArrayLike,
    h0: ArrayLike | None,
    weight_hh: ArrayLike,
    decay: ArrayLike,
    *,
    nonlinearity: str = "relu",
    form: str = "rate",
    batch_sizes: Any = None,
    reverse: bool = False,
) -> Gradients:
    """Return the gradients with respect to ``pre``, ``h0``, ``weight_hh`` and ``decay``.

    Let ``g_t`` be the gradient with respect to ``h_t`` from outside, ``c_t`` the one from step t+1, and
    ``delta_t = g_t + c_t``. Then

        rate:     u_t = (1-d) f'(z_t) delta_t    c_{t-1} = d delta_t + W^T u_t
        current:  u_t = (1-d) delta_t            c_{t-1} = d delta_t + f'(h_{t-1}) W^T u_t

        dp_t = u_t    dW = sum_t u_t x_t^T    dd = sum_t delta_t (h_{t-1} - y_t)    dh_0 = c_0

    where ``x_t`` is the vector that ``W`` multiplies and ``y_t`` the one that ``1-d`` multiplies:

        rate:     x_t = h_{t-1},       y_t = f(z_t)
        current:  x_t = f(h_{t-1}),    y_t = p_t + W f(h_{t-1})

    Args:
        grad_output: ``g``, shaped like ``pre``.
        grad_h_n: Gradient of ``h_n``, ``[B, H]``.
        pre, h0, weight_hh, decay, nonlinearity, form, batch_sizes, reverse: As for :func:`leaky_recurrence`.

    Returns:
        The :class:`Gradients`.

    Raises:
        ValueError, KeyError: As :func:`leaky_recurrence`.
    """
    problem = _problem(pre, h0, weight_hh, decay, nonlinearity, form, batch_sizes, reverse)
    _, _, weight, d, f, current, _, shape = problem
    grads = np.asarray(grad_output, np.float64).reshape(problem.pre.shape)
    d_pre = np.zeros_like(problem.pre)
    d_weight, d_decay = np.zeros_like(weight), np.zeros_like(d)
    carried = np.asarray(grad_h_n, np.float64).copy()  # c, [B, H]
    for step, before, z, _ in reversed(list(_states(problem))):
        delta = grads[step.rows] + carried[: step.batch]
        if current:
            u = (1 - d) * delta
            x, y = f.value(before), z
            carried[: step.batch] = d * delta + f.slope(before) * (u @ weight)
        else:
            u = (1 - d) * f.slope(z) * delta
            x, y = before, f.value(z)
            carried[: step.batch] = d * delta + u @ weight
        d_pre[step.rows] = u
        d_weight += u.T @ x
        d_decay += (delta * (before - y)).sum(0)
    return Gradients(d_pre.reshape(shape), carried, d_weight, d_decay)
