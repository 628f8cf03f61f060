"""The operators: the only module that calls ``torch.ops.rnnkernels``, and their autograd formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels import _C as _C  # importing it registers the operators

_FORWARD_MODE = (
    "forward-mode differentiation of leaky_recurrence (torch.func.jvp, jacfwd, forward_ad) is not "
    "available yet"
)
_SECOND = "second derivatives of leaky_recurrence are not available yet"


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
    if _in_torch_func():
        output, h_n, _ = _Recurrence.apply(*tensors, *others, True)  # type: ignore[no-untyped-call]
        return output, h_n
    if torch.autograd.forward_ad._current_level >= 0 and any(map(_has_tangent, tensors)):
        # An operator without a forward-mode rule would answer with a zero tangent.
        raise NotImplementedError(_FORWARD_MODE)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    output, h_n, _ = torch.ops.rnnkernels.leaky_recurrence(*tensors, *others, save)
    return output, h_n


def _in_torch_func() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _has_tangent(x: Tensor | None) -> bool:
    if x is None:
        return False
    return torch.autograd.forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, h0, weight_hh, decay, batch_sizes, *ctx.kind, save = inputs
    ctx.save = save
    ctx.set_materialize_grads(False)
    states, _, saved = output
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(states, saved, h0, weight_hh, decay, batch_sizes)


def _backward(
    ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:4]
    if not ctx.save:
        raise RuntimeError("leaky_recurrence was called with save=False, so it has no backward")
    if grad_output is None and grad_h_n is None:
        return (None,) * 9
    operator: Any = torch.ops.rnnkernels.leaky_recurrence_backward
    if _in_torch_func():
        operator = _RecurrenceBackward.apply
    grads = operator(grad_output, grad_h_n, *ctx.saved_tensors, *ctx.kind, needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *(None,) * 5)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(_SECOND)


torch.library.register_autograd("rnnkernels::leaky_recurrence", _backward, setup_context=_setup_context)
torch.library.register_autograd("rnnkernels::leaky_recurrence_backward", _no_second_derivative)


class _Recurrence(torch.autograd.Function):
    """The same formulas for torch.func's transforms, which refuse those of register_autograd.

    Not the only way, because Dynamo refuses a Function with a jvp.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return torch.ops.rnnkernels.leaky_recurrence(*inputs)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_FORWARD_MODE)


class _RecurrenceBackward(torch.autograd.Function):
    """The backward operator for torch.func's transforms: no derivatives of its own yet."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return torch.ops.rnnkernels.leaky_recurrence_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    backward = staticmethod(_no_second_derivative)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_FORWARD_MODE)


def clipped_nesterov_(*arguments: Any) -> None:
    """Call the operator; see :class:`rnnkernels.ClippedNesterov`."""
    torch.ops.rnnkernels.clipped_nesterov_(*arguments)


def clipped_adamw_(*arguments: Any) -> None:
    """Call the operator; see :class:`rnnkernels.ClippedAdamW`."""
    torch.ops.rnnkernels.clipped_adamw_(*arguments)


def gradient_power_sum(grads: list[Tensor | None], norm_type: float) -> Tensor:
    """Return ``sum |g|^p`` over all elements, or ``max |g|`` for p = inf: a float64 scalar tensor."""
    total: Tensor = torch.ops.rnnkernels.gradient_power_sum(grads, norm_type)
    return total
