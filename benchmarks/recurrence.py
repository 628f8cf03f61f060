"""`python -m benchmarks recurrence`: the leaky recurrent layer against its peers, over a grid of sizes.

Each point of the grid is a new problem. Every contender's answer is compared with the leaky loop first.
Then all contenders, and the recurrence without its input projection, are timed interleaved (timing.py).

On the CPU a large matrix product is timed beside them, and where the batch has one row, so that nothing is
reused, the rate of the cache that holds the matrix. A wrong answer ends the run.

With `--device cuda` several sets of inputs take turns, device events are the clock, and the limit is a
floor from the GPU's own rates (floor.py). A budget in seconds decides how much is measured (budget.py). A
peer that is wrong or fails is left out with a note; if rnnkernels fails, the run goes on and ends with
status 1.

The file is written after each point.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import floor, layer, report
from .budget import Costs, choose
from .check import TF32_TOLERANCE, Checker, UsageError, WrongAnswerError
from .gpu import tf32_allowed
from .host import CacheRead, Gemm, OtherLoad, matrix_bytes
from .jax_scan import prepare_jax
from .peers import PEERS, RECURRENCE, Recurrence, make_ours, unsuited
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
from .recurrence_report import (
    CACHE,
    GEMM,
    PASSES,
    networks_notes,
    notes,
    pass_figures,
    picture,
    summary,
    tables,
)
from .timing import Bench, Task, Timing, TimingPlan, rotation

__all__ = ["PLAN", "failures", "measure", "networks_notes", "notes", "picture", "tables"]

PLAN = TimingPlan()
DECAY = 0.8
GEMM_SIZE = 2048
BUDGET = 300.0
NETWORKS = (100, 32, 512, 64, 128)  # trained side by side: number, B, T, I, H
QUICK_NETWORKS = (3, 2, 8, 4, 16)


def measure(arguments: argparse.Namespace, bench: Bench) -> report.Document:
    start, quick = bench.clock(), arguments.quick
    chosen = arguments.peers
    if chosen is None:
        chosen = [name for name, peer in PEERS.items() if arguments.device in peer.default_on]
    path = arguments.output / "recurrence.json"
    prepare_jax(arguments.device, torch.get_num_threads())
    if arguments.device == "cpu":
        cells = arguments.grid or (CPU_QUICK_GRID if quick else CPU_GRID)
        points = [Point(cell, arguments.dtype or "float32") for cell in cells]
        size = GEMM_SIZE // 2 if quick else GEMM_SIZE
        return measure_points(points, chosen, bench, seed=arguments.seed, gemm_size=size, path=path)
    if arguments.dtype == "float64":
        raise UsageError("--device cuda supports the dtypes float32 and bfloat16, got float64")
    rates = floor.measure_rates(bench.new_stopwatch(), product_size=2048 if quick else 8192)
    networks = measure_networks(QUICK_NETWORKS if quick else NETWORKS, bench)
    budget = (arguments.budget or BUDGET) - (bench.clock() - start)
    return measure_points(
        gpu_points(arguments), chosen, bench,
        seed=arguments.seed, rates=rates, budget=budget, networks=networks, path=path,
    )  # fmt: skip


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
        for who, why in cell["failed"].items()
        if who in (OURS, RECURRENCE)
    ]
    networks = document.get("networks") or {}
    return found + [why for why in (networks.get("failed"), document["stopped"]) if why]


# -------------------------------------------------------------------------------------- measuring


@dataclass
class Measured:
    """One point: the timings by contender and pass, and why the rest was not timed."""

    point: Point
    timings: dict[tuple[str, str], Timing] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # by contender
    left_out: list[str] = field(default_factory=list)  # peers without time
    cores_of_others: float | None = None


def measure_points(
    points: Sequence[Point],
    wanted: Sequence[str],
    bench: Bench,
    *,
    seed: int = 0,
    gemm_size: int = GEMM_SIZE,
    rates: floor.Rates | None = None,
    budget: float = math.inf,
    networks: report.Document | None = None,
    path: Path | None = None,
) -> report.Document:
    """Measure all points that fit into the budget. With `rates` the limit is the GPU's, else the CPU's."""
    start, costs = bench.clock(), Costs()
    missing = {name: why for name in wanted if (why := PEERS[name].missing())}
    rest = {
        point: [name for name in wanted if name not in missing and unsuited(name, point) is None]
        for point in points
    }
    settings = {"decay": DECAY, "nonlinearity": "relu", "seed": seed, "dtype": points[0].precision}
    document = report.document("recurrence", bench, [], settings)
    document |= {"skipped": missing, "points_left_out": [], "stopped": None}
    gemm = None if rates else Gemm(gemm_size, DTYPES[points[0].precision])
    if rates:
        document["rates"] = asdict(rates)
        document["networks"] = networks
        document["cudnn_takes"] = {name: cudnn_takes(DTYPES[name], bench.device) for name in floor.ELEMENT}
    found: list[Measured] = []
    tried: set[str] = set()
    for number, point in enumerate(points, 1):
        spent = bench.clock() - start
        choice = choose(rest, budget - spent, costs, tried)
        if point not in choice.kept or document["stopped"]:
            document["points_left_out"] = [str(point) for point in rest]
            break
        print(f"[{number}/{len(points)}] {spent:4.0f} s  {point}", file=sys.stderr, flush=True)
        load = OtherLoad()
        peers = choice.kept[point]
        one = measure_point(point, peers, bench, costs, seed + bench.input_sets * number, gemm)
        one.left_out, one.cores_of_others = choice.dropped.get(point, []), load.cores()
        found.append(one)
        tried.update(peers)
        del rest[point]
        document["stopped"] = broken_device(bench.device)
        if gemm:
            fastest = min(min(one.timings[GEMM, GEMM].times) for one in found)
            document["gemm"] = {"size": gemm.size, "best_flops_per_s": gemm.flops / fastest}
        document["cells"] = [cell_figures(one, rates, document.get("gemm")) for one in found]
        document["summary"] = summary(document["cells"])
        if path:
            report.save_json(document, path)
    document["seconds"] = bench.clock() - start
    return document


def cudnn_takes(dtype: torch.dtype, device: str) -> bool:
    """Whether torch gives an nn.RNN of this dtype to cuDNN."""
    return bool(torch.cudnn_is_acceptable(torch.zeros(1, dtype=dtype, device=device)))


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
    point: Point, peers: Sequence[str], bench: Bench, costs: Costs, seed: int, gemm: Gemm | None
) -> Measured:
    """Make, check and time the contenders. On the CPU any failure is raised; on a GPU the others go on."""
    result = Measured(point)
    makers: dict[str, Callable[[Problem], Contender]] = {OURS: make_ours}
    makers |= {name: PEERS[name].make for name in peers} | {RECURRENCE: Recurrence}
    tasks = cpu_limits(point, gemm) if gemm else {}
    with tf32_allowed(point.precision == "tf32"):
        try:
            problems = [
                make_problem(
                    point.cell, DTYPES[point.precision], DECAY, seed + k, bench.device, point.lengths
                )
                for k in range(bench.input_sets)
            ]
            check = Checker(problems[0], TF32_TOLERANCE if point.precision == "tf32" else None)
            for name, make in makers.items():
                start = bench.clock()
                try:
                    tasks |= checked_tasks(name, make, problems, check, result.failed)
                except Exception as error:
                    if gemm:
                        raise
                    result.failed[name] = first_line(error)
                else:
                    costs.made(name, bench.clock() - start)
                if gemm and name in result.failed:
                    raise WrongAnswerError(result.failed[name])
            result.timings = bench.measure(tasks, seed)
        except RuntimeError as error:
            if gemm:
                raise
            result.failed[OURS] = first_line(error)
    return result


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


# ----------------------------------------------------------------------------------------- figures


def cpu_limits(point: Point, gemm: Gemm) -> dict[tuple[str, str], Task]:
    """The tasks that say what the host can do: a matrix product, and reading the matrix if B is 1."""
    cell = point.cell
    limits: dict[tuple[str, str], Task] = {(GEMM, GEMM): gemm}
    if cell.B == 1:
        return limits | {(CACHE, CACHE): CacheRead(cell.H, cell.T, element_size(point))}
    return limits


def element_size(point: Point) -> int:
    """Bytes of an element of the matrix in the kernels, which widen half precision."""
    return torch.promote_types(DTYPES[point.precision], torch.float32).itemsize


def cell_figures(one: Measured, rates: floor.Rates | None, gemm: report.Document | None) -> report.Document:
    """One point: times, ratios, and the recurrence alone compared with its limits."""
    point, cell, timings = one.point, one.point.cell, one.timings
    figures: report.Document = {
        "point": str(point), **cell._asdict(), "precision": point.precision, "packed": point.packed,
        "failed": one.failed, "left_out": one.left_out, "cores_of_others": one.cores_of_others,
    }  # fmt: skip
    rate = rates.product_rate(point.precision) if rates else gemm["best_flops_per_s"] if gemm else math.nan
    for name in PASSES:
        found = figures[name] = pass_figures(cell, name, timings, rate)
        if rates:
            backward = name == "forward_backward"
            least = found["floor"] = floor.step_floor(rates, point.precision, point.rows, cell.H, backward)
            alone = found["recurrence"]
            found["share_of_floor"] = alone and least["floor_s"] * cell.T / alone["median_s"]
    if gemm:
        figures[GEMM] = timings[GEMM, GEMM].figures()
    if (CACHE, CACHE) in timings:
        size, read = cell.T * matrix_bytes(cell.H, element_size(point)), timings[CACHE, CACHE]
        figures[CACHE] = {
            "read": read.figures(),
            "read_bytes_per_s": size / read.median,
            "scan_bytes_per_s": size / timings[RECURRENCE, "forward"].median,
        }
    return figures


def measure_networks(sizes: Sequence[int], bench: Bench) -> dict[str, Any]:
    """A training step of many small networks under vmap, compared with one network."""
    found: dict[str, Any] = dict(zip(("networks", "B", "T", "I", "H"), sizes, strict=True))
    try:
        cell = layer.measure_pair(layer.side_by_side(sizes, bench.device), bench)
    except Exception as error:
        return found | {"failed": f"{sizes[0]} networks under vmap: {first_line(error)}"}
    return found | {"together": cell["asked"], "one": cell["plain"], "ratio": cell["ratio"]}
