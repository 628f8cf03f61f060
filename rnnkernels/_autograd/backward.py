"""The backward operators in autograd: as Functions for torch.func's transforms and forward mode.

Each has a differentiable equivalent in ``derivatives``: the same gradients, made of linear recurrences and
products that can be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._autograd import derivatives
from rnnkernels._autograd.derivatives import forward_mode_stays_on, primals_of
from rnnkernels._autograd.modes import in_forward_mode, in_torch_func
from rnnkernels._autograd.vmap import MergedExamples
from rnnkernels._ops.spec import (
    GRADIENTS,
    PROJECTED_GRADIENTS,
    ROLES,
    BackwardTensors,
    ProjectedBackwardTensors,
    RecurrenceSpec,
    split_arguments,
)

Grads = tuple[Tensor, ...]
Wanted = tuple[bool, ...]


def recurrence_vjp(
    tensors: BackwardTensors, grad_saved: Tensor | None, spec: RecurrenceSpec, wanted: Wanted
) -> Grads:
    """The gradients of ``leaky_recurrence``, by the backward operator wherever that is possible."""
    grads: Any
    if in_torch_func() and grad_saved is None:
        grads = RecurrenceBackward.apply(*tensors, *spec, wanted)  # type: ignore[no-untyped-call]
    elif grad_saved is not None or in_forward_mode(tensors):
        # Only second derivatives differentiate f(z) itself.
        grads = derivatives.backward(tensors, grad_saved, spec)
    else:
        grads = _ops.leaky_recurrence_backward(*tensors, *spec, wanted)
    return tuple(grads)


def projected_vjp(
    tensors: ProjectedBackwardTensors, grad_saved: Tensor | None, spec: RecurrenceSpec, wanted: Wanted
) -> Grads:
    """The gradients of ``projected_recurrence``, if they may be differentiated again."""
    if in_torch_func() and grad_saved is None:
        grads: Any = ProjectedBackward.apply(*tensors, *spec, wanted)  # type: ignore[no-untyped-call]
        return tuple(grads)
    wants_u = wanted[0] or wanted[2] or wanted[4] or wanted[5]
    inner = (wants_u, wanted[1], wanted[3], wanted[6])
    u, d_h0, d_weight_hh, d_decay = recurrence_vjp(tensors.of_recurrence(), grad_saved, spec, inner)
    projected = derivatives.projection_backward(u, tensors, wanted)
    d_input, d_weight_ih, d_bias = (u.new_zeros(0) if x is None else x for x in projected)
    d_drive = u if wanted[5] else u.new_zeros(0)
    return d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay


def _register_vjp(name: str, kind: Any, vjp: Callable[..., Grads]) -> None:
    """Implement a vjp operator, whose arguments are ``(grad_saved, *tensors, *spec, wanted)``."""

    def implementation(grad_saved: Tensor | None, *arguments: Any) -> Grads:
        tensors, spec, wanted = split_arguments(kind, arguments)
        return vjp(tensors, grad_saved, spec, wanted)

    # Registered for torch.func's transforms, too: they would otherwise loop over the examples.
    for key in ("CompositeImplicitAutograd", "FuncTorchDynamicLayerFrontMode"):
        _ops.implement(name, key, implementation)


_register_vjp("leaky_recurrence_vjp", BackwardTensors, recurrence_vjp)
_register_vjp("projected_recurrence_vjp", ProjectedBackwardTensors, projected_vjp)


class _Differentiable:
    """The differentiable equivalent of a backward operator, as a function of its floating-point tensors.

    Args:
        equivalent: ``derivatives.backward`` or ``derivatives.projected_backward``.
        tensors, spec: The operator's.
        returned: Which gradients the operator returns; the others are empty.
    """

    def __init__(
        self, equivalent: Callable[..., Grads], tensors: Any, spec: RecurrenceSpec, returned: Wanted
    ) -> None:
        self.equivalent, self.tensors, self.spec, self.returned = equivalent, tensors, spec, returned
        self.names = [
            name
            for name, x in zip(tensors._fields, tensors, strict=True)
            if isinstance(x, Tensor) and x.is_floating_point()
        ]

    def primals(self) -> Grads:
        return tuple(getattr(self.tensors, name) for name in self.names)

    def __call__(self, *primals: Tensor) -> Grads:
        tensors = self.tensors._replace(**dict(zip(self.names, primals, strict=True)))
        grads = self.equivalent(tensors, None, self.spec)
        return tuple(g if keep else g.new_zeros(0) for g, keep in zip(grads, self.returned, strict=True))

    def vjp(self, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The gradients of all arguments of the operator."""
        both: Any = torch.func.vjp(self, *self.primals())
        results, vjp = both
        full = tuple(torch.zeros_like(r) if g is None else g for g, r in zip(grads, results, strict=True))
        found = dict(zip(self.names, vjp(full), strict=True))
        return (*map(found.get, self.tensors._fields), *(None,) * (len(self.spec) + 1))

    def jvp(self, tangents: tuple[Tensor | None, ...]) -> Grads:
        """The tangents of the results, from those of the operator's arguments."""
        given = dict(zip(self.tensors._fields, tangents, strict=False))
        # torch gives a tangent the strides of its primal, which it refuses for an expanded one.
        primals = tuple(x.contiguous() for x in self.primals())
        full = tuple(
            torch.zeros_like(x) if given[name] is None else given[name]
            for name, x in zip(self.names, primals, strict=True)
        )
        moved: Grads = torch.func.jvp(self, primals, full)[1]
        return moved


