r"""Forward-mode and higher derivatives of the recurrence, out of one linear walk.

Where f is replaced by its slope, what is left of the recurrence is linear:

    y_t = d y_{t-1} + alpha_t * (W (beta_t * y_{t-1})) + r_t

    rate:     alpha_t = (1-d) f'(z_t)    beta_t = 1
    current:  alpha_t = 1-d              beta_t = f'(h_{t-1})

The tangent of the recurrence is such a walk. Its adjoint is one too, with time reversed, W transposed,
and alpha and beta changed for each other and moved by a step:

    delta_t = g_t + d delta_{t+1} + beta_{t+1} * (W^T (alpha_{t+1} * delta_{t+1}))

So :class:`LinearRecurrence` is closed under differentiation, and with it everything here: derivatives
of any order and in any mode run at the speed of the kernel, plus matrix products over whole sequences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._autograd.time_shift import Steps
from rnnkernels._autograd.vmap import Networks
from rnnkernels._ops.nonlinearities import NONLINEARITIES

__all__ = [
    "Kind",
    "LinearRecurrence",
    "backward",
    "forward_mode_stays_on",
    "primals_of",
    "projected_backward",
    "projection_backward",
    "projection_tangent",
    "tangent",
]


class Kind(NamedTuple):
    """What is computed, besides the tensors."""

    nonlinearity: str
    form: str
    reverse: bool


def primals_of(ctx: Any) -> tuple[Tensor | None, ...]:
    """What a Function kept, without the tangents that its own ``jvp`` is about to move it along.

    torch turns forward mode off while a ``jvp`` runs, for outer transforms too, so that a derivative of
    a tangent would silently be zero. So every ``jvp`` here runs under ``forward_mode_stays_on``, with
    these primals.
    """
    return tuple(
        x if x is None else torch.autograd.forward_ad.unpack_dual(x, level=0).primal  # type: ignore[no-untyped-call]
        for x in ctx.saved_tensors
    )


forward_mode_stays_on = torch.autograd.forward_ad._set_fwd_grad_enabled


class LinearRecurrence(torch.autograd.Function):
    """``(drive, h0, weight_hh, decay, alpha, beta, batch_sizes, reverse) -> y``; see this file's head.

    ``drive``, ``alpha`` and ``beta`` (None: ones) are sequences; ``h0`` (None: zero) is ``y_0``.
    """

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.linear_recurrence(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep all but the drive, which the derivatives do not need."""
        _, *tensors, ctx.reverse = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output)
        ctx.save_for_forward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        """The adjoint walk, and the sums over all steps."""
        if grad is None:
            return (None,) * 8
        h0, weight, decay, alpha, beta, batch_sizes, y = ctx.saved_tensors
        steps = Steps(y, h0, batch_sizes, ctx.reverse)
        delta = _adjoint(grad, weight, decay, alpha, beta, steps)
        before = steps.before(y, h0)
        x, u = _times(beta, before), _times(alpha, delta)
        need = ctx.needs_input_grad
        return (
            delta if need[0] else None,
            _before_first(delta, u, weight, decay, beta, steps) if need[1] else None,
            steps.outer(u, x) if need[2] else None,
            steps.sum_per_unit(delta * before, decay) if need[3] else None,
            delta * steps.times(x, weight.mT) if need[4] else None,
            before * steps.times(u, weight) if need[5] else None,
            None,
            None,
        )

    @staticmethod
    def jvp(
        ctx: Any, d_drive: Any, d_h0: Any, d_weight: Any, d_decay: Any, d_alpha: Any, d_beta: Any, *_: Any
    ) -> Tensor:
        """The same walk, driven by everything that moves."""
        with forward_mode_stays_on(True):
            tangents = (d_drive, d_h0, d_weight, d_decay, d_alpha, d_beta)
            return _linear_tangent(tangents, primals_of(ctx), ctx.reverse)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """All examples in one walk."""
        drive, h0, weight, decay, alpha, beta, batch_sizes, reverse = inputs
        networks = Networks(
            info.batch_size, (weight, in_dims[2]), (decay, in_dims[3]), (batch_sizes, in_dims[6])
        )
        y = LinearRecurrence.apply(  # type: ignore[no-untyped-call]
            networks.sequence(drive, in_dims[0]),
            networks.state(h0, in_dims[1]),
            networks.weight,
            networks.decay,
            networks.sequence(alpha, in_dims[4]),
            networks.sequence(beta, in_dims[5]),
            batch_sizes,
            reverse,
        )
        return networks.split_sequence(y)


