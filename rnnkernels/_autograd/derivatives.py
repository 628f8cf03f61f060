r"""Forward-mode and higher derivatives of the recurrence, made of one linear recurrence.

With f replaced by its slope, the recurrence is linear:

    y_t = d y_{t-1} + alpha_t * (W (beta_t * y_{t-1})) + r_t

    rate:     alpha_t = (1-d) f'(z_t)    beta_t = 1
    current:  alpha_t = 1-d              beta_t = f'(h_{t-1})

The tangent of the recurrence has this form. Its adjoint has it too, with time reversed, W transposed, and
alpha and beta exchanged and shifted by one step:

    delta_t = g_t + d delta_{t+1} + beta_{t+1} * (W^T (alpha_{t+1} * delta_{t+1}))

So :class:`LinearRecurrence` is closed under differentiation, and derivatives of any order and mode run at the
speed of the kernel, plus matrix products over whole sequences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._autograd.time_shift import TimeShift
from rnnkernels._autograd.vmap import MergedExamples, at_least_1d, saves_nothing
from rnnkernels._ops.nonlinearities import NONLINEARITIES
from rnnkernels._ops.spec import BackwardTensors, LinearTensors, ProjectedBackwardTensors, RecurrenceSpec

__all__ = [
    "LinearRecurrence",
    "backward",
    "forward_mode_stays_on",
    "primals_of",
    "projected_backward",
    "projection_backward",
    "projection_tangent",
    "tangent",
]


def primals_of(ctx: Any) -> tuple[Tensor | None, ...]:
    """The tensors that a Function saved, without the tangents of its own forward-mode level.

    torch disables forward mode while a ``jvp`` runs, also for outer transforms, so that a derivative of a
    tangent would silently be zero. Therefore every ``jvp`` here runs under ``forward_mode_stays_on`` and uses
    these primals.
    """
    return tuple(
        x if x is None else torch.autograd.forward_ad.unpack_dual(x, level=0).primal  # type: ignore[no-untyped-call]
        for x in ctx.saved_tensors
    )


forward_mode_stays_on = torch.autograd.forward_ad._set_fwd_grad_enabled


class LinearRecurrence(torch.autograd.Function):
    """``(*LinearTensors, reverse) -> y``: the linear recurrence of the header of this file.

    ``drive`` is r; ``h0`` (None: zero) is ``y_0``; ``alpha`` and ``beta`` default to ones.
    """

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.linear_recurrence(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep everything but the drive, which no derivative needs."""
        _, *tensors, ctx.reverse = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output)
        ctx.save_for_forward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        """The adjoint recurrence, and the sums over all steps."""
        if grad is None:
            return (None,) * 8
        h0, weight, decay, alpha, beta, batch_sizes, y = ctx.saved_tensors
        shift = TimeShift(y, h0, batch_sizes, ctx.reverse)
        delta = _adjoint(grad, weight, decay, alpha, beta, shift)
        previous = shift.previous(y, h0)
        x, u = _times(beta, previous), _times(alpha, delta)
        need = ctx.needs_input_grad
        return (
            delta if need[0] else None,
            _gradient_of_start(delta, u, weight, decay, beta, shift) if need[1] else None,
            shift.outer(u, x) if need[2] else None,
            shift.sum_per_unit(delta * previous, decay) if need[3] else None,
            delta * shift.matmul(x, weight.mT) if need[4] else None,
            previous * shift.matmul(u, weight) if need[5] else None,
            None,
            None,
        )

    @staticmethod
    def jvp(
        ctx: Any, d_drive: Any, d_h0: Any, d_weight: Any, d_decay: Any, d_alpha: Any, d_beta: Any, *_: Any
    ) -> Tensor:
        """The same recurrence; all tangents contribute to its drive."""
        with forward_mode_stays_on(True):
            tangents = (d_drive, d_h0, d_weight, d_decay, d_alpha, d_beta)
            return _linear_tangent(tangents, primals_of(ctx), ctx.reverse)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int | None]:
        """All examples in one call."""
        *tensors, reverse = inputs
        merged = MergedExamples(info.batch_size, LinearTensors(*tensors), in_dims[:-1])
        y = LinearRecurrence.apply(*merged.batched(), reverse)  # type: ignore[no-untyped-call]
        return merged.split("output", y)


