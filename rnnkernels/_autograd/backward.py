"""The backward operators in autograd: as Functions for torch.func's transforms and for forward mode.

Each has a differentiable twin in ``_derivatives``: the same gradients, made of walks and products that can
be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._autograd import derivatives as _derivatives
from rnnkernels._autograd.derivatives import Kind, forward_mode_stays_on, primals_of
from rnnkernels._autograd.modes import in_forward_mode, in_torch_func
from rnnkernels._autograd.vmap import Networks

Grads = tuple[Tensor, ...]


def recurrence_vjp(
    grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None, *others: Any
) -> Grads:
    """The backward operator in all circumstances; ``others`` are its other arguments."""
    *saved, nonlinearity, form, reverse, wanted = others
    kind = Kind(nonlinearity, form, reverse)
    grads: Any
    if in_torch_func() and grad_saved is None:
        grads = RecurrenceBackward.apply(grad_output, grad_h_n, *saved, *kind, wanted)  # type: ignore[no-untyped-call]
    elif grad_saved is not None or in_forward_mode((grad_output, grad_h_n, *saved)):
        # f(z) itself is seen by second derivatives only.
        grads = _derivatives.backward(kind, grad_output, grad_h_n, grad_saved, *saved)
    else:
        grads = _ops.leaky_recurrence_backward(grad_output, grad_h_n, *saved, *kind, wanted)
    return tuple(grads)


def projected_vjp(
    grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None, *others: Any
) -> Grads:
    """The backward operator with the projection, where its gradients may be differentiated again."""
    *saved, nonlinearity, form, reverse, wanted = others
    kind = Kind(nonlinearity, form, reverse)
    if in_torch_func() and grad_saved is None:
        grads: Any = ProjectedBackward.apply(grad_output, grad_h_n, *saved, *kind, wanted)  # type: ignore[no-untyped-call]
        return tuple(grads)
    output, f, input, h0, weight_ih, weight_hh, decay, batch_sizes = saved
    wants_u = wanted[0] or wanted[2] or wanted[4] or wanted[5]
    inner = (wants_u, wanted[1], wanted[3], wanted[6])
    u, d_h0, d_weight_hh, d_decay = recurrence_vjp(
        grad_output, grad_h_n, grad_saved, output, f, h0, weight_hh, decay, batch_sizes, *kind, inner
    )
    projected = _derivatives.projection_backward(u, input, h0, weight_ih, batch_sizes, wanted)
    d_input, d_weight_ih, d_bias = (u.new_zeros(0) if x is None else x for x in projected)
    d_drive = u if wanted[5] else u.new_zeros(0)
    return d_input, d_h0, d_weight_ih, d_weight_hh, d_bias, d_drive, d_decay


# Under torch.func's transforms as itself, too, before they would take it for an operator to loop over.
for _key in ("CompositeImplicitAutograd", "FuncTorchDynamicLayerFrontMode"):
    torch.library.impl("rnnkernels::leaky_recurrence_vjp", _key, recurrence_vjp)
    torch.library.impl("rnnkernels::projected_recurrence_vjp", _key, projected_vjp)


class _Differentiated:
    """A backward operator's differentiable twin as a function of its floating-point arguments.

    ``inputs`` are the operator's: tensors, batch sizes, kind, and what is wanted.
    """

    def __init__(self, twin: Callable[..., Grads], inputs: tuple[Any, ...], made: tuple[bool, ...]) -> None:
        self.twin, self.inputs, self.made = twin, inputs, made
        self.places = [
            i for i, x in enumerate(inputs[:-5]) if isinstance(x, Tensor) and x.is_floating_point()
        ]

    def primals(self) -> Grads:
        return tuple(self.inputs[i] for i in self.places)

    def __call__(self, *primals: Tensor) -> Grads:
        tensors = list(self.inputs[:-4])
        for i, x in zip(self.places, primals, strict=True):
            tensors[i] = x
        grad_output, grad_h_n, *others = tensors
        grads = self.twin(Kind(*self.inputs[-4:-1]), grad_output, grad_h_n, None, *others)
        return tuple(g if made else g.new_zeros(0) for g, made in zip(grads, self.made, strict=True))

    def vjp(self, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        both: Any = torch.func.vjp(self, *self.primals())
        results, vjp = both
        full = tuple(torch.zeros_like(r) if g is None else g for g, r in zip(grads, results, strict=True))
        out: list[Tensor | None] = [None] * len(self.inputs)
        for i, grad in zip(self.places, vjp(full), strict=True):
            out[i] = grad
        return tuple(out)

    def jvp(self, tangents: tuple[Tensor | None, ...]) -> Grads:
        primals = self.primals()
        full = tuple(
            torch.zeros_like(x) if tangents[i] is None else tangents[i]
            for i, x in zip(self.places, primals, strict=True)
        )
        moved: Grads = torch.func.jvp(self, primals, full)[1]
        return moved


def _of_recurrence(*inputs: Any) -> _Differentiated:
    made = (True, *inputs[-1][1:])  # the operator makes d_pre in any case
    return _Differentiated(_derivatives.backward, inputs, made)


def _of_projected(*inputs: Any) -> _Differentiated:
    return _Differentiated(_derivatives.projected_backward, inputs, inputs[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Grads) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:-4])
    ctx.save_for_forward(*inputs[:-4])
    ctx.others = inputs[-4:]


def _second_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return _of_recurrence(*ctx.saved_tensors, *ctx.others).vjp(grads)


torch.library.register_autograd(
    "rnnkernels::leaky_recurrence_backward", _second_backward, setup_context=_keep
)


class RecurrenceBackward(torch.autograd.Function):
    """``rnnkernels::leaky_recurrence_backward``."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.leaky_recurrence_backward(*inputs)

    setup_context = staticmethod(_keep)
    backward = staticmethod(_second_backward)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Through the differentiable twin."""
        with forward_mode_stays_on(True):
            return _of_recurrence(*primals_of(ctx), *ctx.others).jvp(tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """All examples in one walk; each has its own gradient of the weights."""
        grad_output, grad_h_n, output, saved, h0, weight, decay, batch_sizes, *kind, wanted = inputs
        share = not (wanted[2] or wanted[3])
        networks = Networks(
            info.batch_size, (weight, in_dims[5]), (decay, in_dims[6]), (batch_sizes, in_dims[7]),
            share_weights=share,
        )  # fmt: skip
        d_pre, d_h0, d_weight, d_decay = RecurrenceBackward.apply(  # type: ignore[no-untyped-call]
            networks.sequence(grad_output, in_dims[0]),
            networks.state(grad_h_n, in_dims[1]),
            networks.sequence(output, in_dims[2]),
            networks.saved(saved, in_dims[3]),
            networks.state(h0, in_dims[4]),
            networks.weight,
            networks.decay,
            batch_sizes,
            *kind,
            wanted,
        )
        results: list[Any] = [networks.split_sequence(d_pre)]
        results.append(networks.split_state(d_h0) if wanted[1] else (d_h0, None))
        results.append(networks.split_weight(d_weight) if wanted[2] else (d_weight, None))
        results.append(networks.split_decay(d_decay) if wanted[3] else (d_decay, None))
        return tuple(zip(*results, strict=True))


class ProjectedBackward(torch.autograd.Function):
    """``rnnkernels::projected_recurrence_backward``."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.projected_recurrence_backward(*inputs)

    setup_context = staticmethod(_keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Through the differentiable twin."""
        return _of_projected(*ctx.saved_tensors, *ctx.others).vjp(grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Through the differentiable twin."""
        with forward_mode_stays_on(True):
            return _of_projected(*primals_of(ctx), *ctx.others).jvp(tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """All examples in one walk; each has its own gradients of the weights."""
        (grad_output, grad_h_n, output, saved, input, h0, weight_ih, weight_hh, decay, batch_sizes, *kind,
         wanted) = inputs  # fmt: skip
        networks = Networks(
            info.batch_size, (weight_hh, in_dims[7]), (decay, in_dims[8]), (batch_sizes, in_dims[9]),
            others=(in_dims[6],), share_weights=not (any(wanted[2:5]) or wanted[6]),
        )  # fmt: skip
        grads = ProjectedBackward.apply(  # type: ignore[no-untyped-call]
            networks.sequence(grad_output, in_dims[0]),
            networks.state(grad_h_n, in_dims[1]),
            networks.sequence(output, in_dims[2]),
            networks.saved(saved, in_dims[3]),
            networks.sequence(input, in_dims[4]),
            networks.state(h0, in_dims[5]),
            networks.parameter(weight_ih, in_dims[6]),
            networks.weight,
            networks.decay,
            batch_sizes,
            *kind,
            wanted,
        )
        split = (
            networks.split_sequence, networks.split_state, networks.split_weight, networks.split_weight,
            networks.split_weight, networks.split_sequence, networks.split_decay,
        )  # fmt: skip
        results = [f(g) if want else (g, None) for f, g, want in zip(split, grads, wanted, strict=True)]
        return tuple(zip(*results, strict=True))