def _linear_tangent(tangents: tuple[Any, ...], primals: tuple[Any, ...], reverse: bool) -> Tensor:
    d_drive, d_h0, d_weight, d_decay, d_alpha, d_beta = tangents
    h0, weight, decay, alpha, beta, batch_sizes, y = primals
    steps = Steps(y, h0, batch_sizes, reverse)
    before = steps.before(y, h0)
    x = _times(beta, before)
    drive = torch.zeros_like(y) if d_drive is None else d_drive
    if d_weight is not None:
        drive = drive + _times(alpha, steps.times(x, d_weight.mT))
    if d_decay is not None:
        drive = drive + steps.per_unit(d_decay, y) * before
    if d_alpha is not None:
        drive = drive + d_alpha * steps.times(x, weight.mT)
    if d_beta is not None:
        drive = drive + _times(alpha, steps.times(d_beta * before, weight.mT))
    return _walk(drive, d_h0, weight, decay, alpha, beta, steps)


def _walk(
    drive: Tensor, h0: Tensor | None, weight: Tensor, decay: Tensor, alpha: Any, beta: Any, steps: Steps
) -> Tensor:
    if h0 is None and steps.batch_sizes is not None:
        h0 = steps.zero_state(drive)
    y: Tensor = LinearRecurrence.apply(  # type: ignore[no-untyped-call]
        drive, h0, weight, decay, alpha, beta, steps.batch_sizes, steps.reverse
    )
    return y


def _adjoint(
    grad: Tensor, weight: Tensor, decay: Tensor, alpha: Tensor | None, beta: Tensor | None, steps: Steps
) -> Tensor:
    """``delta`` of this file's head, for a walk with these coefficients."""
    return _walk(
        grad, None, weight.mT, decay, steps.after(beta), steps.after(alpha), steps.reversed()
    )  # fmt: skip


def _before_first(
    delta: Tensor, u: Tensor, weight: Tensor, decay: Tensor, beta: Tensor | None, steps: Steps
) -> Tensor:
    """The gradient that reaches the state before the first step."""
    if steps.count == 0:
        return steps.zero_state(delta)
    first = steps.first(delta)
    carried = _times(None if beta is None else steps.first(beta), steps.first(u) @ weight)
    return steps.per_unit(decay, first) * first + carried


def _times(coefficient: Tensor | None, x: Tensor) -> Tensor:
    return x if coefficient is None else coefficient * x


class _Linearized(NamedTuple):
    """The recurrence around one trajectory."""

    before: Tensor  # h_{t-1}
    x: Tensor  # what W multiplies
    share: Tensor  # 1-d, as it broadcasts over a sequence
    slope: Tensor | None  # f'(z_t) (rate)
    alpha: Tensor
    beta: Tensor | None


def _linearize(
    output: Tensor, saved: Tensor, h0: Tensor | None, decay: Tensor, kind: Kind, steps: Steps
) -> _Linearized:
    f = NONLINEARITIES[kind.nonlinearity]
    before = steps.before(output, h0)
    share = steps.per_unit(1 - decay, output)
    if kind.form == "current":
        x = f.value(before)
        return _Linearized(before, x, share, None, share.expand_as(output), f.slope(x))
    slope = f.slope(saved) if saved.is_floating_point() else _unpack_bits(saved, output)
    return _Linearized(before, before, share, slope, share * slope, None)


def _unpack_bits(words: Tensor, like: Tensor) -> Tensor:
    """One word for 32 units -> 0 or 1 for each, shaped like ``like``."""
    bits = (words.unsqueeze(-1) >> torch.arange(32, dtype=words.dtype, device=words.device)) & 1
    return bits.flatten(-2).narrow(-1, 0, like.shape[-1]).to(like.dtype)


