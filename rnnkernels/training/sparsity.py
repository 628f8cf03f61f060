"""How much of a network is silent, and how much of a gradient is zero.

Sparse gradients are one of the techniques of arXiv 1212.0901: rectified units, with a penalty on their
outputs (:func:`rnnkernels.activity_penalty` with ``l1``), are off for many inputs and then pass no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkernels._checks import check_tensor

__all__ = ["Sparsity", "sparsity"]


class Sparsity(NamedTuple):
    """Shares, from 0 to 1; NaN of nothing."""

    active: float  # values of the output that are greater than zero
    gradient: float  # entries of the gradients that are not zero


def sparsity(output: Tensor | PackedSequence, gradients: Tensor | Iterable[Tensor] = ()) -> Sparsity:
    """How sparse a layer's output and some gradients are.

        output, h_n = rnn(x, drive=drive)  # drive = torch.zeros(T, B, H, requires_grad=True)
        loss(output).backward()
        print(rnnkernels.sparsity(output, [drive.grad, *rnn.parameters()]))

    The gradient of the ``drive`` is that of each unit's sum of inputs at each step, zero where a rectifier is
    off.

    Args:
        output: What a layer returned, in any layout; of a ``PackedSequence`` every real step. In the rate
            form with a decay a unit is active as long as anything is left of its past.
        gradients: A tensor, or several, counted together. A parameter stands for its ``grad``; without one it
            is left out.

    Returns:
        ``active`` and ``gradient``: the share of values greater than zero in ``output``, and of entries that
        are not zero in ``gradients``. NaN if there are none.

    Raises:
        TypeError: An argument is no Tensor.
    """
    if isinstance(output, PackedSequence):
        output = output.data
    check_tensor("output", output)
    several = [gradients] if isinstance(gradients, Tensor) else list(gradients)
    for gradient in several:
        check_tensor("each of the gradients", gradient)
    entries = [x.grad if isinstance(x, nn.Parameter) else x for x in several]
    given = [x.detach() for x in entries if x is not None]
    active = _share(int((output.detach() > 0).sum()), output.numel())
    nonzero = sum(int(torch.count_nonzero(x)) for x in given)
    return Sparsity(active, _share(nonzero, sum(x.numel() for x in given)))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
