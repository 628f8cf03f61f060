"""The mathematics of an RBM as torch operations; each row has its own biases.

    F(v) = -b.v - sum_j softplus(c_j + (W v)_j)      p(v) = exp(-F(v)) / Z      Z = sum over v of exp(-F(v))

``v`` and ``b`` are ``[..., D]``, ``c`` is ``[..., H]``, ``W`` is ``[H, D]``; all have one dtype, float32 or
float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rnnkernels.outputs._base import MAX_VALUES, bernoulli


def free_energy(v: Tensor, b: Tensor, c: Tensor, weight: Tensor) -> Tensor:
    """Return the free energy ``F(v)``, ``[...]``."""
    return -(b * v).sum(-1) - softplus(c + v @ weight.mT).sum(-1)


@torch.no_grad()
def gibbs(
    v: Tensor, b: Tensor, c: Tensor, weight: Tensor, steps: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Run a Gibbs chain: draw h given v, then v given h. Return the last v and its logits."""
    logits = b
    for _ in range(steps):
        h = bernoulli(c + v @ weight.mT, generator)
        logits = b + h @ weight
        v = bernoulli(logits, generator)
    return v, logits


def log_partition(b: Tensor, c: Tensor, weight: Tensor) -> Tensor:
    """Return ``log Z``, ``[...]``, as a sum over all states of the smaller side."""
    hidden, visible = weight.shape
    return _sum_over(c, b, weight) if hidden <= visible else _sum_over(b, c, weight.mT)


def _sum_over(inner: Tensor, outer: Tensor, weight: Tensor) -> Tensor:
    """Return ``log sum_x exp(inner.x) prod_i (1 + exp(outer_i + (x W)_i))``, summed in blocks of x."""
    units, others = weight.shape
    rows = math.prod(inner.shape[:-1])
    block = max(1, MAX_VALUES // max(rows * others, 1))
    bits = torch.arange(units, device=weight.device)
    parts = []
    for begin in range(0, 1 << units, block):
        indices = torch.arange(begin, min(begin + block, 1 << units), device=weight.device)
        x = ((indices.unsqueeze(-1) >> bits) & 1).to(weight.dtype)
        exponents = inner @ x.mT + softplus(outer.unsqueeze(-2) + x @ weight).sum(-1)
        parts.append(torch.logsumexp(exponents, -1))
    return torch.logsumexp(torch.stack(parts), 0)
