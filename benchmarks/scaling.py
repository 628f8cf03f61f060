"""`python -m benchmarks scaling`: how the time of a training step grows with T, B, H and the threads.

One size is varied at a time around the middle of the grid, forward and backward, input projection
included; all points are timed interleaved (timing.py). The picture has a panel for each size, and in it
the line on which the largest point's time for each multiply-add lies: where points lie on it, cost grows
as the arithmetic does; where they lie above it, a fixed cost shows.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import options, peers, report
from .machine import OtherLoad, environment
from .problem import Cell, make_problem
from .timing import Plan, Task, measure

MIDDLE = Cell(16, 100, 32, 128)
AXES = {
    "T": (1, 3, 10, 30, 100, 300, 1000, 3000),
    "B": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "H": (16, 32, 64, 128, 256, 512, 1024),
}
QUICK_AXES = {"T": (1, 10), "B": (1, 4), "H": (16, 32)}
THREADS = "threads"
DECAY = 0.8


class Point(NamedTuple):
    axis: str
    value: int
    cell: Cell
    threads: int

    def multiply_adds(self) -> float:
        """Forward and backward: three products with W_hh, two with W_ih."""
        cell = self.cell
        return float(cell.T * cell.B * cell.H * (3 * cell.H + 2 * cell.I))


def points(quick: bool, threads: int) -> list[Point]:
    axes = QUICK_AXES if quick else AXES
    found = [
        Point(axis, value, MIDDLE._replace(**{axis: value}), threads)
        for axis, values in axes.items()
        for value in values
    ]
    return found + [Point(THREADS, n, MIDDLE, n) for n in range(1, threads + 1)]


def _task(point: Point) -> Task:
    contender = peers.make_ours(make_problem(point.cell, torch.float32, DECAY, 0))
    step: Callable[[], object] = contender.forward_backward

    def run() -> None:
        if torch.get_num_threads() != point.threads:
            torch.set_num_threads(point.threads)
        step()

    return run


def run(arguments: argparse.Namespace) -> int:
    return options.run(arguments, measure_points, rows, Plan(seconds=8.0), picture)


def measure_points(quick: bool, plan: Plan) -> report.Document:
    threads = torch.get_num_threads()
    chosen = points(quick, threads)
    print(f"{len(chosen)} points", file=sys.stderr, flush=True)
    tasks = {point: _task(point) for point in chosen}
    for task in tasks.values():
        task()
    load = OtherLoad()
    timings = measure(tasks, plan)
    torch.set_num_threads(threads)
    cells = [
        {
            **point._asdict(),
            "cell": point.cell._asdict(),
            "multiply_adds": point.multiply_adds(),
            "step": timings[point].figures(),
            "cores_of_others": load.cores(),
        }
        for point in chosen
    ]
    return {"benchmark": "scaling", "environment": environment(threads), "cells": cells}


def rows(document: report.Document) -> list[list[str]]:
    lines = [["varied", "", "ms", "ns for 1000 multiply-adds"]]
    for cell in document["cells"]:
        seconds = cell["step"]["median_s"]
        each = 1e12 * seconds / cell["multiply_adds"]
        lines.append([cell["axis"], str(cell["value"]), f"{1e3 * seconds:.3f}", f"{each:.1f}"])
    return lines


def picture(document: report.Document, path: Path) -> None:
    """A panel for each size; for about 900 pixels of width."""
    figure_class: Any = importlib.import_module("matplotlib.figure").Figure
    figure = figure_class(figsize=(9, 3), dpi=200, layout="constrained")
    axes = list(dict.fromkeys(cell["axis"] for cell in document["cells"]))
    for panel, axis in zip(figure.subplots(1, len(axes), sharey=True), axes, strict=True):
        cells = [cell for cell in document["cells"] if cell["axis"] == axis]
        values = [cell["value"] for cell in cells]
        panel.loglog(values, [1e3 * cell["step"]["median_s"] for cell in cells], "ko-", markersize=4)
        last = cells[-1]
        each = 1e3 * last["step"]["median_s"] / last["multiply_adds"]
        ideal = [each * cell["multiply_adds"] for cell in cells]
        if axis == THREADS:
            first = 1e3 * cells[0]["step"]["median_s"]
            ideal = [first / cell["value"] for cell in cells]
        panel.loglog(values, ideal, color="#0072B2", linewidth=1)
        panel.set_xlabel(axis)
        panel.grid(color="#dddddd", linewidth=0.6)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        if axis == THREADS:
            panel.set_xticks(values, [str(value) for value in values])
            panel.minorticks_off()
        if axis == axes[0]:
            panel.set_ylabel("ms, forward + backward")
    env, cell = document["environment"], MIDDLE
    figure.suptitle(
        f"around {cell}; blue: as the arithmetic grows.  {env['cpu']}, {env['threads']} threads, float32",
        fontsize=9,
        color="#666666",
    )
    figure.savefig(path)
