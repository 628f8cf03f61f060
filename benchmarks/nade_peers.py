"""A NADE's log-likelihood in plain PyTorch, as fast as it was found to go: what rnnkernels is compared with.

    l_i = b_i + V_i . sigmoid(c + sum_{j<i} v_j W_j)         log p(v) = sum_i v_i l_i - softplus(l_i)

Each takes v and the four arguments of rnnkernels.functional.nade_log_prob and returns log p(v), [N].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding


def _log_prob(logits: Tensor, v: Tensor) -> Tensor:
    return -binary_cross_entropy_with_logits(logits, v.to(logits.dtype), reduction="none").sum(-1)


def all_at_once(v: Tensor, b: Tensor, c: Tensor, encoder: Tensor, decoder: Tensor) -> Tensor:
    """Every unit's hidden units at once, [N, D, H]: sums over the ones before as one product."""
    before = v.to(c.dtype).unsqueeze(1) * torch.ones_like(encoder @ encoder.t()).tril(-1)
    hidden = torch.sigmoid(c.unsqueeze(1) + before @ encoder)
    return _log_prob(b + (hidden * decoder).sum(-1), v)


def segments(v: Tensor, b: Tensor, c: Tensor, encoder: Tensor, decoder: Tensor) -> Tensor:
    """Hidden units change only behind a one, so there are S = N + ones of them, and all else is two products.

    A row's states stand one after another. A binary matrix, [S, D], says which ones a state has seen; of
    the product of all states with the decoder, [S, D], each unit takes the one of its own state.
    """
    one = v.to(torch.bool)
    place = one.cumsum(1, dtype=torch.int32)
    counts = place[:, -1] + 1
    row = torch.arange(len(v), device=v.device).repeat_interleave(counts)
    first = counts.cumsum(0) - counts  # state of each row
    begin = torch.zeros(len(row), 1, dtype=torch.int64, device=v.device)  # unit of each state
    begin[torch.arange(len(row), device=v.device) != first[row]] = one.nonzero()[:, 1:] + 1
    seen = one[row] & (torch.arange(v.shape[1], device=v.device) < begin)
    hidden = torch.sigmoid(torch.addmm(embedding(row, c), seen.to(c.dtype), encoder))
    own = first.unsqueeze(1) + place - one.to(torch.int32)
    return _log_prob(b + (hidden @ decoder.t()).gather(0, own), v)


class _Loop(torch.autograd.Function):
    """The loop with its backward by hand: nothing is kept for a unit, and all happens in place."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, b: Tensor, c: Tensor, encoder: Tensor, decoder: Tensor) -> Tensor:
        ones = v.to(c.dtype).t().contiguous()
        a, hidden, logits = c.clone(), torch.empty_like(c), b.t().clone(memory_format=torch.contiguous_format)
        for v_i, l_i, w_i, d_i in zip(ones, logits, encoder, decoder, strict=True):
            torch.sigmoid(a, out=hidden)
            l_i.addmv_(hidden, d_i)
            a.addr_(v_i, w_i)
        ctx.save_for_backward(ones, logits, a, encoder, decoder)
        return _log_prob(logits.t(), v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ones, logits, a, encoder, decoder = ctx.saved_tensors
        d_logits = grad * (ones - torch.sigmoid(logits))
        a, d_a = a.clone(), torch.zeros_like(a)
        hidden, slope, outer = torch.empty_like(a), torch.empty_like(a), torch.empty_like(a)
        d_encoder, d_decoder = torch.empty_like(encoder), torch.empty_like(decoder)
        for i in range(len(ones) - 1, -1, -1):
            a.addr_(ones[i], encoder[i], alpha=-1)
            torch.sigmoid(a, out=hidden)
            torch.mv(d_a.t(), ones[i], out=d_encoder[i])
            torch.mv(hidden.t(), d_logits[i], out=d_decoder[i])
            torch.addcmul(hidden, hidden, hidden, value=-1, out=slope)
            torch.outer(d_logits[i], decoder[i], out=outer)
            d_a.addcmul_(slope, outer)
        return None, d_logits.t(), d_a, d_encoder, d_decoder


def loop_by_hand(v: Tensor, b: Tensor, c: Tensor, encoder: Tensor, decoder: Tensor) -> Tensor:
    """The loop over the units with a backward of its own, which finds the hidden units again."""
    result: Tensor = _Loop.apply(v, b, c, encoder, decoder)
    return result