def tangent(
    kind: Kind, d_pre: Tensor | None, d_h0: Tensor | None, d_weight: Tensor | None, d_decay: Tensor | None,
    output: Tensor, saved: Tensor, h0: Tensor | None, weight: Tensor, decay: Tensor,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """The tangents of ``output``, of ``h_n``, and of ``saved`` where it holds ``f(z)``.

    rate:     r_t = (1-d) f'(z_t) (dp_t + dW x_t) + dd (h_{t-1} - h_t) / (1-d)
    current:  r_t = (1-d) (dp_t + dW x_t) + dd (h_{t-1} - h_t) / (1-d)
    """
    steps = Steps(output, h0, batch_sizes, kind.reverse)
    around = _linearize(output, saved, h0, decay, kind, steps)
    d_z = torch.zeros_like(output) if d_pre is None else d_pre
    if d_weight is not None:
        d_z = d_z + steps.times(around.x, d_weight.mT)
    drive = around.alpha * d_z
    if d_decay is not None:
        drive = drive + steps.per_unit(d_decay, output) * (around.before - output) / around.share
    d_output = _walk(drive, d_h0, weight, decay, around.alpha, around.beta, steps)
    d_h_n = steps.last(d_output) if steps.count > 0 else steps.zero_state(output) if d_h0 is None else d_h0
    d_saved = None
    if around.slope is not None and saved.is_floating_point():
        d_saved = around.slope * (d_z + steps.times(steps.before(d_output, d_h0), weight.mT))
    return d_output, d_h_n, d_saved


def backward(
    kind: Kind, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None,
    output: Tensor, saved: Tensor, h0: Tensor | None, weight: Tensor, decay: Tensor,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of ``pre``, ``h0``, ``weight_hh`` and ``decay``: the backward operator as
    differentiable torch code. ``grad_saved`` reaches ``f(z)`` itself (rate, smooth f).
    """
    steps = Steps(output, h0, batch_sizes, kind.reverse)
    around = _linearize(output, saved, h0, decay, kind, steps)
    grad = torch.zeros_like(output) if grad_output is None else grad_output
    if grad_h_n is not None and steps.count > 0:
        grad = steps.add_to_last(grad, grad_h_n)
    direct = None  # the gradient of z that does not come through h
    if grad_saved is not None:
        assert around.slope is not None
        direct = around.slope * grad_saved
        carried = steps.times(direct, weight)
        later = steps.after(carried)
        assert later is not None
        grad = grad + later
    delta = _adjoint(grad, weight, decay, around.alpha, around.beta, steps)
    u = around.alpha * delta if direct is None else around.alpha * delta + direct
    d_h0 = _before_first(delta, u, weight, decay, around.beta, steps)
    if steps.count == 0 and grad_h_n is not None:
        d_h0 = d_h0 + grad_h_n
    d_decay = steps.sum_per_unit(delta * (around.before - output) / around.share, decay)
    return u, d_h0, steps.outer(u, around.x), d_decay


def projection_tangent(
    d_input: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None, d_drive: Tensor | None,
    input: Tensor, h0: Tensor | None, weight: Tensor, batch_sizes: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """``dp_t = W_ih dx_t + dW_ih x_t + db + d drive_t``, the tangent of the projection; None for zero."""
    steps = Steps(input, h0, batch_sizes, False)
    parts = []
    if d_input is not None:
        parts.append(steps.times(d_input, weight.mT))
    if d_weight is not None:
        parts.append(steps.times(input, d_weight.mT))
    if d_bias is not None:
        shape = (*input.shape[:-1], weight.shape[-2])
        parts.append(steps.per_unit(d_bias, input).expand(shape))
    if d_drive is not None:
        parts.append(d_drive)
    return sum(parts[1:], parts[0]) if parts else None


def projection_backward(
    u: Tensor, input: Tensor, h0: Tensor | None, weight: Tensor, batch_sizes: Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """``d_input = u W_ih``, ``d_W_ih = u^T input`` and ``d_bias``, the sum over rows of ``u``, the gradient
    of the projection; where ``wanted`` (as the operator has it) asks for them.
    """
    steps = Steps(input, h0, batch_sizes, False)
    return (
        steps.times(u, weight) if wanted[0] else None,
        steps.outer(u, input) if wanted[2] else None,
        steps.rows(u).sum(-2) if wanted[4] else None,
    )


def projected_backward(
    kind: Kind, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None,
    output: Tensor, saved: Tensor, input: Tensor, h0: Tensor | None, weight_ih: Tensor, weight_hh: Tensor,
    decay: Tensor, batch_sizes: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """:func:`backward` with the input projection: as its operator, all seven gradients."""
    u, d_h0, d_weight_hh, d_decay = backward(
        kind, grad_output, grad_h_n, grad_saved, output, saved, h0, weight_hh, decay, batch_sizes
    )
    d_input, d_weight_ih, d_bias = projection_backward(u, input, h0, weight_ih, batch_sizes, (True,) * 7)
    assert d_input is not None and d_weight_ih is not None and d_bias is not None
    return d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, u, d_decay
