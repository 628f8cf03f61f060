"""The activity penalty: a term of the loss that keeps states or firing rates small.

    a_t = h_t, or f(h_t)        penalty = mean over steps, rows and units of  l1 |a| + l2 a^2

Written as torch operations over the whole output, each term would allocate another tensor of the output's
size. Here, forward and backward process the output in pieces that stay in a cache. So only the output is
saved for backward, and backward allocates only the output's gradient.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnkernels._autograd.modes import in_forward_mode, in_torch_func
from rnnkernels._autograd.vmap import at_least_1d
from rnnkernels._checks import check_choice, check_floating, check_tensor, unboxed
from rnnkernels._ops.nonlinearities import NONLINEARITIES

__all__ = ["activity_penalty"]

# Most values in a piece: it and its intermediate tensors stay in a core's L2 cache.
PIECE = 1 << 15


def activity_penalty(
    output: Tensor | PackedSequence, *, l1: float = 0.0, l2: float = 0.0, nonlinearity: str | None = None
) -> Tensor:
    r"""Return a penalty on the activity of a network, to be added to its loss.

    .. math::
        \text{penalty} = \frac{1}{n} \sum_{n} \lambda_1 |a| + \lambda_2 a^2, \qquad a = h \text{ or } f(h)

    The sum goes over all ``n`` values of ``output``. As a mean over steps, rows and units, the penalty has
    the same scale for any T, B and H. Padding of a packed sequence does not count. The gradient of ``|a|`` at
    0 is 0.

    In the rate form, the states are the rates. In the current form, the rates are ``f`` of the states: pass
    ``nonlinearity=rnn.nonlinearity``.

        output, h_n = rnn(x)
        loss = task(output) + rnnkernels.activity_penalty(output, l2=1e-3)

    The only tensor of the output's size that is allocated is its gradient. The penalty is differentiable any
    number of times, in forward mode, under ``torch.func`` and in ``torch.compile``; in the last three it is
    computed by plain torch operations.

    Args:
        output: Output of a layer, in any layout: ``[T, B, D H]``, ``[B, T, D H]``, ``[T, D H]`` or a
            ``PackedSequence``. float32, float64, bfloat16 or float16.
        l1: :math:`\lambda_1`, weight of ``|a|``, at least 0.
        l2: :math:`\lambda_2`, weight of ``a^2``, at least 0.
        nonlinearity: ``f``, to penalize the rates of the current form: ``"relu"``, ``"tanh"``,
            ``"sigmoid"`` or ``"softplus"``. None penalizes the output itself.

    Returns:
        A scalar, float64 for float64 outputs, otherwise float32; 0 if the output is empty.

    Raises:
        ValueError, TypeError: An argument has the wrong type or is out of range; the message names it.

    Source: Song, Yang and Wang 2016 (doi 10.1371/journal.pcbi.1004792), whose code uses the current form and
    penalizes the mean of the squared rates; with ``l1``, arXiv 1212.0901.
    """
    if isinstance(output, PackedSequence):
        output = output.data
    check_tensor("output", output)
    check_floating("output", output)
    l1, l2 = unboxed(l1), unboxed(l2)
    for name, weight in (("l1", l1), ("l2", l2)):
        if not isinstance(weight, numbers.Real) or isinstance(weight, bool):
            raise TypeError(f"{name} must be a number, got {type(weight).__name__}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {weight}")
    if nonlinearity is not None:
        check_choice("nonlinearity", nonlinearity, list(NONLINEARITIES))
    output = at_least_1d(output)
    cost = _Cost(float(l1), float(l2), nonlinearity)
    plain = torch.compiler.is_compiling() or in_torch_func() or in_forward_mode((output,))
    total: Tensor = cost(output) if plain else _Summed.apply(output, cost)  # type: ignore[no-untyped-call]
    return (total / max(output.numel(), 1)).reshape(())


class _Cost(NamedTuple):
    """The sum of the penalty over a tensor, as differentiable torch operations.

    The sum has as many dimensions as the tensor, each of size 1, because vmap over no examples cannot
    multiply a scalar by a number.
    """

    l1: float
    l2: float
    nonlinearity: str | None

    def __call__(self, h: Tensor) -> Tensor:
        a = h.to(torch.promote_types(h.dtype, torch.float32))
        if self.nonlinearity is not None:
            a = NONLINEARITIES[self.nonlinearity].value(a)
        every = tuple(range(a.dim()))
        if not self.l1:
            return self.l2 * a.square().sum(every, keepdim=True)
        absolute = self.l1 * a.abs().sum(every, keepdim=True)
        return absolute + self.l2 * a.square().sum(every, keepdim=True) if self.l2 else absolute


class _Summed(torch.autograd.Function):
    """The sum of a cost, computed piece by piece."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, cost: _Cost) -> Tensor:
        """Save only the output; add the pieces in float64."""
        ctx.save_for_backward(output)
        ctx.cost = cost
        dtype = torch.float32 if output.device.type == "mps" else torch.float64  # which mps does not have
        total = torch.zeros([1] * output.dim(), dtype=dtype, device=output.device)
        for (piece,) in _pieces(output):
            total += cost(piece)
        return total.to(torch.promote_types(output.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient piece by piece, or at once if it is to be differentiated again."""
        (output,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _gradient(ctx.cost, output, grad, create_graph=True), None
        result = torch.empty_like(output)
        for piece, target in _pieces(output, result):
            with torch.enable_grad():
                target.copy_(_gradient(ctx.cost, piece.detach().requires_grad_(), grad, create_graph=False))
        return result, None


def _gradient(cost: _Cost, h: Tensor, grad: Tensor, *, create_graph: bool) -> Tensor:
    return torch.autograd.grad(cost(h), h, grad, create_graph=create_graph)[0]


def _pieces(*alike: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views that partition tensors of one shape in the same way.

    The dimension in which the first tensor's stride is largest is halved, recursively.
    """
    first = alike[0]
    if first.numel() <= PIECE:
        yield alike
        return
    dim = max((d for d in range(first.dim()) if first.shape[d] > 1), key=first.stride)
    half = first.shape[dim] // 2
    yield from _pieces(*(x.narrow(dim, 0, half) for x in alike))
    yield from _pieces(*(x.narrow(dim, half, x.shape[dim] - half) for x in alike))
