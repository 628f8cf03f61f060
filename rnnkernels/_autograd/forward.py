"""The recurrence in autograd. There are two entry points to each of its two operators:

- the operator itself, whose derivative formula is in csrc/binding/autograd.cpp: the faster one, and the one
  that torch.compile traces;
- an ``autograd.Function``, for torch.func's transforms and forward mode, which the C++ formula does not
  support. It is not the only entry point because Dynamo refuses a Function with a ``jvp``.

Both call the same backward operators (``rnnkernels._autograd.backward``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._autograd.backward import projected_vjp, recurrence_vjp
from rnnkernels._autograd.derivatives import forward_mode_stays_on, primals_of, projection_tangent, tangent
from rnnkernels._autograd.modes import in_forward_mode, in_torch_func, may_need_gradient
from rnnkernels._autograd.vmap import MergedExamples, saves_nothing
from rnnkernels._ops.spec import (
    GRADIENTS,
    PROJECTED_GRADIENTS,
    SAVE_FOR_BACKWARD,
    SAVE_FOR_DECAY,
    SAVE_NOTHING,
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
        save = SAVE_FOR_DECAY if may_need_gradient(tensors.decay) else SAVE_FOR_BACKWARD
        output, h_n, _ = function.apply(*tensors, *spec, save)  # type: ignore[no-untyped-call]
        return output, h_n
    operator = _ops.projected_recurrence if projected else _ops.leaky_recurrence
    output, h_n, _ = operator(*tensors, *spec, SAVE_NOTHING)  # more if autograd records the call
    return output, h_n


def _setup_context(kind: Any) -> Callable[..., None]:
    """Save what the operator's C++ formula saves: the tensors of backward without incoming gradients."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, ctx.spec, _ = split_arguments(kind, inputs)
        states, _, saved = output
        ctx.set_materialize_grads(False)
        ctx.saved_is_differentiable = saved.is_floating_point() and not saves_nothing(saved)
        if not ctx.saved_is_differentiable:
            ctx.mark_non_differentiable(saved)
        kept = tensors.for_backward(states, saved)[2:]
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    return setup_context


def _backward(kind: Any, kind_of_backward: Any, vjp: Any, gradients: tuple[str, ...]) -> Callable[..., Any]:
    """Call the backward operator, or its differentiable equivalent."""
    inputs = len(kind._fields) + len(RecurrenceSpec._fields) + 1

    def backward(ctx: Any, grad_output: Any, grad_h_n: Any, grad_saved: Any) -> tuple[Tensor | None, ...]:
        if grad_output is None and grad_h_n is None and grad_saved is None:
            return (None,) * inputs
        needs = ctx.needs_input_grad[: len(gradients)]
        tensors = kind_of_backward(grad_output, grad_h_n, *ctx.saved_tensors)
        grads = vjp(tensors, grad_saved, ctx.spec, needs)
        needed = (g if need else None for g, need in zip(grads, needs, strict=True))
        return (*needed, *(None,) * (inputs - len(gradients)))

    return backward


def _vmap(kind: Any, find_function: Callable[[], Any]) -> Callable[..., Any]:
    """Run all examples in one call: of the Function if another transform surrounds this one, else of its
    operator, which is faster.
    """

    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        tensors, spec, save = split_arguments(kind, inputs)
        merged = MergedExamples(info.batch_size, tensors, in_dims[: len(tensors)])
        batched = merged.batched()
        transformed = in_torch_func() or in_forward_mode(batched)
        call = find_function().apply if transformed else find_function().forward
        return merged.split_outputs(*call(*batched, *spec, save))

    return vmap


class Recurrence(torch.autograd.Function):
    """``leaky_recurrence`` for torch.func and forward mode; inputs and outputs are the operator's."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.leaky_recurrence(*inputs)

    setup_context = staticmethod(_setup_context(RecurrenceTensors))
    backward = staticmethod(_backward(RecurrenceTensors, BackwardTensors, recurrence_vjp, GRADIENTS))
    vmap = staticmethod(_vmap(RecurrenceTensors, lambda: Recurrence))

    @staticmethod
    def jvp(ctx: Any, d_pre: Any, d_h0: Any, d_weight: Any, d_decay: Any, *_: Any) -> Any:
        """One linear recurrence."""
        with forward_mode_stays_on(True):
            primals: tuple[Any, ...] = primals_of(ctx)
            point = BackwardTensors(None, None, *primals)
            d_output, d_h_n, d_saved = tangent(ctx.spec, d_pre, d_h0, d_weight, d_decay, point)
        return d_output, d_h_n, d_saved if ctx.saved_is_differentiable else None


class ProjectedRecurrence(torch.autograd.Function):
    """``projected_recurrence`` for torch.func and forward mode; inputs and outputs are the operator's."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.projected_recurrence(*inputs)

    setup_context = staticmethod(_setup_context(ProjectedTensors))
    backward = staticmethod(
        _backward(ProjectedTensors, ProjectedBackwardTensors, projected_vjp, PROJECTED_GRADIENTS)
    )
    vmap = staticmethod(_vmap(ProjectedTensors, lambda: ProjectedRecurrence))

    @staticmethod
    def jvp(
        ctx: Any, d_input: Any, d_h0: Any, d_weight_ih: Any, d_weight_hh: Any, d_bias: Any, d_drive: Any,
        d_decay: Any, *_: Any,
    ) -> Any:  # fmt: skip
        """One linear recurrence."""
        with forward_mode_stays_on(True):
            primals: tuple[Any, ...] = primals_of(ctx)
            point = ProjectedBackwardTensors(None, None, *primals)
            d_pre = projection_tangent(d_input, d_weight_ih, d_bias, d_drive, point)
            d_output, d_h_n, d_saved = tangent(
                ctx.spec, d_pre, d_h0, d_weight_hh, d_decay, point.of_recurrence()
            )
        return d_output, d_h_n, d_saved if ctx.saved_is_differentiable else None
