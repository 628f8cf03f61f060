"""NADE as a loop of torch's operations over the D units (Larochelle and Murray 2011).

    a_1 = c            l_i = b_i + V_i . sigmoid(a_i)            a_{i+1} = a_i + v_i W_i
    p(v_i = 1 | v_<i) = sigmoid(l_i)                             log p(v) = sum_i v_i l_i - softplus(l_i)

torch differentiates it, in any mode and any number of times, on any device. Three operations a unit, each
over all N rows. Half precision is storage: everything is worked out in float32 at least, results too.
Arguments are taken as they are; whoever calls checks them.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional

from rnnkernels._checks import autocasts


def nade(
    v: Tensor, visible_bias: Tensor, hidden_bias: Tensor, encoder: Tensor, decoder: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a NADE makes of rows that are given.

    Args:
        v: Zeros and ones of any dtype, ``[..., D]``.
        visible_bias: ``b``, ``[..., D]``.
        hidden_bias: ``c``, ``[..., H]``.
        encoder: ``W``, ``[D, H]``.
        decoder: ``V``, ``[D, H]``.

    Returns:
        ``log p(v)``, ``[...]``; the logits ``l``, ``[..., D]``; and ``a_{D+1}``, ``[..., H]``.
    """
    with _without_autocast(visible_bias):
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
    """Draw a row, unit by unit: ``v_i`` is 1 where ``uniform_i < sigmoid(l_i)``.

    Args:
        uniform: Numbers in ``[0, 1)``, ``[..., D]``.
        visible_bias: ``b``, ``[..., D]``.
        hidden_bias: ``c``, ``[..., H]``.
        encoder: ``W``, ``[D, H]``.
        decoder: ``V``, ``[D, H]``.

    Returns:
        ``v``, uint8, ``[..., D]``; and the logits ``l`` along the way, ``[..., D]``.
    """
    with _without_autocast(visible_bias):
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
    """Both biases as rows of one matrix each, the weights cut into units; in float32 or float64."""
    wide = torch.promote_types(visible_bias.dtype, torch.float32)
    b, c = (x.to(wide).reshape(-1, x.shape[-1]) for x in (visible_bias, hidden_bias))
    return b, c, (encoder.to(wide).unbind(), decoder.to(wide).unbind())


def _without_autocast(like: Tensor) -> contextlib.AbstractContextManager[object]:
    on = autocasts(like.device)
    return torch.autocast(like.device.type, enabled=False) if on else contextlib.nullcontext()