def _linear_tangent(tangents: tuple[Any, ...], primals: tuple[Any, ...], reverse: bool) -> Tensor:
    d_drive, d_h0, d_weight, d_decay, d_alpha, d_beta = tangents
    h0, weight, decay, alpha, beta, batch_sizes, y = primals
    shift = TimeShift(y, h0, batch_sizes, reverse)
    previous = shift.previous(y, h0)
    x = _times(beta, previous)
    drive = torch.zeros_like(y) if d_drive is None else d_drive
    if d_weight is not None:
        drive = drive + _times(alpha, shift.matmul(x, d_weight.mT))
    if d_decay is not None:
        drive = drive + shift.per_unit(d_decay, y) * previous
    if d_alpha is not None:
        drive = drive + d_alpha * shift.matmul(x, weight.mT)
    if d_beta is not None:
        drive = drive + _times(alpha, shift.matmul(d_beta * previous, weight.mT))
    return _scan(drive, d_h0, weight, decay, alpha, beta, shift)


def _scan(
    drive: Tensor, h0: Tensor | None, weight: Tensor, decay: Tensor, alpha: Any, beta: Any, shift: TimeShift
) -> Tensor:
    if h0 is None and shift.batch_sizes is not None:
        h0 = shift.zero_state(drive)
    tensors = LinearTensors(drive, h0, weight, decay, alpha, beta, shift.batch_sizes)
    y: Tensor = LinearRecurrence.apply(*tensors, shift.reverse)  # type: ignore[no-untyped-call]
    return y


def _adjoint(
    grad: Tensor, weight: Tensor, decay: Tensor, alpha: Tensor | None, beta: Tensor | None, shift: TimeShift
) -> Tensor:
    """``delta`` as in the header of this file, for a linear recurrence with these coefficients."""
    return _scan(grad, None, weight.mT, decay, shift.next(beta), shift.next(alpha), shift.reversed())


def _gradient_of_start(
    delta: Tensor, u: Tensor, weight: Tensor, decay: Tensor, beta: Tensor | None, shift: TimeShift
) -> Tensor:
    """The gradient of the state before the first step."""
    if shift.count == 0:
        return shift.zero_state(delta)
    first = shift.first(delta)
    carried = _times(None if beta is None else shift.first(beta), shift.first(u) @ weight)
    return shift.per_unit(decay, first) * first + carried


def _times(coefficient: Tensor | None, x: Tensor) -> Tensor:
    return x if coefficient is None else coefficient * x


class _Linearized(NamedTuple):
    """The coefficients of the recurrence linearized around one trajectory."""

    previous: Tensor  # h_{t-1}
    x: Tensor  # the operand that W multiplies
    one_minus_d: Tensor  # broadcasts over a sequence
    slope: Tensor | None  # f'(z_t) (rate)
    alpha: Tensor
    beta: Tensor | None
    decay_slope: Tensor | None  # h_{t-1} - y_t, where forward saved it

    def times_decay_slope(self, x: Tensor, output: Tensor) -> Tensor:
        """``x_t (h_{t-1} - y_t)``, the derivative of ``h_t`` by ``d`` for a given past, times ``x_t``."""
        if self.decay_slope is not None:
            return x * self.decay_slope
        return x * (self.previous - output) / self.one_minus_d


def _linearize(point: BackwardTensors, spec: RecurrenceSpec, shift: TimeShift) -> _Linearized:
    output, saved = point.output, point.saved
    f = NONLINEARITIES[spec.nonlinearity]
    previous = shift.previous(output, point.h0)
    one_minus_d = shift.per_unit(1 - at_least_1d(point.decay), output)
    kept, decay_slope = _split_saved(saved, output.shape[-1], spec)
    if spec.form == "current":
        x = f.value(previous)
        alpha = one_minus_d.expand_as(output)
        return _Linearized(previous, x, one_minus_d, None, alpha, f.slope(x), decay_slope)
    slope = _unpack_bits(kept.view(torch.int32), output) if f.binary_slope else f.slope(kept)
    return _Linearized(previous, previous, one_minus_d, slope, one_minus_d * slope, None, decay_slope)


