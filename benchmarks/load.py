"""`python -m benchmarks load`: training steps per second of several processes on one host at the same time,
as when several seeds are trained, and of one process with more threads than CPUs.

All processes of a measurement make the same contender with the default number of threads, warm up, start
together and count their steps for some seconds. A step is forward and backward of one layer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from typing import Any, NamedTuple

import torch

from . import report
from .peers import PEERS, label, make_ours
from .problem import OURS, Cell, make_problem
from .timing import Bench, TimingPlan

PLAN = TimingPlan(seconds=2.0, rounds=3)
DECAY = 0.8
CONTENDERS = (OURS, "rnn", "scan")
PROCESSES = (1, 2, 4)
GRID = (Cell(1, 1000, 32, 256), Cell(16, 100, 88, 200), Cell(64, 150, 85, 256))


class Case(NamedTuple):
    cell: Cell
    name: str  # a contender
    processes: int
    threads: int | None = None  # None: the default

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads"
        return f"{self.cell}, {label(self.name)}{threads}, {self.processes} processes"


def count_steps(case: Case, seconds: float, start: Any, counts: Any) -> None:
    """Run steps for some seconds, in a process of its own, and report their number."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    make = make_ours if case.name == OURS else PEERS[case.name].make
    contender = make(make_problem(case.cell, torch.float32, DECAY, 0))
    for _ in range(3):
        contender.forward_backward()
    start.wait()
    steps, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        contender.forward_backward()
        steps += 1
    counts.put(steps)


def steps_per_second(case: Case, seconds: float) -> float:
    """Steps per second of all processes together."""
    context = multiprocessing.get_context("spawn")
    start, counts = context.Barrier(case.processes), context.SimpleQueue()
    workers = [
        context.Process(target=count_steps, args=(case, seconds, start, counts), daemon=True)
        for _ in range(case.processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a process of {case} ended with status {worker.exitcode}")
    return sum(counts.get() for _ in workers) / seconds


def cases(quick: bool) -> list[Case]:
    many = 8 * torch.get_num_threads()
    if quick:
        cell = Cell(2, 20, 4, 16)
        return [Case(cell, OURS, 1), Case(cell, OURS, 2), Case(cell, OURS, 1, many)]
    names = [name for name in CONTENDERS if name == OURS or PEERS[name].missing() is None]
    found = [Case(cell, name, processes) for cell in GRID for name in names for processes in PROCESSES]
    return found + [Case(cell, OURS, 1, many) for cell in GRID]


def measure(arguments: argparse.Namespace, bench: Bench) -> report.Document:
    found: dict[Case, list[float]] = {case: [] for case in cases(arguments.quick)}
    seconds, count = bench.plan.seconds, 1 if arguments.quick else bench.plan.rounds

    def measure_case(case: Case) -> report.Document:
        found[case] += [steps_per_second(case, seconds)]
        return {}

    rounds = [case for _ in range(count) for case in found]
    loads = [cell["cores_of_others"] for cell in report.measure_cells(rounds, measure_case)]
    cells = [
        {
            "cell": case.cell._asdict(),
            "contender": case.name,
            "processes": case.processes,
            "threads": case.threads,
            "steps_per_s": statistics.median(rates),
            "rates": rates,
            "cores_of_others": _highest(loads[place :: len(found)]),
        }
        for place, (case, rates) in enumerate(found.items())
    ]
    return report.document("load", bench, cells)


def _highest(loads: list[float | None]) -> float | None:
    known = [load for load in loads if load is not None]
    return max(known) if known else None


def tables(document: report.Document) -> list[report.Table]:
    """Steps per second of all processes together, and in brackets the share of one process alone."""
    alone = {_key(c): c for c in document["cells"] if c["processes"] == 1 and c["threads"] is None}
    counts = sorted({c["processes"] for c in document["cells"]})
    rows = [["B, T, I, H", "", *(f"{n} process{'es' * (n > 1)}" for n in counts)]]
    more = [["B, T, I, H", "threads", "steps per second", "share of the default"]]
    for key, cell in alone.items():
        same = {c["processes"]: c for c in document["cells"] if _key(c) == key and c["threads"] is None}
        rows.append([*_names(cell), *(_with_share(same[n], cell) for n in counts)])
    for cell in document["cells"]:
        if cell["threads"] is not None:
            share = cell["steps_per_s"] / alone[_key(cell)]["steps_per_s"]
            rate = report.digits(cell["steps_per_s"])
            more.append([_names(cell)[0], str(cell["threads"]), rate, report.percent(share)])
    return [
        report.Table("one process with more threads than CPUs", more, 1),
        report.Table("training steps per second of all processes together (share of one alone)", rows, 2),
    ]


def _key(cell: report.Document) -> tuple[object, ...]:
    return (*cell["cell"].values(), cell["contender"])


def _names(cell: report.Document) -> list[str]:
    return [", ".join(map(str, cell["cell"].values())), label(cell["contender"])]


def _with_share(cell: report.Document, alone: report.Document) -> str:
    rate = report.digits(cell["steps_per_s"])
    if cell is alone:
        return rate
    return f"{rate} ({report.percent(cell['steps_per_s'] / alone['steps_per_s'])})"
