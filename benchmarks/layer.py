"""`python -m benchmarks layer`: what packing, vmap over weights, faded units and torch.compile save or cost.

Each row is a pair: a training step (forward and backward, float32) in the way that is asked about, and
in the plain way. The two are timed interleaved (timing.py); the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence

from . import options, report
from .loops import leaky_loop
from .machine import OtherLoad, environment
from .timing import Plan, Task, measure

DECAY = 0.7


class Pair(NamedTuple):
    what: str
    note: str
    asked: Task
    plain: Task


def _layer(inputs: int, hidden: int, device: str = "cpu") -> nn.Module:
    import rnnkernels  # not before __main__ has settled which one

    layer: nn.Module = rnnkernels.LeakyRNN(inputs, hidden, decay=DECAY, device=device)
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
    sequences = pack_padded_sequence(x, lengths, enforce_sorted=False)
    return Pair(
        f"packed, B {batch}, T {steps}, I {inputs}, H {hidden}",
        f"{100 * len(sequences.data) / (steps * batch):.0f} % of the rows",
        _step(lambda: layer(sequences)[0].data.sum(), layer.parameters),
        _step(lambda: layer(x)[0].sum(), layer.parameters),
    )


def _stacked(layers: list[nn.Module], x: Tensor) -> Task:
    """All networks in one call: vmap over their stacked weights."""
    weights, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")

    def call(weights: Any, buffers: Any) -> Any:
        return functional_call(base, (weights, buffers), (x,))[0]

    return _step(lambda: vmap(call)(weights, buffers).sum(), weights.values)


def together(count: int, batch: int, steps: int, inputs: int, hidden: int) -> Pair:
    """vmap over stacked weights, against a call for each network."""
    layers = [_layer(inputs, hidden) for _ in range(count)]
    x = torch.randn(steps, batch, inputs)
    each = [_step(lambda layer=layer: layer(x)[0].sum(), layer.parameters) for layer in layers]
    return Pair(
        f"{count} networks, B {batch}, T {steps}, I {inputs}, H {hidden}",
        "one call against one for each",
        _stacked(layers, x),
        lambda: [step() for step in each],
    )


def side_by_side(count: int, batch: int, steps: int, inputs: int, hidden: int, device: str) -> Pair:
    """vmap over stacked weights, against one of the networks: nearly equal where there is room to spare."""
    layers = [_layer(inputs, hidden, device) for _ in range(count)]
    x = torch.randn(steps, batch, inputs, device=device)
    return Pair(
        f"{count} networks, B {batch}, T {steps}, I {inputs}, H {hidden}",
        "all in one call against one of them",
        _stacked(layers, x),
        _step(lambda: layers[0](x)[0].sum(), layers[0].parameters),
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


def faded(batch: int, steps: int, inputs: int, hidden: int) -> Iterator[Pair]:
    """Half of the units fire at the first step alone and fade, d^t, below what a float can be; against the
    same units at rest. Numbers on the way down to 0 are subnormal, and x86 processors slow with them. By the
    layer, and by a loop in Python.
    """
    layer = _layer(inputs, hidden)
    some = slice(0, hidden // 2)
    with torch.no_grad():
        layer.weight_ih_l0[some] = 0.0
        layer.weight_hh_l0[some] = 0.0
        layer.weight_ih_l0[some, 0] = 2.0
        layer.bias_ih_l0[some] = -1.0
    at_rest = torch.randn(steps, batch, inputs)
    at_rest[:, :, 0] = 0.0
    fired = at_rest.clone()
    fired[0, :, 0] = 1.0
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "by the layer": lambda x: layer(x)[0],
        "by a loop": lambda x: leaky_loop(x, *layer.parameters(), decay=DECAY),
    }
    for name, way in ways.items():
        yield Pair(
            f"faded units, B {batch}, T {steps}, I {inputs}, H {hidden}",
            f"{name}, half of the units fade, against at rest",
            _step(lambda way=way: way(fired).sum(), layer.parameters),
            _step(lambda way=way: way(at_rest).sum(), layer.parameters),
        )


def pairs(quick: bool) -> Iterator[Pair]:
    torch.manual_seed(0)
    yield packed(16, 50, 8, 32) if quick else packed(64, 150, 85, 256)
    if not quick:
        yield packed(32, 100, 88, 200)
        yield together(32, 8, 20, 4, 64)
        yield together(32, 8, 50, 4, 64)
    yield together(4, 8, 20, 4, 16) if quick else together(32, 8, 100, 4, 64)
    yield from faded(2, 200, 4, 32) if quick else faded(8, 1000, 85, 256)
    if not quick:
        yield compiled(64, 500, 85, 256)


def run(arguments: argparse.Namespace) -> int:
    return options.run(arguments, measure_pairs, rows, Plan(seconds=10.0))


def measure_pairs(quick: bool, plan: Plan) -> report.Document:
    cells = []
    for pair in pairs(quick):
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
    return {"benchmark": "layer", "environment": environment(torch.get_num_threads()), "cells": cells}


def rows(document: report.Document) -> list[list[str]]:
    lines = [["training step", "", "ms", "plain ms", "ratio"]]
    for cell in document["cells"]:
        asked, plain = (1e3 * cell[name]["median_s"] for name in ("asked", "plain"))
        lines.append([cell["what"], cell["note"], f"{asked:.2f}", f"{plain:.2f}", f"{cell['ratio']:.2f}"])
    return lines
