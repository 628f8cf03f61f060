"""`python -m benchmarks recurrence --device cuda`: the leaky recurrent layer against its peers on a GPU.

As on the CPU (recurrence.py), each point is a new problem, answers are checked before they are timed, and
all contenders of a point take turns. Besides: several sets of random inputs in rotation, the device's own
events as the clock (timing.py), both dtypes in one run, and a floor from what the card gives (floor.py). A
budget in seconds says how much is measured (gpu_plan.py). A peer that is wrong or fails is left out with a
line; where that happens to rnnkernels, the run goes on and ends with status 1. What was measured is on disk
after each point.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import floor, gpu_table, layer, report
from .bench import Bench, cuda_bench
from .card import no_card, tf32_allowed
from .check import TF32_TOLERANCE, Checker, WrongAnswerError
from .gpu_plan import QUICK_GRID, Costs, Point, choose, grid, unsuited
from .jax_scan import prepare_jax
from .machine import environment
from .peers import PEERS, Recurrence, make_ours
from .problem import OURS, Contender, Problem, make_problem
from .timing import Rotation, Timing, measure

DECAY = 0.8
BUDGET = 300.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "tf32": torch.float32}
NETWORKS = (100, 32, 512, 64, 128)  # side by side: their number, B, T, I, H
QUICK_NETWORKS = (3, 2, 8, 4, 16)


@dataclass
class Measured:
    """One point: what was timed, and why the rest was not."""

    timings: dict[tuple[str, str], Timing] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # by contender


# ------------------------------------------------------------------------------------------- run


def run(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    if why := no_card():
        print(f"error: {why}", file=sys.stderr)
        return 2
    if arguments.dtype == "float64":
        print("error: --device cuda knows the dtypes float32 and bfloat16, got float64", file=sys.stderr)
        return 2
    prepare_jax("cuda", torch.get_num_threads())
    bench, quick = cuda_bench(arguments.quick), arguments.quick
    path = arguments.json or arguments.output / "recurrence.json"
    rates = floor.measure_rates(bench.new_stopwatch(), product_size=2048 if quick else 8192)
    networks = measure_networks(QUICK_NETWORKS if quick else NETWORKS, bench)
    budget = (arguments.budget or BUDGET) - (time.perf_counter() - start)
    document = measure_grid(
        points_of(arguments), peers_of(arguments), rates, bench, budget, arguments.seed, networks, path
    )
    report.save_json(document, path)
    print(gpu_table.table(document, arguments.markdown))
    written = [path]
    if report.can_draw() and document["cells"]:
        written.append(arguments.picture or path.with_suffix(".png"))
        gpu_table.picture(document, written[-1])
    print("written:", ", ".join(map(str, written)), file=sys.stderr)
    wrong = failures(document)
    for why in wrong:
        print(f"error: {why}", file=sys.stderr)
    return 1 if wrong else 0


def points_of(arguments: argparse.Namespace) -> Sequence[Point]:
    if arguments.quick and not arguments.grid:
        return QUICK_GRID
    if arguments.grid:
        precisions = [arguments.dtype] if arguments.dtype else ["float32", "bfloat16"]
        return [Point(cell, name) for cell in arguments.grid for name in precisions]
    return grid([arguments.dtype]) if arguments.dtype else grid()


def peers_of(arguments: argparse.Namespace) -> Sequence[str]:
    if arguments.peers is not None:
        return list(arguments.peers)
    return [name for name, peer in PEERS.items() if "cuda" in peer.default_on]


def failures(document: report.Document) -> list[str]:
    """What is wrong with rnnkernels itself; that a peer fails is no failure of the run."""
    found = [
        f"{cell['point']}: {why}"
        for cell in document["cells"]
        for who, why in cell["failed"].items()
        if who in (OURS, report.RECURRENCE)
    ]
    networks = document["networks"] or {}
    return found + [why for why in (networks.get("failed"), document["stopped"]) if why]


# -------------------------------------------------------------------------------------- measuring


def measure_grid(
    points: Sequence[Point],
    wanted: Sequence[str],
    rates: floor.Rates,
    bench: Bench,
    budget: float,
    seed: int,
    networks: report.Document | None = None,
    path: Path | None = None,
) -> report.Document:
    """All points that fit into the budget; written after each, so that a run cut short leaves what it has."""
    start, costs = bench.clock(), Costs()
    missing = {name: why for name in wanted if (why := PEERS[name].missing())}
    rest = {
        point: [n for n in wanted if n not in missing and unsuited(n, point, PEERS[n].packs) is None]
        for point in points
    }
    document: report.Document = {
        "benchmark": "recurrence",
        "device": bench.device,
        "environment": environment(torch.get_num_threads(), bench.device),
        "settings": {
            "decay": DECAY, "nonlinearity": "relu", "seed": seed, "budget_s": budget,
            "input_sets": bench.input_sets, "rounds": bench.plan.rounds,
            "slow_s": bench.plan.slow, "slow_calls": bench.plan.slow_calls,
        },
        "rates": rates.document(),
        "cudnn_takes": {name: cudnn_takes(dtype, bench.device) for name, dtype in DTYPES.items()},
        "networks": networks,
        "skipped": missing,
        "cells": [],
        "points_left_out": [],
        "stopped": None,
    }  # fmt: skip
    measured: set[str] = set()
    for number, point in enumerate(points):
        spent = bench.clock() - start
        choice = choose(rest, budget - spent, costs, measured)
        if point not in choice.kept or document["stopped"]:
            document["points_left_out"] = [str(point) for point in rest]
            break
        print(f"[{number + 1}/{len(points)}] {spent:4.0f} s  {point}", file=sys.stderr, flush=True)
        found = measure_point(point, choice.kept[point], bench, costs, seed + bench.input_sets * number)
        measured.update(choice.kept[point])
        cell = cell_figures(point, found, rates)
        cell["left_out"] = choice.dropped.get(point, [])
        document["cells"].append(cell)
        del rest[point]
        document["stopped"] = broken_device(bench.device)
        if path:
            report.save_json(document, path)
    document["seconds"] = bench.clock() - start
    return document


def cudnn_takes(dtype: torch.dtype, device: str) -> bool:
    """What torch itself asks before it gives an nn.RNN to cuDNN."""
    return bool(torch.cudnn_is_acceptable(torch.zeros(1, dtype=dtype, device=device)))


def broken_device(device: str) -> str | None:
    """After a fault in a kernel nothing works any more in this process; who goes on measures nothing."""
    try:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
    except RuntimeError as error:
        return f"the device no longer answers: {first_line(error)}"
    return None


def measure_point(point: Point, peers: Sequence[str], bench: Bench, costs: Costs, seed: int) -> Measured:
    """Makes, checks and times; whoever fails at one of these is out, and the rest is timed without it."""
    result = Measured()
    makers: dict[str, Callable[[Problem], Contender]] = {OURS: make_ours, report.RECURRENCE: Recurrence}
    makers |= {name: PEERS[name].make for name in peers}
    with tf32_allowed(point.precision == "tf32"):
        try:
            problems = make_problems(point, bench, seed)
        except RuntimeError as error:
            result.failed[OURS] = first_line(error)
            return result
        check = Checker(problems[0], TF32_TOLERANCE if point.precision == "tf32" else None)
        tasks: dict[tuple[str, str], Rotation] = {}
        for name, make in makers.items():
            start = bench.clock()
            try:
                of_name, wrong = checked_tasks(name, make, problems, check)
            except Exception as error:  # a peer may fail in any way; the sentence is in the report
                result.failed[name] = first_line(error)
                continue
            tasks |= of_name
            result.failed |= {name: wrong} if wrong else {}
            costs.made(name, bench.clock() - start)
        try:
            result.timings = measure(tasks, bench.plan, seed=seed, stopwatch=bench.new_stopwatch())
        except RuntimeError as error:
            result.failed[OURS] = f"while timing: {first_line(error)}"
    return result


def make_problems(point: Point, bench: Bench, seed: int) -> list[Problem]:
    dtype = DTYPES[point.precision]
    return [
        make_problem(point.cell, dtype, DECAY, seed + k, bench.device, point.lengths)
        for k in range(bench.input_sets)
    ]


def checked_tasks(
    name: str, make: Callable[[Problem], Contender], problems: Sequence[Problem], check: Checker
) -> tuple[dict[tuple[str, str], Rotation], str | None]:
    """Both passes of a contender over all input sets, each set called once; and what is wrong with it.

    Who has only its gradients wrong, as loops in bfloat16 have after thousands of steps, is timed forward.
    """
    contenders = [make(problem) for problem in problems]
    tasks = {(name, "forward"): Rotation([c.forward for c in contenders])}
    wrong = None
    try:
        check(name, contenders[0])
        tasks[name, "forward_backward"] = Rotation([c.forward_backward for c in contenders])
    except WrongAnswerError as error:
        if not error.forward_right:
            raise
        wrong = str(error)
    for task in tasks.values():
        for _ in problems:
            task()
    return tasks, wrong


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---------------------------------------------------------------------------------------- figures


def cell_figures(point: Point, found: Measured, rates: floor.Rates) -> report.Document:
    """Of one point: times, ratios, the floor, and its share in the time of the recurrence alone."""
    cell: report.Document = {
        "point": str(point), **point.cell._asdict(), "precision": point.precision, "packed": point.packed,
        "failed": found.failed,
    }  # fmt: skip
    for name in report.PASSES:
        gemm = rates.product_rate(point.precision)
        figures = report.pass_figures(point.cell, name, found.timings, gemm)
        least = floor.step_floor(rates, point.precision, point.rows, point.cell.H, name == "forward_backward")
        figures["floor"] = least
        alone = figures["recurrence"]
        figures["share_of_floor"] = least["floor_s"] * point.cell.T / alone["median_s"] if alone else None
        cell[name] = figures
    return cell


def measure_networks(sizes: Sequence[int], bench: Bench) -> dict[str, Any]:
    """A training step of many small networks under vmap, against one of them."""
    count, batch, steps, inputs, hidden = sizes
    what: dict[str, Any] = dict(zip(("networks", "B", "T", "I", "H"), sizes, strict=True))
    try:
        pair = layer.side_by_side(count, batch, steps, inputs, hidden, bench.device)
        tasks: Mapping[str, Any] = {"together": pair.asked, "one": pair.plain}
        for task in tasks.values():
            task()
        timings = measure(tasks, bench.plan, stopwatch=bench.new_stopwatch())
    except Exception as error:
        return what | {"failed": f"{count} networks under vmap: {first_line(error)}"}
    return what | {
        **{name: timing.figures() for name, timing in timings.items()},
        "ratio": timings["together"].median / timings["one"].median,
    }
