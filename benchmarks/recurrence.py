"""`python -m benchmarks recurrence`: the leaky recurrent layer against its peers, over a grid.

Each cell of the grid is a new problem. Every contender's answer is checked first, against the
leaky loop; a wrong one ends the run. Then all contenders, the recurrence without its input
projection, and a large matrix product are timed interleaved (timing.py). With one row there is
nothing to reuse, and the cache that holds the matrix is the limit: there its rate is measured, too.

With `--device cuda` the grid, the peers and the clock are others: gpu_recurrence.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import gpu_recurrence, peers, report
from .check import WrongAnswerError, check
from .jax_scan import prepare_jax
from .machine import CacheRead, Gemm, OtherLoad, environment, matrix_bytes
from .peers import PEERS
from .problem import OURS, Cell, Contender, Problem, make_problem
from .timing import Plan, Task, Timing, measure

GRID = (
    Cell(1, 1000, 32, 128),
    Cell(1, 200, 16, 50),
    Cell(16, 100, 88, 200),
    Cell(16, 100, 8, 64),
    Cell(64, 150, 85, 256),
    Cell(20, 300, 4, 100),
    Cell(32, 100, 256, 512),
    Cell(32, 100, 512, 1024),
    Cell(256, 100, 128, 256),
    Cell(450, 300, 4, 1000),
)
QUICK_GRID = (Cell(1, 200, 16, 50), Cell(16, 100, 8, 64), Cell(16, 100, 88, 200))
DECAY = 0.8
GEMM = "gemm"
CACHE = "cache"
GEMM_SIZE = 2048

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    grid: Sequence[Cell]
    peers: Sequence[str]
    dtype: str
    plan: Plan
    gemm_size: int
    seed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="three small cells, seconds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="of a run with cuda, default 300")
    parser.add_argument("--grid", type=parse_grid, metavar="B,T,I,H;...", help="other cells")
    parser.add_argument("--threads", type=_positive, help="default: what PyTorch takes")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32; with cuda both that and bfloat16")
    parser.add_argument("--repeats", type=_positive, help="rounds of a cell, at most")
    parser.add_argument("--seconds", type=float, help="a cell begins no round after this time")
    parser.add_argument(
        "--peers", type=parse_peers, metavar="NAME,...", help=f"of {','.join(PEERS)}; or none"
    )
    parser.add_argument("--seed", type=int, default=0)
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, default=Path("build/benchmarks"), metavar="DIR")
    output.add_argument("--json", type=Path, metavar="PATH", help="default: DIR/recurrence.json")
    output.add_argument("--picture", type=Path, metavar="PATH", help="default: DIR/recurrence.png")
    output.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def parse_grid(text: str) -> tuple[Cell, ...]:
    cells = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        sizes = [int(size) for size in part.split(",")]
        if len(sizes) != 4 or min(sizes) < 1:
            raise argparse.ArgumentTypeError(f"a cell is B,T,I,H, four positive numbers: {part!r}")
        cells.append(Cell(*sizes))
    if not cells:
        raise argparse.ArgumentTypeError("the grid has no cell")
    return tuple(cells)


def parse_peers(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"no peer {name!r}; there are {', '.join(PEERS)}")
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run(arguments: argparse.Namespace) -> int:
    if arguments.picture and not report.can_draw():
        print("error: --picture needs matplotlib", file=sys.stderr)
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        return gpu_recurrence.run(arguments)
    prepare_jax("cpu", torch.get_num_threads())
    try:
        document = measure_grid(settings_of(arguments))
    except WrongAnswerError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 1
    json_path = arguments.json or arguments.output / "recurrence.json"
    report.save_json(document, json_path)
    print(report.table(document, arguments.markdown))
    written = [json_path]
    if report.can_draw():
        written.append(arguments.picture or arguments.output / "recurrence.png")
        report.picture(document, written[-1])
    print("written:", ", ".join(map(str, written)), file=sys.stderr)
    return 0


def settings_of(arguments: argparse.Namespace) -> Settings:
    quick = arguments.quick
    default = Plan()
    plan = Plan(
        seconds=arguments.seconds or (1.0 if quick else default.seconds),
        rounds=arguments.repeats or (5 if quick else default.rounds),
    )
    chosen = arguments.peers
    if chosen is None:
        chosen = tuple(name for name, peer in PEERS.items() if "cpu" in peer.default_on)
    return Settings(
        grid=arguments.grid or (QUICK_GRID if quick else GRID),
        peers=chosen,
        dtype=arguments.dtype or "float32",
        plan=plan,
        gemm_size=GEMM_SIZE // 2 if quick else GEMM_SIZE,
        seed=arguments.seed,
    )


def measure_grid(settings: Settings) -> report.Document:
    """All cells; the rate of the matrix product is the best of the whole run."""
    missing = {name: PEERS[name].missing() for name in settings.peers}
    skipped = {name: why for name, why in missing.items() if why}
    present = [name for name in settings.peers if name not in skipped]
    dtype = DTYPES[settings.dtype]
    gemm = Gemm(settings.gemm_size, dtype)
    timings, others, start = [], [], time.perf_counter()
    for number, cell in enumerate(settings.grid, 1):
        spent = time.perf_counter() - start
        print(f"[{number}/{len(settings.grid)}] {spent:4.0f} s  {cell}", file=sys.stderr, flush=True)
        load = OtherLoad()
        problem = make_problem(cell, dtype, DECAY, settings.seed + number)
        timings.append(measure_cell(problem, present, gemm, settings.plan, settings.seed))
        others.append(load.cores())
    fastest = min(min(timing[GEMM, GEMM].times) for timing in timings)
    rate = gemm.flops / fastest
    cells = []
    for cell, timing, other in zip(settings.grid, timings, others, strict=True):
        figures: report.Document = dict(cell._asdict())
        for name in report.PASSES:
            figures[name] = report.pass_figures(cell, name, timing, rate)
        figures |= {GEMM: timing[GEMM, GEMM].figures(), "cores_of_others": other}
        if (CACHE, CACHE) in timing:
            figures[CACHE] = cache_figures(cell, dtype, timing)
        cells.append(figures)
    plan = settings.plan
    return {
        "benchmark": "recurrence",
        "environment": environment(torch.get_num_threads()),
        "settings": {
            "dtype": settings.dtype,
            "decay": DECAY,
            "nonlinearity": "relu",
            "seed": settings.seed,
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "slow_s": plan.slow,
            "slow_calls": plan.slow_calls,
        },
        "gemm": {"size": gemm.size, "best_flops_per_s": rate},
        "skipped": skipped,
        "cells": cells,
        "summary": report.summary(cells),
    }


def measure_cell(
    problem: Problem, chosen: Sequence[str], gemm: Gemm, plan: Plan, seed: int
) -> dict[tuple[str, str], Timing]:
    """Checks, then times one cell; keys are (contender, pass)."""
    contenders: dict[str, Contender] = {OURS: peers.make_ours(problem)}
    contenders |= {name: PEERS[name].make(problem) for name in chosen}
    contenders[report.RECURRENCE] = peers.Recurrence(problem)
    check(problem, contenders)
    tasks: dict[tuple[str, str], Task] = {(GEMM, GEMM): gemm}
    if problem.cell.B == 1:
        cell = problem.cell
        tasks[CACHE, CACHE] = CacheRead(cell.H, cell.T, computed_size(problem.x.dtype))
    for name, contender in contenders.items():
        tasks[name, "forward"] = contender.forward
        tasks[name, "forward_backward"] = contender.forward_backward
    return measure(tasks, plan, seed=seed)


def cache_figures(cell: Cell, dtype: torch.dtype, timing: dict[tuple[str, str], Timing]) -> report.Document:
    """Bytes of the matrix for each second, of the forward walk and of reading alone."""
    size = cell.T * matrix_bytes(cell.H, computed_size(dtype))
    read = timing[CACHE, CACHE]
    walk = size / timing[report.RECURRENCE, "forward"].median
    rate = size / read.median
    return {
        "read": read.figures(),
        "read_bytes_per_s": rate,
        "walk_bytes_per_s": walk,
    }


def computed_size(dtype: torch.dtype) -> int:
    """Of an element of the matrix as the walk has it: half precision is widened."""
    return torch.promote_types(dtype, torch.float32).itemsize
