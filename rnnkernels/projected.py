"""The input projection and the recurrence together: one layer in one direction, of any length.

    p_t = W_ih x_t + b (+ drive_t),  then the recurrence of rnnkernels.functional over p

This is the one place that says which dtype runs where under autocast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnkernels._autograd import forward as _autograd
from rnnkernels._autograd.checkpointing import Walk, in_segments
from rnnkernels._checks import autocasts, check_sizes
from rnnkernels.functional import decay_tensor, leaky_recurrence, zero_h0

__all__ = ["projected_recurrence"]


class _Weights(NamedTuple):
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    decay: float | Tensor


class _Kind(NamedTuple):
    nonlinearity: str
    form: str
    reverse: bool
    batch_first: bool


def projected_recurrence(
    input: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    decay: float | Tensor,
    *,
    drive: Tensor | None = None,
    nonlinearity: str = "relu",
    form: str = "rate",
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    batch_first: bool = False,
    checkpoint_every: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The input projection and the leaky recurrence over all steps.

    .. math::
        p_t &= W_{ih} x_t + b \;(+\, \text{drive}_t) \\
        \text{rate:}\quad    h_t &= d\, h_{t-1} + (1-d)\, f(p_t + W_{hh} h_{t-1}) \\
        \text{current:}\quad h_t &= d\, h_{t-1} + (1-d)\, (p_t + W_{hh} f(h_{t-1}))

    With ``checkpoint_every=k`` every k-th state is kept for backward, besides the arguments; it recomputes
    the ``k`` steps that follow (their projection too) when it gets there: memory for ``T/k + k`` steps
    instead of ``T``, for one more forward pass. The output of all steps is returned anyway, and lives as
    long as the caller keeps it. Results are the same to the bit. Gradients are the same derivatives; those
    of the weights are sums that are added up segment by segment, so they agree to rounding. In half
    precision the recomputed steps begin from the rounded state, and the gradient that is carried from one
    segment to the next is rounded. Under ``torch.func``'s transforms nothing is recomputed.

    Under autocast the projection runs in autocast's dtype and the recurrence in float32 (float64 if
    ``weight_hh`` is): a state that is carried over many steps must not be rounded at each of them.

    Args:
        input: ``x``, ``[T, B, I]``; ``[B, T, I]`` with ``batch_first``; ``[sum(batch_sizes), I]`` with
            ``batch_sizes``. float32, float64, bfloat16 or float16.
        h0: State before the first step, ``[B, H]``; None for zero.
        weight_ih: ``W_ih``, ``[H, I]``.
        weight_hh: ``W_hh``, ``[H, H]``.
        bias: ``b``, ``[H]`` or None.
        decay: ``d``, the share of the previous state that is kept, in ``[0, 1)``: a number, a scalar
            tensor, or ``[H]``.
        drive: Added to the pre-activation: ``[T, B, H]``; ``[B, T, H]`` with ``batch_first``; packed rows.
        nonlinearity: ``f``, as for :func:`rnnkernels.functional.leaky_recurrence`.
        form: ``"rate"`` or ``"current"``.
        batch_sizes: Rows at each step, as in a ``PackedSequence``.
        reverse: Walk from the last step to the first.
        batch_first: ``input`` and ``drive`` are ``[B, T, ...]``; not with ``batch_sizes``. The output is
            time-first anyway, as the kernel writes it.
        checkpoint_every: ``k``; None keeps everything that backward needs.

    Returns:
        ``output``, ``[T, B, H]`` (or ``[sum(batch_sizes), H]``); and ``h_n``, ``[B, H]``.

    Raises:
        ValueError, TypeError: As :func:`rnnkernels.functional.leaky_recurrence`, and if
            ``checkpoint_every`` is no positive int or ``batch_first`` meets ``batch_sizes``.
    """
    if batch_first and batch_sizes is not None:
        raise ValueError("batch_first must be False with batch_sizes: packed rows have no batch dimension")
    if drive is not None and drive.shape != (expected := (*input.shape[:-1], weight_hh.shape[-1])):
        raise ValueError(
            f"drive must be {list(expected)}, as the input and weight_hh say, got {list(drive.shape)}"
        )
    weights = _Weights(weight_ih, weight_hh, bias, decay)
    kind = _Kind(nonlinearity, form, reverse, batch_first)
    if checkpoint_every is None:
        return _run(input, h0, drive, batch_sizes, weights, kind)
    check_sizes(checkpoint_every=checkpoint_every)
    if batch_sizes is not None and h0 is None:
        h0 = zero_h0(batch_sizes, input, weight_hh)

    def call(x: Tensor, h0: Tensor | None, p: Tensor | None, sizes: Tensor | None, w: Any) -> Any:
        return _run(x, h0, p, sizes, _Weights(*w), kind)

    walk = Walk(checkpoint_every, reverse, 1 if batch_first else 0)
    return in_segments(call, walk, input, h0, drive, batch_sizes, weights)


def _run(
    input: Tensor, h0: Tensor | None, drive: Tensor | None, batch_sizes: Tensor | None, weights: _Weights,
    kind: _Kind,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if kind.batch_first:
        input = input.transpose(0, 1)
        drive = None if drive is None else drive.transpose(0, 1)
    if (fused := _fused(input, h0, drive, batch_sizes, weights, kind)) is not None:
        return fused
    weight_ih, weight_hh, bias, decay = weights
    pre = torch.nn.functional.linear(input, weight_ih, bias)
    if autocasts(input.device):
        dtype = torch.promote_types(weight_hh.dtype, torch.float32)
        pre, weight_hh = pre.to(dtype), weight_hh.to(dtype)
        h0, drive = (x if x is None else x.to(dtype) for x in (h0, drive))
        decay = decay.to(dtype) if isinstance(decay, Tensor) else decay
    if drive is not None:
        pre = pre + drive
    return leaky_recurrence(
        pre,
        h0,
        weight_hh,
        decay,
        nonlinearity=kind.nonlinearity,
        form=kind.form,
        batch_sizes=batch_sizes,
        reverse=kind.reverse,
    )


def _fused(
    input: Tensor, h0: Tensor | None, drive: Tensor | None, batch_sizes: Tensor | None, weights: _Weights,
    kind: _Kind,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """Projection and recurrence as one operator, which has the states where the projection was; None
    where that operator cannot serve.
    """
    weight_ih, weight_hh, bias, decay = weights
    if not _autograd.can_project(input):
        return None
    if batch_sizes is not None and h0 is None:
        h0 = zero_h0(batch_sizes, input, weight_hh)
    decay = decay_tensor(decay, input)
    return _autograd.projected_recurrence(
        input, h0, weight_ih, weight_hh, bias, drive, decay, batch_sizes, *kind[:3]
    )