def _equivalent_of(kind: Any, tensors: Any, spec: RecurrenceSpec, wanted: Wanted) -> _Differentiable:
    if kind is BackwardTensors:  # this operator returns d_pre in any case
        return _Differentiable(derivatives.backward, kind(*tensors), spec, (True, *wanted[1:]))
    return _Differentiable(derivatives.projected_backward, kind(*tensors), spec, wanted)


def _save(kind: Any) -> Callable[..., None]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Grads) -> None:
        tensors, ctx.spec, ctx.wanted = split_arguments(kind, inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    return setup_context


def _second_backward(kind: Any) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _equivalent_of(kind, ctx.saved_tensors, ctx.spec, ctx.wanted).vjp(grads)

    return backward


def _second_tangent(kind: Any) -> Callable[..., Any]:
    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_mode_stays_on(True):
            return _equivalent_of(kind, primals_of(ctx), ctx.spec, ctx.wanted).jvp(tangents)

    return jvp


def _vmap(
    kind: Any, gradients: tuple[str, ...], find_function: Callable[[], Any], *, always: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Run all examples in one call, in which each has its own gradients of the parameters.

    Args:
        kind: The operator's tensors.
        gradients: The tensors whose gradients it returns.
        find_function: Returns the Function, which does not exist yet when its ``vmap`` is made.
        always: The gradients that it returns in any case.
    """

    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        tensors, spec, wanted = split_arguments(kind, inputs)
        names = [name for name, want in zip(gradients, wanted, strict=True) if want]
        separate = any(ROLES[name] in ("parameter", "decay") for name in names)
        merged = MergedExamples(
            info.batch_size, tensors, in_dims[: len(tensors)], separate_gradients=separate
        )
        grads = find_function().apply(*merged.batched(), *spec, wanted)
        returned = tuple(name in names or name in always for name in gradients)
        return merged.split_gradients(gradients, grads, returned)

    return vmap


if not _ops.has_kernel("leaky_recurrence_backward", "Autograd"):
    torch.library.register_autograd(
        "rnnkernels::leaky_recurrence_backward",
        _second_backward(BackwardTensors),
        setup_context=_save(BackwardTensors),
    )


class RecurrenceBackward(torch.autograd.Function):
    """``leaky_recurrence_backward``; inputs and outputs are the operator's."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.leaky_recurrence_backward(*inputs)

    setup_context = staticmethod(_save(BackwardTensors))
    backward = staticmethod(_second_backward(BackwardTensors))
    jvp = staticmethod(_second_tangent(BackwardTensors))
    vmap = staticmethod(_vmap(BackwardTensors, GRADIENTS, lambda: RecurrenceBackward, always=("pre",)))


class ProjectedBackward(torch.autograd.Function):
    """``projected_recurrence_backward``; inputs and outputs are the operator's."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.projected_recurrence_backward(*inputs)

    setup_context = staticmethod(_save(ProjectedBackwardTensors))
    backward = staticmethod(_second_backward(ProjectedBackwardTensors))
    jvp = staticmethod(_second_tangent(ProjectedBackwardTensors))
    vmap = staticmethod(_vmap(ProjectedBackwardTensors, PROJECTED_GRADIENTS, lambda: ProjectedBackward))
