"""The recurrence's autograd formulas. Two doors lead to its operator:

- the operator itself, whose formula is in csrc/binding/autograd.cpp: the fastest, and the one that
  torch.compile traces;
- :class:`Recurrence`, a Function, wherever torch.func's transforms or forward-mode differentiation
  are at work, which the first door does not know. It is not the only one because Dynamo refuses a
  Function with a jvp.

Both lead to the same backward operator, and derivatives of that one are in ``_derivatives``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels import _derivatives, _ops
from rnnkernels._checks import autocasts
from rnnkernels._derivatives import Kind, forward_mode_stays_on, primals_of
from rnnkernels._networks import Networks


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


def can_project(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether the operator of projection and recurrence together has a door for these: not for half
    precision, other devices than the CPU, autocast, torch.func's transforms and forward mode.
    """
    input = tensors[0]
    assert input is not None
    return (
        input.device.type == "cpu"
        and input.dtype in (torch.float32, torch.float64)
        and not autocasts(input.device)
        and not in_torch_func()
        and not in_forward_mode(tensors)
    )


def projected_recurrence(
    input: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    decay: Tensor,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    form: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Call the operator, after :func:`can_project`."""
    tensors = (input, h0, weight_ih, weight_hh, bias, decay)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    output, h_n, _ = _ops.projected_recurrence(*tensors, batch_sizes, nonlinearity, form, reverse, save)
    return output, h_n


def in_torch_func() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def in_forward_mode(tensors: tuple[Tensor | None, ...]) -> bool:
    if torch.autograd.forward_ad._current_level < 0 or not any(map(_has_tangent, tensors)):
        return False
    if torch.compiler.is_compiling():  # the operator would answer with a zero tangent
        raise NotImplementedError("forward-mode differentiation inside torch.compile is not available")
    return True


def _has_tangent(x: Tensor | None) -> bool:
    if x is None:
        return False
    return torch.autograd.forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _vjp(
    grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None, *others: Any
) -> tuple[Tensor, ...]:
    """The backward operator in all circumstances; ``others`` are its other arguments."""
    saved, kind, needs = others[:6], Kind(*others[6:9]), others[9]
    grads: Any
    if in_torch_func() and grad_saved is None:
        grads = RecurrenceBackward.apply(grad_output, grad_h_n, *saved, *kind, needs)  # type: ignore[no-untyped-call]
    elif grad_saved is not None or in_forward_mode((grad_output, grad_h_n, *saved)):
        # f(z) itself is seen by second derivatives only.
        grads = _derivatives.backward(kind, grad_output, grad_h_n, grad_saved, *saved)
    else:
        grads = _ops.leaky_recurrence_backward(grad_output, grad_h_n, *saved, *kind, needs)
    return tuple(grads)


# Under torch.func's transforms as itself, too, before they would take it for an operator to loop over.
for _key in ("CompositeImplicitAutograd", "FuncTorchDynamicLayerFrontMode"):
    torch.library.impl("rnnkernels::leaky_recurrence_vjp", _key, _vjp)


class _Differentiated:
    """The backward operator's differentiable twin as a function of its floating-point arguments."""

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        self.inputs = inputs  # the operator's, all 12
        self.made = (True, *inputs[11][1:])  # the operator makes d_pre in any case
        self.places = [i for i, x in enumerate(inputs[:7]) if isinstance(x, Tensor) and x.is_floating_point()]

    def primals(self) -> tuple[Tensor, ...]:
        return tuple(self.inputs[i] for i in self.places)

    def __call__(self, *primals: Tensor) -> tuple[Tensor, ...]:
        tensors = list(self.inputs[:8])
        for i, x in zip(self.places, primals, strict=True):
            tensors[i] = x
        grad_output, grad_h_n, *others = tensors
        rest: tuple[Any, ...] = tuple(others)
        grads = _derivatives.backward(Kind(*self.inputs[8:11]), grad_output, grad_h_n, None, *rest)
        return tuple(g if made else g.new_zeros(0) for g, made in zip(grads, self.made, strict=True))

    def vjp(self, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        both: Any = torch.func.vjp(self, *self.primals())
        results, vjp = both
        full = tuple(torch.zeros_like(r) if g is None else g for g, r in zip(grads, results, strict=True))
        out: list[Tensor | None] = [None] * 12
        for i, grad in zip(self.places, vjp(full), strict=True):
            out[i] = grad
        return tuple(out)

    def jvp(self, tangents: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        primals = self.primals()
        full = tuple(
            torch.zeros_like(x) if tangents[i] is None else tangents[i]
            for i, x in zip(self.places, primals, strict=True)
        )
        moved: tuple[Tensor, ...] = torch.func.jvp(self, primals, full)[1]
        return moved


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:8])
    ctx.save_for_forward(*inputs[:8])
    ctx.others = inputs[8:]


def _second_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return _Differentiated((*ctx.saved_tensors, *ctx.others)).vjp(grads)


torch.library.register_autograd(
    "rnnkernels::leaky_recurrence_backward", _second_backward, setup_context=_setup_backward_context
)


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
        ctx.kind = Kind(*kind)
        ctx.set_materialize_grads(False)
        states, _, saved = output
        ctx.saved_is_differentiable = saved.is_floating_point() and saved.numel() > 0
        if not ctx.saved_is_differentiable:
            ctx.mark_non_differentiable(saved)
        ctx.save_for_backward(states, saved, h0, weight_hh, decay, batch_sizes)
        ctx.save_for_forward(*ctx.to_save)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_saved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The backward operator, or its differentiable twin."""
        needs = ctx.needs_input_grad[:4]
        if grad_output is None and grad_h_n is None and grad_saved is None:
            return (None,) * 9
        saved: tuple[Any, ...] = ctx.saved_tensors
        grads = _vjp(grad_output, grad_h_n, grad_saved, *saved, *ctx.kind, needs)
        return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *(None,) * 5)

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
        networks = Networks(info.batch_size, weight, in_dims[2], decay, in_dims[3], batch_sizes, in_dims[4])
        output, h_n, saved = Recurrence.apply(  # type: ignore[no-untyped-call]
            networks.sequence(pre, in_dims[0]),
            networks.state(h0, in_dims[1]),
            networks.weight,
            networks.decay,
            batch_sizes,
            *others,
        )
        results = [networks.split_sequence(output), networks.split_state(h_n)]
        results.append((saved, None) if saved.numel() == 0 else networks.split_sequence(saved))  # type: ignore[arg-type]
        return tuple(zip(*results, strict=True))


class RecurrenceBackward(torch.autograd.Function):
    """The backward operator for torch.func's transforms and for forward mode."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        """Call the operator."""
        return _ops.leaky_recurrence_backward(*inputs)

    setup_context = staticmethod(_setup_backward_context)
    backward = staticmethod(_second_backward)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Through the differentiable twin."""
        with forward_mode_stays_on(True):
            return _Differentiated((*primals_of(ctx), *ctx.others)).jvp(tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """All examples in one walk; each has its own gradient of the weights."""
        grad_output, grad_h_n, output, saved, h0, weight, decay, batch_sizes, *others, wanted = inputs
        share = not (wanted[2] or wanted[3])
        networks = Networks(
            info.batch_size,
            weight,
            in_dims[5],
            decay,
            in_dims[6],
            batch_sizes,
            in_dims[7],
            share_weights=share,
        )
        kept: Any = saved if saved.numel() == 0 else networks.sequence(saved, in_dims[3])
        d_pre, d_h0, d_weight, d_decay = RecurrenceBackward.apply(  # type: ignore[no-untyped-call]
            networks.sequence(grad_output, in_dims[0]),
            networks.state(grad_h_n, in_dims[1]),
            networks.sequence(output, in_dims[2]),
            kept.contiguous(),
            networks.state(h0, in_dims[4]),
            networks.weight,
            networks.decay,
            batch_sizes,
            *others,
            wanted,
        )
        results: list[Any] = [networks.split_sequence(d_pre)]
        results.append(networks.split_state(d_h0) if wanted[1] else (d_h0, None))
        results.append(networks.split_weight(d_weight) if wanted[2] else (d_weight, None))
        results.append(networks.split_decay(d_decay) if wanted[3] else (d_decay, None))
        return tuple(zip(*results, strict=True))
