"""`python -m benchmarks call`: the parts of a tiny call (T 1, B 1, I 16, H 32), in microseconds.

Each row is a call with one more layer around it than the row above, all timed interleaved (timing.py). The
differences are the costs of the layers. The last rows are for comparison.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import rnnkernels
from rnnkernels import _ops

from . import report
from .host import OtherLoad
from .timing import Bench, Task, TimingPlan

PLAN = TimingPlan(rounds=60, turn_calls=200)
INPUTS, HIDDEN = 16, 32


def tasks() -> dict[str, Task]:
    layer, plain = rnnkernels.LeakyRNN(INPUTS, HIDDEN, decay=0.5), nn.RNN(INPUTS, HIDDEN, nonlinearity="relu")
    x, grad = torch.randn(1, 1, INPUTS), torch.ones(1, 1, HIDDEN)
    w_ih, w_hh, b_ih, b_hh = (p.detach() for p in layer.parameters())
    bias, decay = b_ih + b_hh, torch.tensor(0.5)
    kind = ("relu", "rate", False)
    output, _, saved = _ops.projected_recurrence(x, None, w_ih, w_hh, bias, None, decay, None, *kind, 1)
    wanted = [False, False, True, True, True, False, False]
    graph = [p.detach().requires_grad_() for p in (w_ih, w_hh, bias)]

    def forward() -> object:
        return _ops.projected_recurrence(x, None, w_ih, w_hh, bias, None, decay, None, *kind, False)

    def backward() -> object:
        tensors = (grad, None, output, saved, x, None, w_ih, w_hh, decay, None)
        return _ops.projected_recurrence_backward(*tensors, *kind, wanted)

    def recorded() -> Tensor:
        result: Tensor = _ops.projected_recurrence(x, None, *graph, None, decay, None, *kind, 1)[0]
        return result

    def inference(module: nn.Module) -> Task:
        return torch.no_grad()(lambda: module(x))

    def step(module: nn.Module) -> Task:
        def run() -> None:
            for p in module.parameters():
                p.grad = None
            module(x)[0].backward(grad)

        return run

    return {
        "an allocation": lambda: torch.empty(1, 1, HIDDEN),
        "operator, forward": forward,
        "operator, backward": backward,
        "operator, forward, recorded by autograd": recorded,
        "the same and its backward through autograd": lambda: torch.autograd.grad(recorded(), graph, grad),
        "LeakyRNN, forward, not recorded": inference(layer),
        "LeakyRNN, forward, recorded": lambda: layer(x),
        "LeakyRNN, forward and backward": step(layer),
        "nn.RNN, forward, not recorded": inference(plain),
        "nn.RNN, forward and backward": step(plain),
    }


def measure(arguments: argparse.Namespace, bench: Bench) -> report.Document:
    found = tasks()
    for task in found.values():
        task()
    load = OtherLoad()
    timings = bench.measure(found)
    cores = load.cores()
    cells = [{"what": what, "call": t.figures(), "cores_of_others": cores} for what, t in timings.items()]
    return report.document("call", bench, cells)


def tables(document: report.Document) -> list[report.Table]:
    rows = [[cell["what"], f"{1e6 * cell['call']['median_s']:.1f}"] for cell in document["cells"]]
    return [report.Table("T 1, B 1, I 16, H 32", [["", "microseconds"], *rows], 1)]
