"""Helpers for the tests of NADE: random arguments, and the results of the plain loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnkernels import functional
from rnnkernels.outputs import _nade_composite

NAMES = ("visible_bias", "hidden_bias", "encoder", "decoder")
# (..., D, H): no rows, one unit, more than a block, many rows, several leading sizes.
SHAPES = [(1, 1, 1), (0, 3, 4), (5, 1, 3), (7, 9, 1), (3, 8, 16), (33, 88, 150), (2, 130, 67), (300, 5, 33),
          (3, 4), (2, 3, 5, 6), (2, 0, 5, 6)]  # fmt: skip
# Difference from the loop in float64, relative to the largest magnitude.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-13}


def arguments(
    *shape: int, seed: int = 0, ones: float = 0.3, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, list[Tensor]]:
    """Return v and the four other arguments for shape (..., D, H); `ones` is the fraction of ones in v."""
    *lead, visible, hidden = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).to(device)

    v = torch.rand(*lead, visible, generator=generator) < ones
    tensors = [
        normal(*lead, visible),
        normal(*lead, hidden),
        normal(visible, hidden),
        normal(visible, hidden),
    ]
    tensors[3] /= hidden**0.5
    return v.to(device), tensors


def by_kernels(v: Tensor, tensors: Sequence[Tensor], grad: Tensor | None = None) -> list[Tensor]:
    """Return log p, and with `grad` the gradients of the four arguments."""
    return _with_gradients(functional.nade_log_prob, v, tensors, grad)


def by_the_loop(v: Tensor, tensors: Sequence[Tensor], grad: Tensor | None = None) -> list[Tensor]:
    """As `by_kernels`, by the loop of torch operations in float64 on the CPU."""
    wide = [x.detach().cpu().double() for x in tensors]
    grad = None if grad is None else grad.detach().cpu().double()
    return _with_gradients(lambda *x: _nade_composite.nade(*x)[0], v.detach().cpu(), wide, grad)


def _with_gradients(function, v, tensors, grad):
    leaves = [x.detach().requires_grad_() for x in tensors]
    log_prob = function(v, *leaves)
    if grad is None:
        return [log_prob.detach()]
    return [log_prob.detach(), *torch.autograd.grad(log_prob, leaves, grad, materialize_grads=True)]
