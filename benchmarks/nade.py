"""`python -m benchmarks nade`: NADE's log-likelihood with its gradients, and draws, against PyTorch.

Contenders: rnnkernels; the loop of torch's operations over the D units, which is what rnnkernels falls back
on; that loop compiled; and what nade_peers.py makes of the equations. Each is checked against the loop in
float64, then all are timed interleaved (timing.py). What a call adds to memory at its most is measured in a
process for each contender (memory.py); with `--device cuda` torch's allocator says it, and the clock is
the device's.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch._inductor.config
from torch import Tensor

from . import nade_peers, options, report
from .bench import Bench, cpu_bench, cuda_bench
from .card import no_card
from .machine import OtherLoad, environment
from .memory import MEGABYTE, ROOT, resident
from .timing import Plan, Rotation, Task, Timing, measure, processor_clock

OURS, LOOP, COMPILED = "rnnkernels", "loop", "compiled"
MUSIC = 4 / 88  # notes that sound at a time
TOLERANCE = 1e-5  # of the largest magnitude
LEAST_SAME = 0.99  # of rows drawn: a rounding may decide a unit, and all behind it
WARM_ROWS = 16  # of the call before the one whose memory is measured

Function = Callable[..., Tensor]


class Case(NamedTuple):
    rows: int  # N
    visible: int  # D
    hidden: int  # H
    ones: float  # share of v


CASES = (
    Case(2048, 88, 150, MUSIC),
    Case(2048, 88, 150, 0.5),
    Case(32, 88, 150, MUSIC),
    Case(2048, 88, 50, MUSIC),
    Case(2048, 88, 512, MUSIC),
)
QUICK = (Case(40, 7, 5, 0.3),)
COMPILED_FOR = CASES[0]  # another N or H is compiled anew, for minutes


def _ours(*arguments: Tensor) -> Tensor:
    import rnnkernels.functional  # not before __main__ has settled which one

    return rnnkernels.functional.nade_log_prob(*arguments)


def _loop(*arguments: Tensor) -> Tensor:
    from rnnkernels.outputs import _nade_composite

    return _nade_composite.nade(*arguments)[0]


def _our_draws(generator: torch.Generator | None, *arguments: Tensor) -> Tensor:
    import rnnkernels.functional

    return rnnkernels.functional.nade_sample(*arguments, generator=generator)[0]


def _loop_draws(generator: torch.Generator | None, *arguments: Tensor) -> Tensor:
    from rnnkernels.outputs import _nade_composite

    uniform = torch.rand(arguments[0].shape, generator=generator, device=arguments[0].device)
    return _nade_composite.nade_sample(uniform, *arguments)[0]


LOG_PROB: dict[str, Function] = {
    OURS: _ours,
    LOOP: _loop,
    "segments": nade_peers.segments,
    "by hand": nade_peers.loop_by_hand,
    "at once": nade_peers.all_at_once,
}
DRAWS: dict[str, Function] = {OURS: _our_draws, LOOP: _loop_draws}


def contenders(case: Case, compiles: bool) -> dict[str, Function]:
    return LOG_PROB | ({COMPILED: torch.compile(_loop)} if compiles and case == COMPILED_FOR else {})


def make_arguments(
    case: Case, device: str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    """v, bool; and both biases and both weights."""
    chance = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=chance).to(device, dtype).requires_grad_()

    v = torch.rand(case.rows, case.visible, generator=chance) < case.ones
    biases = [normal(case.rows, case.visible), normal(case.rows, case.hidden)]
    weights = [normal(case.visible, case.hidden) for _ in range(2)]
    with torch.no_grad():
        biases[0] += math.log(case.ones / (1 - case.ones))  # so that draws have about as many
        weights[1] /= case.hidden**0.5
    return v.to(device), [*biases, *weights]


def step(function: Function, v: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """log p, and the gradients of its sum."""
    log_prob = function(v, *tensors)
    return [log_prob.detach(), *torch.autograd.grad(log_prob.sum(), tensors)]


def check(name: str, function: Function, case: Case, device: str = "cpu") -> None:
    """Raises ValueError where a contender's answers are not the loop's."""
    found = step(function, *make_arguments(case, device))
    expected = step(_loop, *make_arguments(case, device, dtype=torch.float64))
    for what, x, y in zip(("log p", "d b", "d c", "d W", "d V"), found, expected, strict=True):
        error = float((x - y).abs().max() / y.abs().max())
        if not error <= TOLERANCE:
            raise ValueError(f"{name}: {what} differs from the loop in float64 by {error:.2g}")


def check_draws(name: str, function: Function, case: Case, device: str = "cpu") -> None:
    """Raises ValueError where a contender does not draw what the loop draws with the same numbers."""
    _, tensors = make_arguments(case, device)
    found, expected = (f(torch.Generator(device).manual_seed(1), *tensors) for f in (function, _loop_draws))
    same = float((found == expected).all(-1).float().mean())
    if same < LEAST_SAME:
        raise ValueError(f"{name}: {100 * (1 - same):.0f} % of the rows drawn are not the loop's")


# --- Memory --------------------------------------------------------------------------------------------


def added_bytes(name: str, case: Case) -> int:
    """What forward and backward add to this process's memory at their most."""
    function = LOG_PROB[name]
    step(function, *make_arguments(case._replace(rows=WARM_ROWS)))  # what is loaded and set up once
    arguments = make_arguments(case)
    before = resident("VmRSS")
    step(function, *arguments)
    return resident("VmHWM") - before