def _split_saved(saved: Tensor, hidden: int, spec: RecurrenceSpec) -> tuple[Tensor, Tensor | None]:
    """What forward saved for ``f'(z_t)``, bits or ``f(z_t)`` (rate) or nothing (current); and
    ``h_{t-1} - y_t``, or None.

    ``csrc/binding/arguments.h``, ``SavedParts``, has the layout. A gradient or a tangent of ``saved`` has the
    same one.
    """
    if not saved.is_floating_point() or saves_nothing(saved):
        return saved, None
    words = (hidden + 31) // 32 if spec.form == "rate" else 0
    before = hidden if _saves_activation(spec) else 2 * words  # a word is two elements of half precision
    if saved.shape[-1] == before:
        return saved, None
    return saved.narrow(-1, 0, before), saved.narrow(-1, before, hidden)


def _saves_activation(spec: RecurrenceSpec) -> bool:
    """Whether forward saves ``f(z_t)``."""
    return spec.form == "rate" and not NONLINEARITIES[spec.nonlinearity].binary_slope


def _unpack_bits(words: Tensor, like: Tensor) -> Tensor:
    """Expand each word of 32 bits to 32 units of 0 or 1, in the shape of ``like``."""
    bits = (words.unsqueeze(-1) >> torch.arange(32, dtype=words.dtype, device=words.device)) & 1
    return bits.flatten(-2).narrow(-1, 0, like.shape[-1]).to(like.dtype)


