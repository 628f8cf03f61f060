"""The recurrence in autograd. Two doors lead to its operator:

- the operator itself, whose formula is in csrc/binding/autograd.cpp: the fastest, and the one that
  torch.compile traces;
- a Function, wherever torch.func's transforms or forward-mode differentiation are at work, which the
  first door does not know. It is not the only one because Dynamo refuses a Function with a jvp.

Both lead to the same backward operator (``_autograd_backward``). The recurrence with its input projection
has two such doors as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._autograd import derivatives as _derivatives
from rnnkernels._autograd.backward import projected_vjp, recurrence_vjp
from rnnkernels._autograd.derivatives import Kind, forward_mode_stays_on, primals_of
from rnnkernels._autograd.modes import in_forward_mode, in_torch_func
from rnnkernels._autograd.vmap import Networks, is_nothing
from rnnkernels._checks import autocasts, has_kernels


def leaky_recurrence(
    pre: Tensor,
    h0: Tensor | None,
    weight_hh: Tensor,
    decay: Tensor,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    form: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Call the operator; see :func:`rnnkernels.functional.leaky_recurrence`."""
    tensors = (pre, h0, weight_hh, decay)
    others = (batch_sizes, nonlinearity, form, reverse)
    if in_torch_func() or in_forward_mode(tensors):
        output, h_n, _ = Recurrence.apply(*tensors, *others, True)  # type: ignore[no-untyped-call]
        return output, h_n
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    output, h_n, _ = _ops.leaky_recurrence(*tensors, *others, save)
    return output, h_n


def can_project(input: Tensor) -> bool:
    """Whether the operator of projection and recurrence together knows these: not half precision, CUDA
    and devices without kernels, and autocast.
    """
    return (
        has_kernels(input.device, "projected_recurrence")
        and input.dtype in (torch.float32, torch.float64)
        and not autocasts(input.device)
    )


