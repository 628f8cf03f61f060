"""`python -m benchmarks recurrence`: the leaky recurrent layer against its peers, over a grid of sizes.

Each point of the grid is a new problem. Every contender's answer is compared with the leaky loop first. Then
all contenders, and the recurrence without its input projection, are timed interleaved (timing.py). A peer
that is wrong or fails is left out with a note; if rnnkernels is wrong or fails, the run goes on and ends with
status 1.

On the CPU a large matrix product is timed beside them, and where the batch has one row, so that nothing is
reused, the rate of the cache that holds the matrix. With `--device cuda` several sets of inputs take turns,
device events are the clock, and the limit is a floor from the GPU's own rates (floor.py). There `--budget`
limits the run: no point begins after that time, and a peer is left out before making it takes more than
a quarter of the budget.

The file is written after each point.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import rnnkernels._C

from . import floor, report
from .check import TF32_TOLERANCE, Checker, UsageError, WrongAnswerError
from .gpu import tf32_allowed
from .host import OtherLoad
from .jax_scan import prepare_jax
from .peers import PEERS, RECURRENCE, Recurrence, make_ours, suits
from .problem import (
    CPU_GRID,
    CPU_QUICK_GRID,
    DTYPES,
    GPU_QUICK_GRID,
    OURS,
    Contender,
    Point,
    Problem,
    gpu_grid,
    make_problem,
)
from .recurrence_report import CACHE, GEMM, PASSES, notes, picture, tables
from .timing import Bench, Task, Timing, TimingPlan, rotation

__all__ = ["PLAN", "failures", "measure", "notes", "picture", "tables"]

PLAN = TimingPlan()
DECAY = 0.8
GEMM_SIZE = 2048
SHARE = 0.25  # of the budget that making one peer may take

Timings = dict[tuple[str, str], Timing]  # by contender and pass


def measure(arguments: argparse.Namespace, bench: Bench) -> report.Document:
    start, quick, on_gpu = bench.clock(), arguments.quick, arguments.device == "cuda"
    if on_gpu and arguments.dtype == "float64":
        raise UsageError("--device cuda supports the dtypes float32 and bfloat16, got float64")
    names = chosen_peers(arguments)
    path = arguments.output / "recurrence.json"
    prepare_jax(arguments.device, torch.get_num_threads())
    if not on_gpu:
        cells = arguments.grid or (CPU_QUICK_GRID if quick else CPU_GRID)
        points = [Point(cell, arguments.dtype or "float32") for cell in cells]
        return measure_points(points, names, bench, gemm_size=1024 if quick else GEMM_SIZE, path=path)
    rates = floor.measure_rates(bench.new_stopwatch(), product_size=2048 if quick else 8192)
    budget = arguments.budget - (bench.clock() - start)
    return measure_points(gpu_points(arguments), names, bench, rates=rates, budget=budget, path=path)


def chosen_peers(arguments: argparse.Namespace) -> list[str]:
    if arguments.peers is None:
        return [name for name, peer in PEERS.items() if arguments.device in peer.devices]
    names = [] if arguments.peers == "none" else [name.strip() for name in arguments.peers.split(",")]
    if unknown := [name for name in names if name not in PEERS]:
        raise UsageError(f"--peers: no peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    return names


def gpu_points(arguments: argparse.Namespace) -> Sequence[Point]:
    if arguments.grid:
        precisions = [arguments.dtype] if arguments.dtype else ["float32", "bfloat16"]
        return [Point(cell, name) for cell in arguments.grid for name in precisions]
    if arguments.quick:
        return GPU_QUICK_GRID
    return gpu_grid([arguments.dtype]) if arguments.dtype else gpu_grid()


def failures(document: report.Document) -> list[str]:
    """The errors of rnnkernels itself; a peer that fails does not make the run fail."""
    found = [
        f"{cell['point']}: {why}"
        for cell in document["cells"]
        for contender, why in cell["failed"].items()
        if contender in (OURS, RECURRENCE)
    ]
    return found + ([document["stopped"]] if document["stopped"] else [])


def measure_points(
    points: Sequence[Point],
    names: Sequence[str],
    bench: Bench,
    *,
    gemm_size: int = GEMM_SIZE,
    rates: floor.Rates | None = None,
    budget: float = math.inf,
    path: Path | None = None,
) -> report.Document:
    """Measure all points that fit into the budget. With `rates` the limit is the GPU's, else the CPU's."""
    start, spent = bench.clock(), defaultdict[str, float](float)  # seconds in which each peer was made
    skipped = {name: why for name in names if (why := PEERS[name].missing())}
    settings = {"decay": DECAY, "nonlinearity": "relu", "dtype": points[0].precision}
    document = report.document("recurrence", bench, [], settings)
    document |= {"skipped": skipped, "points_left_out": [], "stopped": None}
    gemm = None
    if rates:
        document |= {"rates": asdict(rates), "cudnn_takes": cudnn_takes(bench.device)}
    else:
        gemm = Gemm(gemm_size, DTYPES[points[0].precision])
        document["gemm"] = {"size": gemm_size, "best_flops_per_s": 0.0}
    for number, point in enumerate(points, 1):
        seconds = bench.clock() - start
        if seconds >= budget or document["stopped"]:
            document["points_left_out"] = [str(point) for point in points[number - 1 :]]
            break
        print(f"[{number}/{len(points)}] {seconds:4.0f} s  {point}", file=sys.stderr, flush=True)
        load = OtherLoad()
        suited = [name for name in names if name not in skipped and suits(name, point)]
        peers = [name for name in suited if spent[name] + PEERS[name].seconds <= SHARE * budget]
        timings, failed = measure_point(point, peers, bench, gemm, spent, bench.input_sets * number)
        cell = cell_figures(point, timings, rates)
        cell["left_out"] = [name for name in suited if name not in peers]
        document["cells"].append(cell | {"failed": failed, "cores_of_others": load.cores()})
        document["stopped"] = broken_device(bench.device)
        if gemm and timings:
            rate = gemm.flops / min(timings[GEMM, GEMM].times)
            document["gemm"]["best_flops_per_s"] = max(rate, document["gemm"]["best_flops_per_s"])
        if path:
            report.save_json(document, path)
    return document


def cudnn_takes(device: str) -> dict[str, bool]:
    """Whether torch gives an nn.RNN to cuDNN, by precision."""
    zeros = {name: torch.zeros(1, dtype=DTYPES[name], device=device) for name in floor.ELEMENT}
    return {name: bool(torch.cudnn_is_acceptable(x)) for name, x in zeros.items()}


def broken_device(device: str) -> str | None:
    """The device's error after a fault in a kernel; this process can then use it no more."""
    try:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
    except RuntimeError as error:
        return f"the device no longer answers: {first_line(error)}"
    return None


