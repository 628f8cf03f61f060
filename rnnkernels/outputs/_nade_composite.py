"""NADE as a loop of torch operations over the D units (Larochelle and Murray 2011).

    a_1 = c            l_i = b_i + V_i . sigmoid(a_i)            a_{i+1} = a_i + v_i W_i
    p(v_i = 1 | v_<i) = sigmoid(l_i)                             log p(v) = sum_i v_i l_i - softplus(l_i)

Each unit takes three operations over all N rows. torch differentiates the loop in any mode, any number of
times, on any device. Half precision is a storage format only: arithmetic and results are float32. The
functions do not check their arguments; the callers do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rnnkernels._devices import without_autocast
from rnnkernels.outputs._base import as_rows, wide_dtype


def nade(
    v: Tensor, visible_bias: Tensor, hidden_bias: Tensor, encoder: Tensor, decoder: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probabilities and the logits of given rows.

    Args:
        v: Zeros and ones, ``[..., D]``.
        visible_bias: ``b``, ``[..., D]``.
        hidden_bias: ``c``, ``[..., H]``.
        encoder: ``W``, ``[D, H]``.
        decoder: ``V``, ``[D, H]``.

    Returns:
        ``log p(v)``, ``[...]``; the logits ``l``, ``[..., D]``; and ``a_{D+1}``, ``[..., H]``.
    """
    with without_autocast(visible_bias):
        b, a, weights = _widened(visible_bias, hidden_bias, encoder, decoder)
        rows = v.detach().to(b.dtype).reshape(b.shape)
        products = []
        for v_i, w_i, d_i in zip(rows.unbind(-1), *weights, strict=True):
            products.append(torch.sigmoid(a) @ d_i)
            a = torch.addr(a, v_i, w_i)
        logits = b + torch.stack(products, -1)
        log_prob = -functional.binary_cross_entropy_with_logits(logits, rows, reduction="none").sum(-1)
    lead = visible_bias.shape[:-1]
    return log_prob.reshape(lead), logits.reshape(visible_bias.shape), a.reshape(*lead, a.shape[-1])


@torch.no_grad()
def nade_sample(
    uniform: Tensor, visible_bias: Tensor, hidden_bias: Tensor, encoder: Tensor, decoder: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw rows, unit by unit: ``v_i`` is 1 where ``uniform_i < sigmoid(l_i)``.

    Args:
        uniform: Uniform random values in ``[0, 1)``, ``[..., D]``.
        visible_bias: ``b``, ``[..., D]``.
        hidden_bias: ``c``, ``[..., H]``.
        encoder: ``W``, ``[D, H]``.
        decoder: ``V``, ``[D, H]``.

    Returns:
        ``v``, uint8, ``[..., D]``; and the logits ``l`` that it was drawn from, ``[..., D]``.
    """
    with without_autocast(visible_bias):
        b, a, weights = _widened(visible_bias, hidden_bias, encoder, decoder)
        rows, logits = [], []
        uniforms = uniform.to(b.dtype).reshape(b.shape).unbind(-1)
        for u_i, b_i, w_i, d_i in zip(uniforms, b.unbind(-1), *weights, strict=True):
            l_i = torch.addmv(b_i, torch.sigmoid(a), d_i)
            v_i = u_i < torch.sigmoid(l_i)
            a = torch.addr(a, v_i.to(a.dtype), w_i)
            rows.append(v_i)
            logits.append(l_i)
    shape = visible_bias.shape
    return torch.stack(rows, -1).to(torch.uint8).reshape(shape), torch.stack(logits, -1).reshape(shape)


def _widened(
    visible_bias: Tensor, hidden_bias: Tensor, encoder: Tensor, decoder: Tensor
) -> tuple[Tensor, Tensor, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Return the biases as matrices of rows, and the weights split into units, in float32 or float64."""
    dtype = wide_dtype(visible_bias)
    b, c = (as_rows(x.to(dtype)) for x in (visible_bias, hidden_bias))
    return b, c, (encoder.to(dtype).unbind(), decoder.to(dtype).unbind())
