"""Helpers for the tests of the layer and the cell: pairs of equal networks, and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from helpers import Problem
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, unpack_sequence

from rnnkernels import LeakyRNN

# Tolerance of a comparison with torch.nn, relative to the largest magnitude of each tensor.
NEAR_RNN = {torch.float32: 1e-6, torch.float64: 1e-12}

DECAYS = {"number": 0.3, "unit": [0.0, 0.1, 0.2, 0.3, 0.9]}

UNITS = torch.linspace(0, 0.9, 5)
# The argument for two bidirectional layers, and the decay of each of the four scans.
GIVEN_DECAYS = {
    "number": (0.5, [0.5] * 4),
    "scalar tensor": (torch.tensor(0.5), [0.5] * 4),
    "units": (UNITS, [UNITS] * 4),
    "numbers": ([0.25, 0.5], [0.25, 0.25, 0.5, 0.5]),
    "tuple of numbers": ((0.25, 0.5), [0.25, 0.25, 0.5, 0.5]),
    "number and units": ([0.25, UNITS], [0.25, 0.25, UNITS, UNITS]),
    "everything": (torch.arange(20.0).view(4, 5) / 20, list(torch.arange(20.0).view(4, 5) / 20)),
}


def pair(*args: Any, nonlinearity: str = "relu", **kwargs: Any) -> tuple[LeakyRNN, nn.RNN]:
    """Return a layer without decay and an nn.RNN with the same parameters."""
    layer = LeakyRNN(*args, nonlinearity=nonlinearity, **kwargs)
    plain = nn.RNN(*args, nonlinearity=nonlinearity, **kwargs)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


def problem_of(layer: Any, input: Tensor, hx: Tensor | None) -> Problem:
    """Return the recurrence that a batched, time-first call computes."""
    with torch.no_grad():
        bias = layer.bias_ih_l0 + layer.bias_hh_l0 if layer.bias else None
        pre = nn.functional.linear(input, layer.weight_ih_l0, bias)
        h0 = None if hx is None else hx[0]
        return Problem(pre, h0, layer.weight_hh_l0.detach(), layer.decay, layer.nonlinearity, layer.form)


def trained(module: nn.Module, inputs: list[Tensor], grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the outputs, and the gradients of the inputs and of all parameters."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = module(*leaves)
    named = dict(module.named_parameters())
    found = torch.autograd.grad(outputs, [*leaves, *named.values()], grads)
    names = ["output", "h_n", "input", "hx"][: 2 + len(leaves)] + list(named)
    return dict(zip(names, [x.detach() for x in outputs] + list(found), strict=True))


def composed(
    layer: LeakyRNN, input: Tensor, hx: Tensor | None = None, drive: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run each layer and direction by the reference, time first, without dropout."""
    directions = 2 if layer.bidirectional else 1
    finals = []
    decay = torch.as_tensor(layer.decay, dtype=torch.float64).detach()
    sequence, outputs = input, [input]
    for k, (weight_ih, weight_hh, *biases) in enumerate(layer.all_weights):
        if k % directions == 0:
            sequence, outputs = torch.cat(outputs, -1), []
        pre = nn.functional.linear(
            sequence, weight_ih, torch.stack(biases).sum(0) if biases else None
        ).detach()
        if drive is not None and k < directions:
            pre = pre + drive.detach().chunk(directions, -1)[k]
        row = k // directions if isinstance(layer.decay, tuple) else k
        own = decay[row] if isinstance(layer.decay, tuple) or decay.dim() == 2 else decay
        problem = Problem(
            pre, None if hx is None else hx[k], weight_hh, own, layer.nonlinearity, layer.form,
            reverse=k % directions == 1,
        )  # fmt: skip
        output, h_n = problem.expected()
        outputs.append(output)
        finals.append(h_n)
    return torch.cat(outputs, -1), torch.stack(finals)


def unpacked(packed: PackedSequence) -> list[Tensor]:
    """Return the sequences as a list."""
    return unpack_sequence(packed)


def every_decay(layer: LeakyRNN) -> torch.Tensor:
    """The decay of each unit of every layer and direction, as the layer uses it."""
    rows = [torch.as_tensor(d, dtype=torch.float64).expand(5) for d in layer._decays()]
    return torch.stack(rows).detach()
