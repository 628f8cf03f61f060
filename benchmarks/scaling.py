"""`python -m benchmarks scaling`: how the time of a training step grows with T, B, H and the threads.

One size is varied at a time around the middle of the grid, forward and backward, input projection included.
All points are timed interleaved (timing.py). Each panel of the picture has a line for the largest point's
time per multiply-add: on the line cost grows as the arithmetic does, above it a fixed cost shows."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch

from . import report
from .host import OtherLoad
from .peers import make_ours
from .problem import Cell, make_problem
from .timing import Bench, Task, TimingPlan

PLAN = TimingPlan(seconds=8.0)
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
    found = [
        Point(axis, value, MIDDLE._replace(**{axis: value}), threads)
        for axis, values in (QUICK_AXES if quick else AXES).items()
        for value in values
    ]
    return found + [Point(THREADS, n, MIDDLE, n) for n in range(1, threads + 1)]


def _task(point: Point) -> Task:
    step = make_ours(make_problem(point.cell, torch.float32, DECAY, 0)).forward_backward

    def run() -> None:
        if torch.get_num_threads() != point.threads:
            torch.set_num_threads(point.threads)
        step()

    run()
    return run


def measure(arguments: argparse.Namespace, bench: Bench) -> report.Document:
    threads = torch.get_num_threads()
    tasks = {point: _task(point) for point in points(arguments.quick, threads)}
    load = OtherLoad()
    timed = bench.figures(tasks)
    torch.set_num_threads(threads)
    cores = load.cores()
    cells = [
        {
            **point._asdict(),
            "cell": point.cell._asdict(),
            "multiply_adds": point.multiply_adds(),
            "step": figures,
            "cores_of_others": cores,
        }
        for point, figures in timed.items()
    ]
    return report.document("scaling", bench, cells)


def tables(document: report.Document) -> list[report.Table]:
    rows = [["varied", "", "ms", "ns per 1000 multiply-adds"]]
    for cell in document["cells"]:
        seconds = cell["step"]["median_s"]
        each = 1e12 * seconds / cell["multiply_adds"]
        rows.append([cell["axis"], str(cell["value"]), f"{1e3 * seconds:.3f}", f"{each:.1f}"])
    return [report.Table(f"forward + backward around {MIDDLE}", rows, 2)]


def picture(document: report.Document) -> Any:
    """One panel per size."""
    drawn = report.figure(9, 3)
    axes = list(dict.fromkeys(cell["axis"] for cell in document["cells"]))
    for panel, axis in zip(drawn.subplots(1, len(axes), sharey=True), axes, strict=True):
        cells = [cell for cell in document["cells"] if cell["axis"] == axis]
        values = [cell["value"] for cell in cells]
        times = [1e3 * cell["step"]["median_s"] for cell in cells]
        panel.loglog(values, times, "ko-", markersize=4)
        ideal = [times[-1] / cells[-1]["multiply_adds"] * cell["multiply_adds"] for cell in cells]
        if axis == THREADS:
            ideal = [times[0] / value for value in values]
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
    env = document["environment"]
    where = f"{env['cpu']}, {env['threads']} threads, float32"
    title = f"around {MIDDLE}; blue: growth of the arithmetic.  {where}"
    drawn.suptitle(title, fontsize=9, color=report.GREY)
    return drawn
