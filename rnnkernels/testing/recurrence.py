"""The mathematics in plain NumPy, float64, to read beside the paper. Everything is tested against it.

    rate:     h_t = d h_{t-1} + (1-d) f(z_t),             z_t = p_t + W h_{t-1}
    current:  h_t = d h_{t-1} + (1-d) (p_t + W f(h_{t-1}))

Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), section 3.2; ``d`` is their alpha.
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


# One line each, under the name that the C++ list gives it. ReLU has slope 0 at 0, as in torch.
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

    pre: Array
    h0: Array
    weight_hh: Array
    decay: Array


class _Step(NamedTuple):
    t: int
    rows: slice  # where the step's rows lie in a packed array
    batch: int  # how many there are: the first ones of the batch


def _walk(batch_sizes: Any, reverse: bool) -> list[_Step]:
    """The steps in the order of the forward walk."""
    sizes = [int(n) for n in batch_sizes]
    ends = np.cumsum(sizes)
    steps = [
        _Step(t, slice(int(end) - n, int(end)), n) for t, (n, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    return steps[::-1] if reverse else steps


class _Problem(NamedTuple):
    pre: Array  # [rows, H]
    h0: Array  # [B, H]
    weight: Array
    decay: Array  # [H]
    f: Nonlinearity
    current: bool
    steps: list[_Step]
    shape: tuple[int, ...]  # of the caller's pre


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
        _walk(batch_sizes, reverse),
        p.shape,
    )


def _states(problem: _Problem) -> Iterator[tuple[_Step, Array, Array, Array]]:
    """For each step of the walk: the step, h_{t-1}, z_t (what the cell adds up) and h_t."""
    p, h0, weight, d, f, current, steps, _ = problem
    state = h0.copy()  # [B, H]; a row that has ended, or not begun, keeps its state
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
    """The forward walk; arguments and results as :func:`rnnkernels.functional.leaky_recurrence`."""
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
    """The backward walk, derived by hand.

    With ``g_t`` the gradient that reaches ``h_t`` from outside, ``c_t`` the one that step t+1 carries
    down, and ``delta_t = g_t + c_t``:

        rate:     u_t = (1-d) f'(z_t) delta_t    c_{t-1} = d delta_t + W^T u_t
        current:  u_t = (1-d) delta_t            c_{t-1} = d delta_t + f'(h_{t-1}) W^T u_t

        dp_t = u_t    dW = sum_t u_t x_t^T    dd = sum_t delta_t (h_{t-1} - y_t)    dh_0 = c_0

    where ``x_t`` is what W multiplied and ``y_t`` what ``1-d`` multiplied. ``grad_output`` is shaped
    like ``pre``, ``grad_h_n`` like ``h0``.
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