def measured_bytes(name: str, case: Case, device: str) -> int:
    if device == "cuda":
        function, arguments = LOG_PROB[name], make_arguments(case, device)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(function, *arguments)
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, "-m", "benchmarks", "nade", "--threads", str(torch.get_num_threads())]
    child = subprocess.run(
        [*command, "--case", json.dumps([name, *case])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(child.stdout)


# --- Time ----------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="time one thread on its processor, for a machine that others use as well",
    )
    parser.add_argument("--case", help="measure one contender's memory in this process (JSON), print bytes")


def run(arguments: argparse.Namespace) -> int:
    if arguments.device == "cuda" and (why := no_card()):
        print(f"error: {why}", file=sys.stderr)
        return 2
    if arguments.case is not None:
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        name, *case = json.loads(arguments.case)
        print(added_bytes(name, Case(*case)))
        return 0

    if arguments.processor_time and (arguments.threads != 1 or arguments.device != "cpu"):
        print("error: --processor-time needs --threads 1 on the CPU", file=sys.stderr)
        return 2

    def measure_on_device(quick: bool, plan: Plan) -> report.Document:
        bench = cuda_bench(quick) if arguments.device == "cuda" else cpu_bench(plan)
        if arguments.processor_time:
            bench = replace(bench, new_stopwatch=lambda: processor_clock)
        document = measure_cases(quick, bench)
        document["settings"]["clock"] = "processor" if arguments.processor_time else bench.device
        return document

    return options.run(arguments, measure_on_device, rows, Plan(seconds=10.0))


def rotating(make: Callable[[Tensor, list[Tensor]], Task], case: Case, bench: Bench) -> Task:
    """A contender's task, on arguments of its own for each set."""
    tasks = [make(*make_arguments(case, bench.device, seed)) for seed in range(bench.input_sets)]
    return Rotation(tasks) if len(tasks) > 1 else tasks[0]


def measure_cases(quick: bool, bench: Bench) -> report.Document:
    cells = []
    for case in QUICK if quick else CASES:
        print(case, file=sys.stderr, flush=True)
        load = OtherLoad()
        log_prob, compile_seconds = measure_log_prob(case, quick, bench)
        draws = measure_draws(case, bench)
        # A small call fits into what the process has already.
        named = () if quick else tuple(LOG_PROB)
        cells.append(
            {
                **case._asdict(),
                "log_prob": {name: timing.figures() for name, timing in log_prob.items()},
                "draws": {name: timing.figures() for name, timing in draws.items()},
                "peak_bytes": {name: measured_bytes(name, case, bench.device) for name in named},
                "compile_seconds": compile_seconds,
                "cores_of_others": load.cores(),
            }
        )
    return {
        "benchmark": "nade",
        "device": bench.device,
        "environment": environment(torch.get_num_threads(), bench.device),
        "settings": {"rounds": bench.plan.rounds, "seconds": bench.plan.seconds},
        "cells": cells,
        "notes": notes(cells),
    }


def measure_log_prob(case: Case, quick: bool, bench: Bench) -> tuple[dict[str, Timing], float | None]:
    """Forward and backward of every contender; and how long the compiled one took to compile."""
    tasks: dict[str, Task] = {}
    seconds = None
    for name, function in contenders(case, not quick and bench.device == "cpu").items():
        if name == COMPILED:
            seconds = compile_seconds(function, case, bench.device)
        try:
            check(name, function, case, bench.device)
        except ValueError as error:
            if name in (OURS, LOOP):
                raise
            print(f"left out: {error}", file=sys.stderr)
            continue

        def task(v: Tensor, tensors: list[Tensor], function: Function = function) -> Task:
            return lambda: step(function, v, tensors)

        tasks[name] = rotating(task, case, bench)
    return measure(tasks, bench.plan, stopwatch=bench.new_stopwatch()), seconds


def compile_seconds(function: Function, case: Case, device: str) -> float:
    """Of the first call, forward and backward, with nothing of earlier runs."""
    begin = time.perf_counter()
    with torch._inductor.config.patch(force_disable_caches=True):
        step(function, *make_arguments(case, device))
    return time.perf_counter() - begin


def measure_draws(case: Case, bench: Bench) -> dict[str, Timing]:
    tasks: dict[str, Task] = {}
    for name, function in DRAWS.items():
        check_draws(name, function, case, bench.device)

        def task(_v: Tensor, tensors: list[Tensor], function: Function = function) -> Task:
            return lambda: function(None, *tensors)

        tasks[name] = rotating(task, case, bench)
    return measure(tasks, bench.plan, stopwatch=bench.new_stopwatch())


# --- The table -----------------------------------------------------------------------------------------


def notes(cells: Sequence[report.Document]) -> list[str]:
    over_ours = [cell["log_prob"][LOOP]["median_s"] / cell["log_prob"][OURS]["median_s"] for cell in cells]
    said = [f"NADE: {report.ratio_text(report.geometric_mean(over_ours))} the loop in the geometric mean"]
    seconds = [cell["compile_seconds"] for cell in cells if cell["compile_seconds"] is not None]
    if seconds:
        said.append(f"the compiled loop's first call, forward and backward, took {max(seconds):.0f} s")
    return said


def rows(document: report.Document) -> list[list[str]]:
    """Milliseconds; the loop and the best other over ours; and what forward and backward add to memory."""
    names = list(dict.fromkeys(name for cell in document["cells"] for name in (*LOG_PROB, *cell["log_prob"])))
    lines = [["ms", "ones", *names, "loop / ours", "best / ours", "MB", "of the loop's"]]
    for what in ("log_prob", "draws"):
        for cell in document["cells"]:
            medians = {name: figures["median_s"] for name, figures in cell[what].items()}
            best = min(median for name, median in medians.items() if name != OURS)
            peaks = cell["peak_bytes"] if what == "log_prob" else {}
            lines.append(
                [
                    f"{'forward + backward' if what == 'log_prob' else 'draws'}, N {cell['rows']}, "
                    f"D {cell['visible']}, H {cell['hidden']}",
                    f"{100 * cell['ones']:.0f} %",
                    *(f"{1e3 * medians[name]:.3g}" if name in medians else "-" for name in names),
                    *(report.ratio_text(other / medians[OURS]) for other in (medians[LOOP], best)),
                    f"{peaks[OURS] / MEGABYTE:.1f}" if peaks else "-",
                    f"{100 * peaks[OURS] / peaks[LOOP]:.1f} %" if peaks else "-",
                ]
            )
    return lines
