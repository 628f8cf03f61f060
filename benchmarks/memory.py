"""`python -m benchmarks memory`: peak memory of a training step, on a long sequence with and without
`checkpoint_every`, and on a large batch beside the peers.

Each case runs in a process of its own, because the system's record of the largest resident size (VmHWM)
cannot be reset. The memory that was resident before the step (Python, torch, the layer and its input) is
subtracted. The loss on the long sequence depends on the last state, so that the caller keeps no output; on
the large batch the gradient of the output exists before."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

import rnnkernels

from . import report
from .peers import PEERS, label, make_ours
from .problem import OURS, Cell, make_problem
from .timing import Bench, TimingPlan

PLAN = TimingPlan()
DECAY = 0.9
MEGABYTE = 2**20


class Case(NamedTuple):
    nonlinearity: str
    way: str  # a key of WAYS, or one of CONTENDERS
    segment: int  # steps of a segment, and of the first step, which loads and sets up everything
    steps: int
    batch: int
    inputs: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.nonlinearity}, T {self.steps}, B {self.batch}, H {self.hidden}"

    @property
    def note(self) -> str:
        return label(self.way) if self.way in CONTENDERS else WAYS[self.way].format(segment=self.segment)


# The ways to train on a long sequence, and the contenders on a large batch.
WAYS = {
    "kept": "everything kept",
    "every": "checkpoint_every={segment}",
    "truncated": "truncated_bptt, {segment} steps",
}
CONTENDERS = (OURS, "rnn", "loop")


def cases(quick: bool) -> Iterator[Case]:
    sizes = (141, 20_000, 4, 4, 64) if quick else (316, 100_000, 4, 16, 256)
    for nonlinearity in ("relu", "tanh"):
        for way in WAYS:
            yield Case(nonlinearity, way, *sizes)
    large = (2, 100, 20, 4, 50) if quick else (2, 300, 450, 4, 1000)
    for way in CONTENDERS:
        yield Case("relu", way, *large)


def resident(field: str) -> int:
    """Resident bytes of this process: "VmRSS" now, "VmHWM" the peak so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def step(case: Case, steps: int) -> int:
    """The peak bytes that a training step over this many steps adds."""
    if case.way in CONTENDERS:
        cell = Cell(case.batch, steps, case.inputs, case.hidden)
        make = make_ours if case.way == OURS else PEERS[case.way].make
        contender = make(make_problem(cell, torch.float32, DECAY, 0))
        before = resident("VmRSS")
        contender.forward_backward()
        return resident("VmHWM") - before
    every = case.segment if case.way == "every" else None
    rnn = rnnkernels.LeakyRNN(
        case.inputs, case.hidden, nonlinearity=case.nonlinearity, decay=DECAY, checkpoint_every=every
    )
    x = torch.randn(steps, case.batch, case.inputs)
    before = resident("VmRSS")
    if case.way == "truncated":
        for _, h_n in rnnkernels.truncated_bptt(rnn, x, case.segment):
            h_n.square().mean().backward()
    else:
        rnn(x)[1].square().mean().backward()
    return resident("VmHWM") - before


def added_bytes(case: Case) -> int:
    """The peak of a case in this process, after a short step that loads and sets up everything."""
    step(case, case.segment)
    return step(case, case.steps)


def in_new_process(function: Callable[..., int], *arguments: Any) -> int:
    """Call a function of a module in a process of its own, with as many threads as this one has."""
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)
    ) as process:
        return process.submit(function, *arguments).result()


def measure(arguments: argparse.Namespace, bench: Bench) -> report.Document:
    def measure_case(case: Case) -> report.Document:
        return {
            **case._asdict(),
            "what": str(case),
            "note": case.note,
            "peak_bytes": in_new_process(added_bytes, case),
            "output_bytes": 4 * case.steps * case.batch * case.hidden,
        }

    return report.document("memory", bench, report.measure_cells(cases(arguments.quick), measure_case))


def tables(document: report.Document) -> list[report.Table]:
    rows = [["training step", "", "peak MB", "the output alone"]]
    for cell in document["cells"]:
        megabytes = (f"{cell[name] / MEGABYTE:.0f}" for name in ("peak_bytes", "output_bytes"))
        rows.append([cell["what"], cell["note"], *megabytes])
    return [report.Table("", rows, 2)]
