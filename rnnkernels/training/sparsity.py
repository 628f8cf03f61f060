"""The fractions of active units and of nonzero gradient entries.

Sparse gradients are one of the techniques of arXiv 1212.0901: rectified units with a penalty on their outputs
(:func:`rnnkernels.activity_penalty` with ``l1``) are off for many inputs, and then pass no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkernels._checks import check_real, check_tensor

__all__ = ["Sparsity", "sparsity"]


class Sparsity(NamedTuple):
    """Fractions from 0 to 1; NaN if there are no values."""

    active: float  # the fraction of the output's values that are greater than zero
    gradient: float  # the fraction of the gradients' entries that are not zero


def sparsity(output: Tensor | PackedSequence, gradients: Tensor | Iterable[Tensor] = ()) -> Sparsity:
    """Return the fraction of active units in an output, and of nonzero entries in gradients.

        output, h_n = rnn(x, drive=drive)  # drive = torch.zeros(T, B, H, requires_grad=True)
        loss(output).backward()
        print(rnnkernels.sparsity(output, [drive.grad, *rnn.parameters()]))

    The gradient of ``drive`` is the gradient of each unit's total input at each step. It is zero where a
    rectified unit is off.

    Args:
        output: Output of a layer, in any layout; padding of a ``PackedSequence`` does not count. In the rate
            form with a decay, a unit is active as long as its past keeps its state above zero.
        gradients: One tensor or several, counted together. For an ``nn.Parameter``, its ``grad`` is counted;
            a parameter without one is left out.

    Returns:
        ``active``, the fraction of values greater than zero in ``output``, and ``gradient``, the fraction of
        nonzero entries in ``gradients``; NaN where there are no values.

    Raises:
        TypeError: An argument is not a Tensor.

    Source: Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901).
    """
    if isinstance(output, PackedSequence):
        output = output.data
    check_tensor("output", output)
    check_real("output", output)
    several = [gradients] if isinstance(gradients, Tensor) else list(gradients)
    for gradient in several:
        check_tensor("each of the gradients", gradient)
    entries = [x.grad if isinstance(x, nn.Parameter) else x for x in several]
    given = [x.detach() for x in entries if x is not None]
    active = _fraction(int((output.detach() > 0).sum()), output.numel())
    nonzero = sum(int(torch.count_nonzero(x)) for x in given)
    return Sparsity(active, _fraction(nonzero, sum(x.numel() for x in given)))


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
