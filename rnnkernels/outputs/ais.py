"""Annealed importance sampling: an estimate of an RBM's partition function Z and of its log-probabilities.

A Gibbs chain goes from a base distribution, whose partition function Z_0 is known, to the RBM through T
intermediate distributions:

    E_beta(v, h) = -((1-beta) b_0 + beta b).v - beta (c.h + h.W v)          beta = 0, 1/T, ..., 1
    log w = sum_k log p*_k(v_k) - log p*_{k-1}(v_k)                         Z = Z_0 E[w]

``p*`` is a distribution without its normalization, with h summed out; ``v_k`` is drawn by one Gibbs step at
``beta_{k-1}``. At beta = 0 all units are independent, and the logits of the visible ones are
``b_0 = (b + sum_j W_j / 2) / 2``: half of their mean input when each hidden unit is on with probability 1/2.
The factor of one half makes the chains start spread out, and not concentrated in one mode. docs/outputs.md
lists the base distributions that were compared.

(Neal 2001, "Annealed importance sampling"; Salakhutdinov and Murray 2008, "On the quantitative analysis of
deep belief networks".)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rnnkernels._checks import check_floating, check_tensor
from rnnkernels.outputs._base import MAX_VALUES, bernoulli, wide

__all__ = ["MeanInterval", "mean_with_interval"]

# Most values in an intermediate tensor on the CPU, so that it stays in a core's L2 cache.
MAX_CPU_VALUES = 1 << 16


@torch.no_grad()
def estimate_log_partition(
    b: Tensor, c: Tensor, weight: Tensor, chains: int, temperatures: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Estimate ``log Z`` and its standard error, both ``[N]``; ``b [N, D]``, ``c [N, H]``, ``W [H, D]``."""
    values = MAX_CPU_VALUES if b.device.type == "cpu" else MAX_VALUES
    rows = max(1, values // (chains * max(weight.shape)))
    parts = [
        _estimate(*pair, weight, chains, temperatures, generator)
        for pair in zip(torch.split(b, rows), torch.split(c, rows), strict=True)
    ]
    estimates, errors = zip(*parts, strict=True)
    return torch.cat(estimates), torch.cat(errors)


def _estimate(
    b: Tensor, c: Tensor, weight: Tensor, chains: int, temperatures: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """As :func:`estimate_log_partition`, all rows at once."""
    base = (b + weight.sum(0) / 2) / 2
    rise = b - base  # of the visible units' logits between beta = 0 and 1
    log_z0 = softplus(base).sum(-1) + weight.shape[0] * math.log(2)
    v = bernoulli(base.expand(chains, *base.shape), generator)
    log_w = torch.zeros_like(v[..., 0])
    for k in range(1, temperatures + 1):
        before, beta = (k - 1) / temperatures, k / temperatures
        field = c + v @ weight.mT
        hidden = softplus(beta * field) - softplus(before * field)
        log_w += hidden.sum(-1) + (beta - before) * (rise * v).sum(-1)
        if k < temperatures:
            h = bernoulli(beta * field, generator)
            v = bernoulli(torch.add(base, rise + h @ weight, alpha=beta), generator)
    log_mean = torch.logsumexp(log_w, 0) - math.log(chains)
    variance = (torch.exp(log_w - log_mean) - 1).square().sum(0) / (chains - 1)  # of w / its mean
    return log_z0 + log_mean, torch.sqrt(variance / chains)


class MeanInterval(NamedTuple):
    """The mean of a set's log-probabilities and its 95 % confidence interval; three scalar tensors."""

    mean: Tensor
    low: Tensor
    high: Tensor


def mean_with_interval(log_prob: Tensor, standard_error: Tensor) -> MeanInterval:
    r"""Return the mean of estimated log-probabilities and its 95 % confidence interval.

    .. math::
        \text{mean} = \frac{1}{N} \sum_n \Big(\ell_n - \frac{s_n^2}{2}\Big), \qquad
        \text{mean} \pm \frac{1.96}{N} \sqrt{\sum_n s_n^2}

    Rows are estimated independently, so their errors average out, but their bias does not. To second order,
    the logarithm of a mean is too low by ``s^2 / 2`` in expectation, and so ``l`` is too high by as much; the
    mean is corrected for it. This matters with many rows, because the interval shrinks as ``1 / sqrt(N)`` and
    would no longer contain the true value.

    The interval covers the error of the estimation for these rows only. It does not cover how far their mean
    is from that of other rows of the same kind, which usually is the larger uncertainty. It is valid if every
    ``s`` is small (0.3 or less); otherwise use more temperatures first, and then more chains.

    Example::

        log_prob, error = rbm.estimate_log_prob(frames, states)
        mean, low, high = rnnkernels.mean_with_interval(log_prob, error)

    Args:
        log_prob: ``l``, the result of :meth:`rnnkernels.RBM.estimate_log_prob`, of any shape.
        standard_error: ``s``, the second result, of the same shape.

    Returns:
        ``mean``, ``low`` and ``high``: scalars, float64 for float64 arguments, otherwise float32.

    Raises:
        ValueError, TypeError: An argument has the wrong shape, dtype or type, or there is no row.
    """
    for name, x in (("log_prob", log_prob), ("standard_error", standard_error)):
        check_tensor(name, x)
        check_floating(name, x)
    if standard_error.shape != log_prob.shape:
        raise ValueError(
            f"standard_error must be shaped like log_prob, {list(log_prob.shape)}, "
            f"got {list(standard_error.shape)}"
        )
    if log_prob.numel() == 0:
        raise ValueError("log_prob must have at least one row, got none")
    variance = wide(standard_error).square().flatten()
    mean = (wide(log_prob).flatten() - variance / 2).mean()
    # In one dimension, because vmap over no examples cannot multiply a scalar by a number.
    half = (1.96 * variance.sum(0, keepdim=True).sqrt() / len(variance)).squeeze(0)
    return MeanInterval(mean, mean - half, mean + half)
