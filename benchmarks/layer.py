"""`python -m benchmarks layer`: what packing, vmap over weights and torch.compile save or cost.

Each row is a pair: a training step (forward and backward, float32) in the way that is asked about, and
in the plain way. The two are timed interleaved (timing.py); the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence

from . import report
from .machine import OtherLoad, environment, environment_line
from .timing import Plan, Task, measure

DECAY = 0.5


class Pair(NamedTuple):
    what: str
    note: str
    asked: Task
    plain: Task


def _layer(inputs: int, hidden: int) -> nn.Module:
    import rnnkernels  # not before __main__ has settled which one

    layer: nn.Module = rnnkernels.LeakyRNN(inputs, hidden, decay=DECAY)
    return layer


def _step(loss: Callable[[], Tensor], weights: Callable[[], Any]) -> Task:
    def step() -> None:
        torch.autograd.backward(loss())
        for weight in weights():
            weight.grad = None

    return step


def packed(batch: int, steps: int, inputs: int, hidden: int) -> Pair:
    """Lengths uniform in 1..T, packed, against the whole padded batch."""
    layer, x = _layer(inputs, hidden), torch.randn(steps, batch, inputs)
    lengths = torch.randint(1, steps + 1, (batch,))
    rows = pack_padded_sequence(x, lengths, enforce_sorted=False)
    return Pair(
        f"packed, B {batch}, T {steps}, I {inputs}, H {hidden}",
        f"{100 * len(rows.data) / (steps * batch):.0f} % of the rows",
        _step(lambda: layer(rows)[0].data.sum(), layer.parameters),
        _step(lambda: layer(x)[0].sum(), layer.parameters),
    )


def together(count: int, batch: int, steps: int, inputs: int, hidden: int) -> Pair:
    """vmap over stacked weights, against a call for each network."""
    layers = [_layer(inputs, hidden) for _ in range(count)]
    weights, buffers = stack_module_state(layers)
    base, x = copy.deepcopy(layers[0]).to("meta"), torch.randn(steps, batch, inputs)

    def call(weights: Any, buffers: Any) -> Any:
        return functional_call(base, (weights, buffers), (x,))[0]

    each = [_step(lambda layer=layer: layer(x)[0].sum(), layer.parameters) for layer in layers]
    return Pair(
        f"{count} networks, B {batch}, T {steps}, I {inputs}, H {hidden}",
        "one call against one for each",
        _step(lambda: vmap(call)(weights, buffers).sum(), weights.values),
        lambda: [step() for step in each],
    )


def compiled(batch: int, steps: int, inputs: int, hidden: int) -> Pair:
    """A step of layer, readout and loss under torch.compile(fullgraph=True), against eager."""
    layer, readout = _layer(inputs, hidden), nn.Linear(hidden, 10)
    x, y = torch.randn(steps, batch, inputs), torch.randn(steps, batch, 10)

    def loss() -> Tensor:
        return nn.functional.mse_loss(readout(layer(x)[0]), y)

    def weights() -> Any:
        return (*layer.parameters(), *readout.parameters())

    asked = _step(torch.compile(loss, fullgraph=True), weights)
    begin = time.perf_counter()
    asked()
    return Pair(
        f"compiled, B {batch}, T {steps}, I {inputs}, H {hidden}",
        f"compiles in {time.perf_counter() - begin:.1f} s",
        asked,
        _step(loss, weights),
    )


def pairs(quick: bool) -> Iterator[Pair]:
    torch.manual_seed(0)
    yield packed(16, 50, 8, 32) if quick else packed(64, 150, 85, 256)
    if not quick:
        yield packed(32, 100, 88, 200)
        yield together(32, 8, 20, 4, 64)
        yield together(32, 8, 50, 4, 64)
    yield together(4, 8, 20, 4, 16) if quick else together(32, 8, 100, 4, 64)
    if not quick:
        yield compiled(64, 500, 85, 256)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="two small rows, seconds")
    parser.add_argument("--threads", type=int, help="default: what PyTorch takes")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"), metavar="DIR")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def run(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    plan = Plan(seconds=1.0, rounds=5) if arguments.quick else Plan(seconds=10.0)
    cells = []
    for pair in pairs(arguments.quick):
        print(pair.what, file=sys.stderr, flush=True)
        tasks = {"asked": pair.asked, "plain": pair.plain}
        for task in tasks.values():
            task()
        load = OtherLoad()
        timings = measure(tasks, plan)
        cells.append(
            {
                "what": pair.what,
                "note": pair.note,
                **{name: timing.figures() for name, timing in timings.items()},
                "ratio": timings["asked"].median / timings["plain"].median,
                "cores_of_others": load.cores(),
            }
        )
    document: report.Document = {
        "benchmark": "layer",
        "environment": environment(torch.get_num_threads()),
        "cells": cells,
    }
    path = arguments.output / "layer.json"
    report.save_json(document, path)
    print(table(document, arguments.markdown))
    print("written:", path, file=sys.stderr)
    return 0


def table(document: report.Document, markdown: bool = False) -> str:
    rows = [["training step", "", "ms", "plain ms", "ratio"]]
    for cell in document["cells"]:
        asked, plain = (1e3 * cell[name]["median_s"] for name in ("asked", "plain"))
        rows.append([cell["what"], cell["note"], f"{asked:.2f}", f"{plain:.2f}", f"{cell['ratio']:.2f}"])
    lines = (report.markdown_rows if markdown else report.plain)(rows, 2)
    busiest = max(cell["cores_of_others"] or 0.0 for cell in document["cells"])
    lines += ["", f"other processes used up to {busiest:.2f} cores"]
    return "\n".join([*lines, environment_line(document["environment"])])
