"""The leaky recurrence as a loop in plain PyTorch: a readable equivalent of rnnkernels.LeakyRNN.

    p_t = W_ih x_t + b_ih + b_hh (+ drive_t)
    form "rate":     h_t = d h_{t-1} + (1-d) f(p_t + W_hh h_{t-1})
    form "current":  h_t = d h_{t-1} + (1-d) (p_t + W_hh f(h_{t-1}))

The loop follows the equation step by step. It is not the fastest loop: projecting the inputs of all steps
at once beforehand saves about a quarter of the time, and the benchmarks compare with a loop that does so.
With d = 0 the form "rate" is torch.nn.RNN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class EagerLeakyRNN(nn.Module):
    """One layer of leaky units; parameters and their initial values as in torch.nn.RNN."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nonlinearity: str = "relu",
        bias: bool = True,
        *,
        decay: float = 0.0,
        form: str = "rate",
    ) -> None:
        super().__init__()
        if nonlinearity not in ("relu", "tanh"):
            raise ValueError(f"nonlinearity must be 'relu' or 'tanh', got {nonlinearity!r}")
        if form not in ("rate", "current"):
            raise ValueError(f"form must be 'rate' or 'current', got {form!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.hidden_size, self.decay, self.form = hidden_size, decay, form
        self.activation = torch.relu if nonlinearity == "relu" else torch.tanh
        self.weight_ih_l0 = nn.Parameter(torch.empty(hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(hidden_size)) if bias else None
        self.bias_hh_l0 = nn.Parameter(torch.empty(hidden_size)) if bias else None
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))

    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, drive: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map input [T, B, I], hx [1, B, H], drive [T, B, H] to states [T, B, H] and last [1, B, H]."""
        linear = nn.functional.linear
        h = input.new_zeros(input.shape[1], self.hidden_size) if hx is None else hx[0]
        d, states = self.decay, []
        for t, x in enumerate(input):
            p = linear(x, self.weight_ih_l0, self.bias_ih_l0)
            if drive is not None:
                p = p + drive[t]
            if self.form == "rate":
                z = p + linear(h, self.weight_hh_l0, self.bias_hh_l0)
                h = d * h + (1 - d) * self.activation(z)
            else:
                r = self.activation(h)
                h = d * h + (1 - d) * (p + linear(r, self.weight_hh_l0, self.bias_hh_l0))
            states.append(h)
        return torch.stack(states), h.unsqueeze(0)