def tangent(
    spec: RecurrenceSpec, d_pre: Tensor | None, d_h0: Tensor | None, d_weight: Tensor | None,
    d_decay: Tensor | None, point: BackwardTensors,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """The tangents of ``output``, of ``h_n``, and of ``saved`` if it holds floating-point values.

    rate:     r_t = (1-d) f'(z_t) (dp_t + dW x_t) + dd (h_{t-1} - y_t)
    current:  r_t = (1-d) (dp_t + dW x_t) + dd (h_{t-1} - y_t)

    where ``h_{t-1} - y_t = (h_{t-1} - h_t) / (1-d)``.
    """
    output, weight = point.output, point.weight_hh
    shift = TimeShift(output, point.h0, point.batch_sizes, spec.reverse)
    linear = _linearize(point, spec, shift)
    d_z = torch.zeros_like(output) if d_pre is None else d_pre
    if d_weight is not None:
        d_z = d_z + shift.matmul(linear.x, d_weight.mT)
    drive = linear.alpha * d_z
    if d_decay is not None:
        drive = drive + linear.times_decay_slope(shift.per_unit(d_decay, output), output)
    d_output = _scan(drive, d_h0, weight, point.decay, linear.alpha, linear.beta, shift)
    d_h_n = shift.last(d_output) if shift.count > 0 else shift.zero_state(output) if d_h0 is None else d_h0
    d_saved = None
    if point.saved.is_floating_point() and not saves_nothing(point.saved):
        d_previous = shift.previous(d_output, d_h0)
        d_y = d_z + shift.matmul(_times(linear.beta, d_previous), weight.mT)
        d_saved = _tangent_of_saved(point.saved, _times(linear.slope, d_y), d_previous, spec)
    return d_output, d_h_n, d_saved


def backward(
    tensors: BackwardTensors, grad_saved: Tensor | None, spec: RecurrenceSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``pre``, ``h0``, ``weight_hh`` and ``decay``: the backward operator as differentiable
    torch code. ``grad_saved`` is the gradient of what forward saved, ``f(z_t)`` and ``h_{t-1} - y_t``.
    """
    output, weight, decay = tensors.output, tensors.weight_hh, tensors.decay
    shift = TimeShift(output, tensors.h0, tensors.batch_sizes, spec.reverse)
    linear = _linearize(tensors, spec, shift)
    grad = torch.zeros_like(output) if tensors.grad_output is None else tensors.grad_output
    if tensors.grad_h_n is not None and shift.count > 0:
        grad = shift.add_to_last(grad, tensors.grad_h_n)
    direct = None  # the gradient of z (rate) or y (current) that does not pass through h
    to_previous = None  # the gradient of h_{t-1} that does not pass through z or y
    if grad_saved is not None:
        direct, to_previous = _through_saved(grad_saved, linear, spec)
        earlier = _times(linear.beta, shift.matmul(direct, weight))
        following = shift.next(earlier if to_previous is None else earlier + to_previous)
        assert following is not None
        grad = grad + following
    delta = _adjoint(grad, weight, decay, linear.alpha, linear.beta, shift)
    u = linear.alpha * delta if direct is None else linear.alpha * delta + direct
    d_h0 = _gradient_of_start(delta, u, weight, decay, linear.beta, shift)
    if to_previous is not None and shift.count > 0:
        d_h0 = d_h0 + shift.first(to_previous)
    if shift.count == 0 and tensors.grad_h_n is not None:
        d_h0 = d_h0 + tensors.grad_h_n
    d_decay = shift.sum_per_unit(linear.times_decay_slope(delta, output), decay)
    return u, d_h0, shift.outer(u, linear.x), d_decay


def _tangent_of_saved(saved: Tensor, d_y: Tensor, d_previous: Tensor, spec: RecurrenceSpec) -> Tensor:
    """The tangent of what forward saved, from those of ``y_t`` and of ``h_{t-1}``. Bits have none."""
    kept, decay_slope = _split_saved(saved, d_y.shape[-1], spec)
    if decay_slope is None:
        return d_y
    first = d_y if _saves_activation(spec) else torch.zeros_like(kept)
    d_slope = d_previous - d_y
    rest = saved.shape[-1] - first.shape[-1] - d_slope.shape[-1]
    return torch.cat([first, torch.nn.functional.pad(d_slope, (0, rest))], -1)


def _through_saved(
    grad_saved: Tensor, linear: _Linearized, spec: RecurrenceSpec
) -> tuple[Tensor, Tensor | None]:
    """The gradients of ``z_t`` (rate) or ``y_t`` (current), and of ``h_{t-1}``, from that of ``saved``."""
    grad_kept, grad_slope = _split_saved(grad_saved, linear.previous.shape[-1], spec)
    if grad_slope is None:
        return _times(linear.slope, grad_kept), None
    grad_y = grad_kept - grad_slope if _saves_activation(spec) else -grad_slope
    return _times(linear.slope, grad_y), grad_slope


def projection_tangent(
    d_input: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None, d_drive: Tensor | None,
    point: ProjectedBackwardTensors,
) -> Tensor | None:  # fmt: skip
    """``dp_t = W_ih dx_t + dW_ih x_t + db + d drive_t``, the tangent of the projection; None for zero."""
    input, weight = point.input, point.weight_ih
    shift = TimeShift(input, point.h0, point.batch_sizes, False)
    parts = []
    if d_input is not None:
        parts.append(shift.matmul(d_input, weight.mT))
    if d_weight is not None:
        parts.append(shift.matmul(input, d_weight.mT))
    if d_bias is not None:
        shape = (*input.shape[:-1], weight.shape[-2])
        parts.append(shift.per_unit(d_bias, input).expand(shape))
    if d_drive is not None:
        parts.append(d_drive)
    return sum(parts[1:], parts[0]) if parts else None


def projection_backward(
    u: Tensor, tensors: ProjectedBackwardTensors, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``d_input = u W_ih``, ``d_W_ih = u^T input`` and ``d_bias``, the sum of ``u`` over rows, where ``u`` is
    the gradient of the projection. A gradient that ``wanted`` does not ask for is None.
    """
    shift = TimeShift(tensors.input, tensors.h0, tensors.batch_sizes, False)
    return (
        shift.matmul(u, tensors.weight_ih) if wanted[0] else None,
        shift.outer(u, tensors.input) if wanted[2] else None,
        shift.rows(u).sum(-2) if wanted[4] else None,
    )


def projected_backward(
    tensors: ProjectedBackwardTensors, grad_saved: Tensor | None, spec: RecurrenceSpec
) -> tuple[Tensor, ...]:
    """:func:`backward` with the input projection: all seven gradients of the operator."""
    u, d_h0, d_weight_hh, d_decay = backward(tensors.of_recurrence(), grad_saved, spec)
    d_input, d_weight_ih, d_bias = projection_backward(u, tensors, (True,) * 7)
    assert d_input is not None
    assert d_weight_ih is not None
    assert d_bias is not None
    return d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, u, d_decay
