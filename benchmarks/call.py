"""`python -m benchmarks call`: where the microseconds of a tiny call go (T 1, B 1, H 32).

Every row is a call that has one more layer around it than the row above, all timed interleaved (timing.py);
the differences are what the layers cost. The last rows are for comparison.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from . import options, report
from .machine import OtherLoad, environment
from .timing import Plan, Task, measure

INPUTS, HIDDEN = 16, 32


def tasks() -> dict[str, Task]:
    import rnnkernels  # not before __main__ has settled which one
    from rnnkernels import _ops

    layer, plain = rnnkernels.LeakyRNN(INPUTS, HIDDEN, decay=0.5), nn.RNN(INPUTS, HIDDEN, nonlinearity="relu")
    x, grad = torch.randn(1, 1, INPUTS), torch.ones(1, 1, HIDDEN)
    leaves = [p.detach() for p in layer.parameters()]
    bias, decay = leaves[2] + leaves[3], torch.tensor(0.5)
    call = (x, None, leaves[0], leaves[1], bias, None, decay, None, "relu", "rate", False)
    output, _, saved = _ops.projected_recurrence(*call, True)
    wanted = [False, False, True, True, True, False, False]
    back = (
        grad,
        None,
        output,
        saved,
        x,
        None,
        leaves[0],
        leaves[1],
        decay,
        None,
        "relu",
        "rate",
        False,
        wanted,
    )
    graph = [p.detach().requires_grad_() for p in (leaves[0], leaves[1], bias)]

    def recorded() -> Tensor:
        result: Tensor = _ops.projected_recurrence(x, None, *graph, *call[5:], True)[0]
        return result

    def inference(module: nn.Module) -> Task:
        def run() -> None:
            with torch.no_grad():
                module(x)

        return run

    def step(module: nn.Module) -> Task:
        def run() -> None:
            for p in module.parameters():
                p.grad = None
            module(x)[0].backward(grad)

        return run

    return {
        "an allocation": lambda: torch.empty(1, 1, HIDDEN),
        "operator, forward": lambda: _ops.projected_recurrence(*call, False),
        "operator, backward": lambda: _ops.projected_recurrence_backward(*back),
        "operator, forward, recorded by autograd": recorded,
        "the same, and its backward through autograd": lambda: torch.autograd.grad(recorded(), graph, grad),
        "LeakyRNN, forward, nothing recorded": inference(layer),
        "LeakyRNN, forward, recorded": lambda: layer(x),
        "LeakyRNN, forward and backward": step(layer),
        "nn.RNN, forward, nothing recorded": inference(plain),
        "nn.RNN, forward and backward": step(plain),
    }


def run(arguments: argparse.Namespace) -> int:
    return options.run(arguments, measure_call, rows, Plan(rounds=60, turn_calls=200))


def measure_call(quick: bool, plan: Plan) -> report.Document:
    chosen = tasks()
    load = OtherLoad()
    timings = measure(chosen, plan)
    cells = [
        {"what": what, "call": timing.figures(), "cores_of_others": load.cores()}
        for what, timing in timings.items()
    ]
    return {"benchmark": "call", "environment": environment(torch.get_num_threads()), "cells": cells}


def rows(document: report.Document) -> list[list[str]]:
    lines = [["T 1, B 1, I 16, H 32", "", "microseconds"]]
    return lines + [[cell["what"], "", f"{1e6 * cell['call']['median_s']:.1f}"] for cell in document["cells"]]
