"""`python -m benchmarks call`: the parts of a tiny call (T 1, B 1, I 16, H 32), and one step of small
networks compared with `torch.nn.RNNCell`, in microseconds.

Each row of the parts is a call with one more layer around it than the row above, all timed interleaved
(timing.py). The differences are the costs of the layers. The last rows are for comparison.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

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
    timed = bench.figures(found)
    cores = load.cores()
    cells = [{"what": what, "call": figures, "cores_of_others": cores} for what, figures in timed.items()]
    sizes = [(batch, hidden) for batch in (1, 16) for hidden in ((16,) if arguments.quick else (64, 256))]
    cells += report.measure_cells(sizes, lambda size: measure_steps(*size, bench))
    return report.document("call", bench, cells)


def one_step(batch: int, hidden: int) -> dict[str, dict[str, Task]]:
    """One step with a given state, by the cell, by the layer, and by nn.RNNCell: for each way of calling."""
    inputs = 32
    cell, layer = (make(inputs, hidden, decay=0.8) for make in (rnnkernels.LeakyRNNCell, rnnkernels.LeakyRNN))
    peer = nn.RNNCell(inputs, hidden, nonlinearity="relu")
    x, h, grad = (torch.randn(batch, size) for size in (inputs, hidden, hidden))
    sequence, state = x.unsqueeze(0), h.unsqueeze(0)
    calls: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "LeakyRNNCell": (cell, lambda: cell(x, h)),
        "LeakyRNN": (layer, lambda: layer(sequence, state)[0]),
        "nn.RNNCell": (peer, lambda: peer(x, h)),
    }

    def backward(module: nn.Module, call: Callable[[], Tensor]) -> Task:
        weights = list(module.parameters())
        return lambda: torch.autograd.grad(result := call(), weights, grad.view_as(result))

    return {
        "forward, not recorded": {name: torch.no_grad()(call) for name, (_, call) in calls.items()},
        "forward, recorded": {name: call for name, (_, call) in calls.items()},
        "forward and backward": {name: backward(*each) for name, each in calls.items()},
    }


def measure_steps(batch: int, hidden: int, bench: Bench) -> report.Document:
    ways = one_step(batch, hidden)
    return {"B": batch, "H": hidden, "steps": {way: bench.figures(tasks) for way, tasks in ways.items()}}


def tables(document: report.Document) -> list[report.Table]:
    parts = [cell for cell in document["cells"] if "call" in cell]
    rows = [[cell["what"], f"{1e6 * cell['call']['median_s']:.1f}"] for cell in parts]
    steps = [["one step, I 32", "", "LeakyRNNCell", "LeakyRNN", "nn.RNNCell", "cell / peer", "layer / peer"]]
    for cell in document["cells"]:
        for way, figures in cell.get("steps", {}).items():
            cell_s, layer_s, peer_s = (timing["median_s"] for timing in figures.values())
            times = [f"{1e6 * seconds:.1f}" for seconds in (cell_s, layer_s, peer_s)]
            ratios = [f"{seconds / peer_s:.2f}" for seconds in (cell_s, layer_s)]
            steps.append([f"B {cell['B']}, H {cell['H']}", way, *times, *ratios])
    found = [report.Table("T 1, B 1, I 16, H 32", [["", "microseconds"], *rows], 1)]
    return found + [report.Table("", steps, 2)] * (len(steps) > 1)
