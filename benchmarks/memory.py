"""`python -m benchmarks memory`: what a training step takes at its most: on a long sequence, with and without
`checkpoint_every`; and on a large batch, beside the peers.

Each row runs in a process of its own: the kernel's record of the largest resident size (VmHWM) cannot be
taken back. From it goes what was resident before the step: Python, torch, the layer and its input. The
loss on the long sequence looks at the last state, so the caller keeps no output; the large batch has a
gradient for every output, which is there before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from . import options, peers, report
from .machine import OtherLoad, environment
from .problem import OURS, Cell, make_problem
from .timing import Plan

ROOT = Path(__file__).resolve().parent.parent
DECAY = 0.9
MEGABYTE = 2**20


class Case(NamedTuple):
    nonlinearity: str
    way: str  # of WAYS
    segment: int  # also the steps of the call before, which loads and sets up what is there once
    steps: int
    batch: int
    inputs: int
    hidden: int


# How a long sequence is trained on; and who trains on a large batch.
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
    """Bytes: "VmRSS" now, "VmHWM" at the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def step(case: Case, steps: int) -> int:
    """Bytes that a training step over this many steps adds at its most."""
    if case.way in CONTENDERS:
        return contender_step(case, steps)
    import rnnkernels  # not before __main__ has settled which one

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


def contender_step(case: Case, steps: int) -> int:
    cell = Cell(case.batch, steps, case.inputs, case.hidden)
    problem = make_problem(cell, torch.float32, DECAY, 0)
    make = peers.make_ours if case.way == OURS else peers.PEERS[case.way].make
    contender = make(problem)
    before = resident("VmRSS")
    contender.forward_backward()
    return resident("VmHWM") - before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser)
    parser.add_argument("--case", help="measure one case in this process (JSON) and print bytes")


def run(arguments: argparse.Namespace) -> int:
    if arguments.case is None:
        return options.run(arguments, measure_cases, rows, Plan())
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    case = Case(*json.loads(arguments.case))
    step(case, case.segment)  # what is loaded and set up once
    print(step(case, case.steps))
    return 0


def measured(case: Case, threads: int) -> int:
    """The case's bytes, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "memory", "--threads", str(threads), "--case"]
    child = subprocess.run(
        [*command, json.dumps(case)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(child.stdout)


def measure_cases(quick: bool, plan: Plan) -> report.Document:
    cells, threads = [], torch.get_num_threads()
    for case in cases(quick):
        way = (
            report.label(case.way) if case.way in CONTENDERS else WAYS[case.way].format(segment=case.segment)
        )
        print(case.nonlinearity, way, file=sys.stderr, flush=True)
        load = OtherLoad()
        cells.append(
            {
                **case._asdict(),
                "what": f"{case.nonlinearity}, T {case.steps}, B {case.batch}, H {case.hidden}",
                "note": way,
                "peak_bytes": measured(case, threads),
                "output_bytes": 4 * case.steps * case.batch * case.hidden,
                "cores_of_others": load.cores(),
            }
        )
    return {"benchmark": "memory", "environment": environment(threads), "cells": cells}


def rows(document: report.Document) -> list[list[str]]:
    lines = [["training step", "", "peak MB", "the output alone"]]
    for cell in document["cells"]:
        names = ("peak_bytes", "output_bytes")
        lines.append([cell["what"], cell["note"], *(f"{cell[name] / MEGABYTE:.0f}" for name in names)])
    return lines
