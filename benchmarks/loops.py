"""The leaky recurrence as a loop in Python, in the forms in which people have it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import WEIGHTS, Problem, TorchContender


def leaky_loop(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    decay: float,
) -> Tensor:
    """The loop as well as it can be written: one projection, three operations a step.

    `unbind` matters: the gradient of `pre[t]` is a zero-filled copy of all of `pre` for each t.
    """
    pre = F.linear(x, weight_ih, bias_ih + bias_hh)
    weight = weight_hh.t()
    h = torch.zeros_like(pre[0])
    outputs = []
    for p in pre.unbind(0):
        h = torch.lerp(torch.relu(torch.addmm(p, h, weight)), h, decay)
        outputs.append(h)
    return torch.stack(outputs)


def naive_loop(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    decay: float,
) -> Tensor:
    """The loop as it is mostly found: the formula typed in, steps taken by index."""
    pre = F.linear(x, weight_ih, bias_ih) + bias_hh
    h = torch.zeros_like(pre[0])
    outputs = []
    for t in range(x.shape[0]):
        h = decay * h + (1 - decay) * torch.relu(pre[t] + F.linear(h, weight_hh))
        outputs.append(h)
    return torch.stack(outputs)


def from_loop(problem: Problem, loop: Callable[..., Tensor]) -> TorchContender:
    leaves = {name: problem.weights[name].clone().requires_grad_() for name in WEIGHTS}
    values = list(leaves.values())
    return TorchContender(problem, lambda x: problem.rows(loop(x, *values, problem.decay)), leaves)


def make_loop(problem: Problem) -> TorchContender:
    return from_loop(problem, leaky_loop)


def make_naive_loop(problem: Problem) -> TorchContender:
    return from_loop(problem, naive_loop)


def make_script(problem: Problem) -> TorchContender:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still what many codebases run
        return from_loop(problem, torch.jit.script(leaky_loop))
