"""The recurrence in autograd. There are two entry points to each of its two operators:

- the operator itself, whose derivative formula is in csrc/binding/autograd.cpp: the faster one, and the one
  that torch.compile traces;
- an ``autograd.Function``, for torch.func's transforms and forward mode, which the C++ formula does not
  support. It is not the only entry point because Dynamo refuses a Function with a ``jvp``.

Both call the same backward operators (``rnnkernels._autograd.backward``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._autograd.backward import projected_vjp, recurrence_vjp
from rnnkernels._autograd.derivatives import forward_mode_stays_on, primals_of, projection_tangent, tangent
from rnnkernels._autograd.modes import in_forward_mode, in_torch_func
from rnnkernels._autograd.vmap import Networks, is_nothing
from rnnkernels._ops.spec import (
    BackwardTensors,
    ProjectedBackwardTensors,
    ProjectedTensors,
    RecurrenceSpec,
    RecurrenceTensors,
    split_arguments,
)


def recurrence(tensors: RecurrenceTensors | ProjectedTensors, spec: RecurrenceSpec) -> tuple[Tensor, Tensor]:
    """``(output, h_n)`` of the operator that takes these tensors, differentiable in every mode."""
    projected = isinstance(tensors, ProjectedTensors)
    if in_torch_func() or in_forward_mode(tensors):
        function = ProjectedRecurrence if projected else Recurrence
        output, h_n, _ = function.apply(*tensors, *spec, True)  # type: ignore[no-untyped-call]
        return output, h_n
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    operator = _ops.projected_recurrence if projected else _ops.leaky_recurrence
    output, h_n, _ = operator(*tensors, *spec, save)
    return output, h_n


def _save(
    ctx: Any, spec: RecurrenceSpec, saved: Tensor, kept: BackwardTensors | ProjectedBackwardTensors
) -> None:
    """Save what the operators' C++ formulas save: the tensors of backward without incoming gradients."""
    ctx.spec = spec
    ctx.set_materialize_grads(False)
    ctx.saved_is_differentiable = saved.is_floating_point() and not is_nothing(saved)
    if not ctx.saved_is_differentiable:
        ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(*kept[2:])
    ctx.save_for_forward(*kept[2:])


def _needed(grads: tuple[Tensor, ...], needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs that need one; the last five inputs never do."""
    first = (g if need else None for g, need in zip(grads, needs, strict=True))
    return (*first, None, None, None, None, None)


class Recurrence(torch.autograd.Function):
    """``leaky_recurrence`` for torch.func and forward mode; inputs and outputs are the operator's."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.leaky_recurrence(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save the tensors that the derivatives need."""
        tensors, spec, _ = split_arguments(RecurrenceTensors, inputs)
        states, _, saved = output
        _save(ctx, spec, saved, tensors.for_backward(states, saved))

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The backward operator, or its differentiable equivalent."""
        needs = ctx.needs_input_grad[:4]
        if grad_output is None and grad_h_n is None and grad_saved is None:
            return (None,) * 9
        tensors = BackwardTensors(grad_output, grad_h_n, *ctx.saved_tensors)
        return _needed(recurrence_vjp(tensors, grad_saved, ctx.spec, needs), needs)

    @staticmethod
    def jvp(ctx: Any, d_pre: Any, d_h0: Any, d_weight: Any, d_decay: Any, *_: Any) -> Any:
        """One linear recurrence."""
        with forward_mode_stays_on(True):
            primals: tuple[Any, ...] = primals_of(ctx)
            around = BackwardTensors(None, None, *primals)
            d_output, d_h_n, d_saved = tangent(ctx.spec, d_pre, d_h0, d_weight, d_decay, around)
        return d_output, d_h_n, d_saved if ctx.saved_is_differentiable else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """All examples in one call."""
        tensors, spec, save = split_arguments(RecurrenceTensors, inputs)
        networks = Networks(info.batch_size, tensors, in_dims[: len(tensors)])
        return networks.split_outputs(*_call(Recurrence, networks.batched(), spec, save))


class ProjectedRecurrence(torch.autograd.Function):
    """``projected_recurrence`` for torch.func and forward mode; inputs and outputs are the operator's."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.projected_recurrence(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save the tensors that the derivatives need."""
        tensors, spec, _ = split_arguments(ProjectedTensors, inputs)
        states, _, saved = output
        _save(ctx, spec, saved, tensors.for_backward(states, saved))

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The backward operator, or its differentiable equivalent."""
        needs = ctx.needs_input_grad[:7]
        if grad_output is None and grad_h_n is None and grad_saved is None:
            return (None,) * 12
        tensors = ProjectedBackwardTensors(grad_output, grad_h_n, *ctx.saved_tensors)
        return _needed(projected_vjp(tensors, grad_saved, ctx.spec, needs), needs)

    @staticmethod
    def jvp(
        ctx: Any, d_input: Any, d_h0: Any, d_weight_ih: Any, d_weight_hh: Any, d_bias: Any, d_drive: Any,
        d_decay: Any, *_: Any,
    ) -> Any:  # fmt: skip
        """One linear recurrence."""
        with forward_mode_stays_on(True):
            primals: tuple[Any, ...] = primals_of(ctx)
            around = ProjectedBackwardTensors(None, None, *primals)
            d_pre = projection_tangent(d_input, d_weight_ih, d_bias, d_drive, around)
            d_output, d_h_n, d_saved = tangent(
                ctx.spec, d_pre, d_h0, d_weight_hh, d_decay, around.of_recurrence()
            )
        return d_output, d_h_n, d_saved if ctx.saved_is_differentiable else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """All examples in one call."""
        tensors, spec, save = split_arguments(ProjectedTensors, inputs)
        networks = Networks(info.batch_size, tensors, in_dims[: len(tensors)])
        return networks.split_outputs(*_call(ProjectedRecurrence, networks.batched(), spec, save))


def _call(
    function: Any, tensors: RecurrenceTensors | ProjectedTensors, spec: RecurrenceSpec, save: bool
) -> Any:
    """Call a Function if another transform surrounds this one, else its operator, which is faster."""
    transformed = in_torch_func() or in_forward_mode(tensors)
    call = function.apply if transformed else function.forward
    return call(*tensors, *spec, save)
