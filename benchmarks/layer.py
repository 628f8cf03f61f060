"""`python -m benchmarks layer`: what packing, vmap over weights, subnormal states and torch.compile save or
cost.

Each row compares a training step (forward and backward, float32) with a plain one. The two are timed
interleaved (timing.py); the ratio is that of the medians. With `--device cuda` the only row compares 100
networks under vmap with one of them; the goal is at most 3 times its time.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkernels

from . import report
from .loops import leaky_loop
from .timing import Bench, Task, TimingPlan

PLAN = TimingPlan(seconds=10.0)
DECAY = 0.7


class Pair(NamedTuple):
    what: str
    note: str
    asked: Task
    plain: Task

    def __str__(self) -> str:
        return self.what


def _layer(inputs: int, hidden: int, device: str = "cpu") -> nn.Module:
    return rnnkernels.LeakyRNN(inputs, hidden, decay=DECAY, device=device)


def _step(loss: Callable[[], Tensor], weights: Callable[[], Any]) -> Task:
    def step() -> None:
        torch.autograd.backward(loss())
        for weight in weights():
            weight.grad = None

    return step


def packed(batch: int, steps: int, inputs: int, hidden: int) -> Pair:
    """Lengths uniform in 1..T, packed, compared with the padded batch."""
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
    """A step of all networks in one call: vmap over their stacked weights."""
    weights, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")

    def call(weights: Any, buffers: Any) -> Any:
        return functional_call(base, (weights, buffers), (x,))[0]

    return _step(lambda: vmap(call)(weights, buffers).sum(), weights.values)


def together(count: int, batch: int, steps: int, inputs: int, hidden: int) -> Pair:
    """vmap over stacked weights, compared with one call per network."""
    layers = [_layer(inputs, hidden) for _ in range(count)]
    x = torch.randn(steps, batch, inputs)
    each = [_step(lambda layer=layer: layer(x)[0].sum(), layer.parameters) for layer in layers]
    what = f"{count} networks, B {batch}, T {steps}, I {inputs}, H {hidden}"
    return Pair(what, "one call or one per network", _stacked(layers, x), lambda: [step() for step in each])


def side_by_side(count: int, batch: int, steps: int, inputs: int, hidden: int, device: str) -> Pair:
    """vmap over stacked weights, compared with one of the networks."""
    layers = [_layer(inputs, hidden, device) for _ in range(count)]
    x = torch.randn(steps, batch, inputs, device=device)
    one = _step(lambda: layers[0](x)[0].sum(), layers[0].parameters)
    what = f"{count} networks, B {batch}, T {steps}, I {inputs}, H {hidden}"
    return Pair(what, "all in one call or one network", _stacked(layers, x), one)


def compiled(batch: int, steps: int, inputs: int, hidden: int) -> Pair:
    """A step of layer, readout and loss under torch.compile(fullgraph=True), compared with eager."""
    layer, readout = _layer(inputs, hidden), nn.Linear(hidden, 10)
    x, y = torch.randn(steps, batch, inputs), torch.randn(steps, batch, 10)

    def loss() -> Tensor:
        return nn.functional.mse_loss(readout(layer(x)[0]), y)

    def weights() -> Any:
        return (*layer.parameters(), *readout.parameters())

    asked = _step(torch.compile(loss, fullgraph=True), weights)
    begin = time.perf_counter()
    asked()
    note = f"compiles in {time.perf_counter() - begin:.1f} s"
    return Pair(f"compiled, B {batch}, T {steps}, I {inputs}, H {hidden}", note, asked, _step(loss, weights))


def subnormal(batch: int, steps: int, inputs: int, hidden: int) -> Iterator[Pair]:
    """Half of the units fire at the first step only and decay as d^t to subnormal numbers, compared with the
    same units at rest; by the layer and by a loop in Python. x86 processors are slow with such numbers.
    """
    layer = _layer(inputs, hidden)
    some = slice(0, hidden // 2)
    with torch.no_grad():
        w_ih, w_hh, b_ih, _ = layer.parameters()
        w_ih[some], w_hh[some], b_ih[some] = 0.0, 0.0, -1.0
        w_ih[some, 0] = 2.0
    at_rest = torch.randn(steps, batch, inputs)
    at_rest[:, :, 0] = 0.0
    fired = at_rest.clone()
    fired[0, :, 0] = 1.0
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "by the layer": lambda x: layer(x)[0],
        "by a loop": lambda x: leaky_loop(x, list(layer.parameters()), DECAY),
    }
    for name, way in ways.items():
        yield Pair(
            f"subnormal states, B {batch}, T {steps}, I {inputs}, H {hidden}",
            f"{name}, half of the units decaying or at rest",
            _step(lambda way=way: way(fired).sum(), layer.parameters),
            _step(lambda way=way: way(at_rest).sum(), layer.parameters),
        )


def pairs(quick: bool, device: str) -> Iterator[Pair]:
    torch.manual_seed(0)
    if device == "cuda":
        sizes = (3, 2, 8, 4, 16) if quick else (100, 32, 512, 64, 128)
        yield side_by_side(*sizes, device)
    elif quick:
        yield packed(16, 50, 8, 32)
        yield together(4, 8, 20, 4, 16)
        yield from subnormal(2, 200, 4, 32)
    else:
        yield packed(64, 150, 85, 256)
        yield packed(32, 100, 88, 200)
        for steps in (20, 50, 100):
            yield together(32, 8, steps, 4, 64)
        yield from subnormal(8, 1000, 85, 256)
        yield compiled(64, 500, 85, 256)


def measure_pair(pair: Pair, bench: Bench) -> report.Document:
    tasks = {"asked": pair.asked, "plain": pair.plain}
    for task in tasks.values():
        task()
    figures = bench.figures(tasks)
    ratio = figures["asked"]["median_s"] / figures["plain"]["median_s"]
    return {"what": pair.what, "note": pair.note, **figures, "ratio": ratio}


def measure(arguments: argparse.Namespace, bench: Bench) -> report.Document:
    chosen = pairs(arguments.quick, bench.device)
    cells = report.measure_cells(chosen, lambda pair: measure_pair(pair, bench))
    return report.document("layer", bench, cells)


def tables(document: report.Document) -> list[report.Table]:
    rows = [["training step", "", "ms", "plain ms", "ratio"]]
    for cell in document["cells"]:
        asked, plain = (1e3 * cell[name]["median_s"] for name in ("asked", "plain"))
        rows.append([cell["what"], cell["note"], f"{asked:.2f}", f"{plain:.2f}", f"{cell['ratio']:.2f}"])
    return [report.Table("", rows, 2)]