def measure_point(
    point: Point, peers: Sequence[str], bench: Bench, gemm: Gemm | None, spent: dict[str, float], seed: int
) -> tuple[Timings, dict[str, str]]:
    """The timings of all contenders whose answers are right, and why the others have none."""
    failed: dict[str, str] = {}
    timings: Timings = {}
    makers: dict[str, Callable[[Problem], Contender]] = {OURS: make_ours}
    makers |= {name: PEERS[name].make for name in peers} | {RECURRENCE: Recurrence}
    tasks = cpu_limits(point, gemm) if gemm else {}
    dtype, sets = DTYPES[point.precision], range(seed, seed + bench.input_sets)
    with tf32_allowed(point.precision == "tf32"):
        try:
            problems = [
                make_problem(point.cell, dtype, DECAY, each, bench.device, point.lengths) for each in sets
            ]
            check = Checker(problems[0], TF32_TOLERANCE if point.precision == "tf32" else None)
            for name, make in makers.items():
                begin = bench.clock()
                try:
                    tasks |= checked_tasks(name, make, problems, check, failed)
                except Exception as error:
                    failed[name] = first_line(error)
                spent[name] += bench.clock() - begin
            timings = bench.measure(tasks)
        except RuntimeError as error:
            failed[OURS] = first_line(error)
    return timings, failed


def checked_tasks(
    name: str,
    make: Callable[[Problem], Contender],
    problems: Sequence[Problem],
    check: Checker,
    failed: dict[str, str],
) -> dict[tuple[str, str], Task]:
    """Both passes of a contender over all input sets, each of which is called once.

    If only the gradients are wrong, as those of bfloat16 loops after thousands of steps, forward is timed.
    """
    contenders = [make(problem) for problem in problems]
    tasks = {(name, "forward"): rotation([c.forward for c in contenders])}
    try:
        check(name, contenders[0])
        tasks[name, "forward_backward"] = rotation([c.forward_backward for c in contenders])
    except WrongAnswerError as error:
        if not error.forward_right:
            raise
        failed[name] = str(error)
    for contender in contenders:
        contender.forward()
    if name not in failed:
        for contender in contenders[1:]:  # the check has called the first one
            contender.forward_backward()
    return tasks


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---------------------------------------------------------------------------------------- limits


class Gemm:
    """A large square matrix product by torch's library: the rate that a recurrence is compared with."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.flops = 2.0 * size**3
        a, b = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)
        self.task = partial(torch.mm, a, b, out=torch.empty_like(a))


def cpu_limits(point: Point, gemm: Gemm) -> dict[tuple[str, str], Task]:
    """What the host can do: a matrix product, and one thread that only reads the matrix, if B is 1."""
    limits: dict[tuple[str, str], Task] = {(GEMM, GEMM): gemm.task}
    if point.cell.B == 1:
        limits[CACHE, CACHE] = partial(rnnkernels._C.read_memory, matrix_bytes(point), point.cell.T)
    return limits


def matrix_bytes(point: Point) -> int:
    """Size of W_hh in the kernels: in panels of 16 columns, half precision widened."""
    element = torch.promote_types(DTYPES[point.precision], torch.float32).itemsize
    return element * point.cell.H * (-(-point.cell.H // 16) * 16)


def cell_figures(point: Point, timings: Timings, rates: floor.Rates | None) -> report.Document:
    """The times of one point and its limits. Ratios are made from them in recurrence_report.py."""
    cell = point.cell
    figures: report.Document = {
        "point": str(point), **cell._asdict(), "precision": point.precision, "packed": point.packed,
    }  # fmt: skip
    for name in PASSES:
        times = {contender: t.figures() for (contender, which), t in timings.items() if which == name}
        figures[name] = {"recurrence": times.pop(RECURRENCE, None), "times": times}
        if rates:
            backward = name == "forward_backward"
            least = floor.step_floor(rates, point.precision, point.rows, cell.H, backward)
            figures[name]["floor"] = least
    if (GEMM, GEMM) in timings:
        figures[GEMM] = timings[GEMM, GEMM].figures()
    if (CACHE, CACHE) in timings:
        read = timings[CACHE, CACHE]
        figures[CACHE] = {
            "read": read.figures(),
            "read_bytes_per_s": cell.T * matrix_bytes(point) / read.median,
        }
    return figures