def projected_recurrence(
    input: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    drive: Tensor | None,
    decay: Tensor,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    form: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Call the operator, after :func:`can_project`."""
    tensors = (input, h0, weight_ih, weight_hh, bias, drive, decay)
    others = (batch_sizes, nonlinearity, form, reverse)
    if in_torch_func() or in_forward_mode(tensors):
        output, h_n, _ = ProjectedRecurrence.apply(*tensors, *others, True)  # type: ignore[no-untyped-call]
        return output, h_n
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    output, h_n, _ = _ops.projected_recurrence(*tensors, *others, save)
    return output, h_n


def _keep(ctx: Any, output: tuple[Tensor, ...], tensors: tuple[Any, ...], kind: list[Any]) -> None:
    """Keep what the operators' own formulas keep."""
    ctx.kind = Kind(*kind)
    ctx.set_materialize_grads(False)
    states, _, saved = output
    ctx.saved_is_differentiable = saved.is_floating_point() and not is_nothing(saved)
    if not ctx.saved_is_differentiable:
        ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(states, saved, *tensors)
    ctx.save_for_forward(*ctx.to_save)


def _needed(grads: tuple[Tensor, ...], needs: tuple[bool, ...], inputs: int) -> tuple[Tensor | None, ...]:
    """The gradients of all inputs: of the first as they are needed, of the others none."""
    first = (g if need else None for g, need in zip(grads, needs, strict=True))
    return (*first, *(None,) * (inputs - len(needs)))


class Recurrence(torch.autograd.Function):
    """The recurrence for torch.func's transforms and for forward mode."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.leaky_recurrence(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the operator's own formula keeps."""
        _, h0, weight_hh, decay, batch_sizes, *kind, _ = inputs
        _keep(ctx, output, (h0, weight_hh, decay, batch_sizes), kind)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The backward operator, or its differentiable twin."""
        needs = ctx.needs_input_grad[:4]
        if grad_output is None and grad_h_n is None and grad_saved is None:
            return (None,) * 9
        grads = recurrence_vjp(grad_output, grad_h_n, grad_saved, *ctx.saved_tensors, *ctx.kind, needs)
        return _needed(grads, needs, 9)

    @staticmethod
    def jvp(ctx: Any, d_pre: Any, d_h0: Any, d_weight: Any, d_decay: Any, *_: Any) -> Any:
        """One linear walk."""
        with forward_mode_stays_on(True):
            primals: tuple[Any, ...] = primals_of(ctx)
            d_output, d_h_n, d_saved = _derivatives.tangent(
                ctx.kind, d_pre, d_h0, d_weight, d_decay, *primals
            )
        return d_output, d_h_n, d_saved if ctx.saved_is_differentiable else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """All examples in one walk."""
        pre, h0, weight, decay, batch_sizes, *others = inputs
        networks = Networks(
            info.batch_size, (weight, in_dims[2]), (decay, in_dims[3]), (batch_sizes, in_dims[4])
        )
        output, h_n, saved = Recurrence.apply(  # type: ignore[no-untyped-call]
            networks.sequence(pre, in_dims[0]),
            networks.state(h0, in_dims[1]),
            networks.weight,
            networks.decay,
            batch_sizes,
            *others,
        )
        return networks.split_results(output, h_n, saved)


class ProjectedRecurrence(torch.autograd.Function):
    """Projection and recurrence together, for torch.func's transforms and for forward mode."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.projected_recurrence(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the operator's own formula keeps."""
        input, h0, weight_ih, weight_hh, _, _, decay, batch_sizes, *kind, _ = inputs
        _keep(ctx, output, (input, h0, weight_ih, weight_hh, decay, batch_sizes), kind)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The backward operator, or its differentiable twin."""
        needs = ctx.needs_input_grad[:7]
        if grad_output is None and grad_h_n is None and grad_saved is None:
            return (None,) * 12
        grads = projected_vjp(grad_output, grad_h_n, grad_saved, *ctx.saved_tensors, *ctx.kind, needs)
        return _needed(grads, needs, 12)

    @staticmethod
    def jvp(
        ctx: Any, d_input: Any, d_h0: Any, d_weight_ih: Any, d_weight_hh: Any, d_bias: Any, d_drive: Any,
        d_decay: Any, *_: Any,
    ) -> Any:  # fmt: skip
        """One linear walk."""
        with forward_mode_stays_on(True):
            primals: tuple[Any, ...] = primals_of(ctx)
            output, saved, input, h0, weight_ih, weight_hh, decay, batch_sizes = primals
            d_pre = _derivatives.projection_tangent(
                d_input, d_weight_ih, d_bias, d_drive, input, h0, weight_ih, batch_sizes
            )
            d_output, d_h_n, d_saved = _derivatives.tangent(
                ctx.kind, d_pre, d_h0, d_weight_hh, d_decay, output, saved, h0, weight_hh, decay, batch_sizes
            )
        return d_output, d_h_n, d_saved if ctx.saved_is_differentiable else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """All examples in one call."""
        input, h0, weight_ih, weight_hh, bias, drive, decay, batch_sizes, *others = inputs
        networks = Networks(
            info.batch_size, (weight_hh, in_dims[3]), (decay, in_dims[6]), (batch_sizes, in_dims[7]),
            others=(in_dims[2], in_dims[4]),
        )  # fmt: skip
        arguments = (
            networks.sequence(input, in_dims[0]),
            networks.state(h0, in_dims[1]),
            networks.parameter(weight_ih, in_dims[2]),
            networks.weight,
            networks.parameter(bias, in_dims[4]),
            networks.sequence(drive, in_dims[5]),
            networks.decay,
            batch_sizes,
            *others,
        )
        # Where this was the only transform, autograd takes the shorter door.
        around = in_torch_func() or in_forward_mode(arguments[:7])
        call: Any = ProjectedRecurrence.apply if around else _ops.projected_recurrence
        return networks.split_results(*call(*arguments))
