"""`python -m benchmarks nade`: NADE's log-likelihood with its gradients, and its draws, compared with
PyTorch.

The contenders are rnnkernels, its fallback (a loop of torch operations over the D units), that loop
compiled, and the functions of nade_peers.py. Each is compared with the loop in float64, then all are timed
interleaved (timing.py). The peak memory that a call adds is measured in one process per contender
(memory.py), or with `--device cuda` by torch's allocator."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch._inductor.config
from torch import Tensor

import rnnkernels.functional
from rnnkernels.outputs import _nade_composite

from . import nade_peers, report
from .check import WrongAnswerError
from .memory import MEGABYTE, in_new_process, resident
from .timing import Bench, Task, TimingPlan

PLAN = TimingPlan(seconds=10.0)
OURS, LOOP, COMPILED = "rnnkernels", "loop", "compiled"
MUSIC = 4 / 88  # share of notes that sound at once
TOLERANCE = 1e-5  # relative to the largest magnitude
LEAST_SAME = 0.99  # share of drawn rows; rounding may decide one unit and with it all later ones
WARM_ROWS = 16  # of the call before the one whose memory is measured

Function = Callable[..., Tensor]


class Case(NamedTuple):
    rows: int  # N
    visible: int  # D
    hidden: int  # H
    ones: float  # share of ones in v

    def __str__(self) -> str:
        return f"N {self.rows}, D {self.visible}, H {self.hidden}"


CASES = (
    Case(2048, 88, 150, MUSIC),
    Case(2048, 88, 150, 0.5),
    Case(32, 88, 150, MUSIC),
    Case(2048, 88, 50, MUSIC),
    Case(2048, 88, 512, MUSIC),
)
QUICK = (Case(40, 7, 5, 0.3),)
COMPILED_FOR = CASES[0]  # each other N or H would take minutes to compile


def _loop(*arguments: Tensor) -> Tensor:
    return _nade_composite.nade(*arguments)[0]


def _our_draws(generator: torch.Generator | None, *arguments: Tensor) -> Tensor:
    return rnnkernels.functional.nade_sample(*arguments, generator=generator)[0]


def _loop_draws(generator: torch.Generator | None, *arguments: Tensor) -> Tensor:
    uniform = torch.rand(arguments[0].shape, generator=generator, device=arguments[0].device)
    return _nade_composite.nade_sample(uniform, *arguments)[0]


LOG_PROB: dict[str, Function] = {
    OURS: rnnkernels.functional.nade_log_prob,
    LOOP: _loop,
    "segments": nade_peers.segments,
    "by hand": nade_peers.loop_by_hand,
    "at once": nade_peers.all_at_once,
}
DRAWS: dict[str, Function] = {OURS: _our_draws, LOOP: _loop_draws}


def make_arguments(
    case: Case, device: str = "cpu", seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    """v (bool), and the list of both biases and both weights."""
    chance = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=chance).to(device, dtype).requires_grad_()

    v = torch.rand(case.rows, case.visible, generator=chance) < case.ones
    biases = [normal(case.rows, case.visible), normal(case.rows, case.hidden)]
    weights = [normal(case.visible, case.hidden) for _ in range(2)]
    with torch.no_grad():
        biases[0] += math.log(case.ones / (1 - case.ones))  # so that draws have about as many ones
        weights[1] /= case.hidden**0.5
    return v.to(device), [*biases, *weights]


def step(function: Function, v: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """log p, and the gradients of its sum."""
    log_prob = function(v, *tensors)
    return [log_prob.detach(), *torch.autograd.grad(log_prob.sum(), tensors)]


def check(name: str, function: Function, case: Case, device: str = "cpu") -> None:
    """Raise WrongAnswerError unless a contender's answers are those of the loop in float64."""
    found = step(function, *make_arguments(case, device))
    expected = step(_loop, *make_arguments(case, device, dtype=torch.float64))
    for what, x, y in zip(("log p", "d b", "d c", "d W", "d V"), found, expected, strict=True):
        error = float((x - y).abs().max() / y.abs().max())
        if not error <= TOLERANCE:
            raise WrongAnswerError(f"{name}: {what} differs from the loop in float64 by {error:.2g}")


def check_draws(name: str, function: Function, case: Case, device: str = "cpu") -> None:
    """Raise WrongAnswerError unless a contender draws what the loop draws from the same random numbers."""
    _, tensors = make_arguments(case, device)
    found, expected = (f(torch.Generator(device).manual_seed(1), *tensors) for f in (function, _loop_draws))
    same = float((found == expected).all(-1).float().mean())
    if same < LEAST_SAME:
        raise WrongAnswerError(f"{name}: {100 * (1 - same):.0f} % of the rows drawn are not the loop's")


# ---------------------------------------------------------------------------------------- memory


def added_bytes(name: str, case: Case) -> int:
    """The peak bytes that forward and backward of a contender add to this process."""
    step(LOG_PROB[name], *make_arguments(case._replace(rows=WARM_ROWS)))  # loads and sets up everything
    arguments = make_arguments(case)
    before = resident("VmRSS")
    step(LOG_PROB[name], *arguments)
    return resident("VmHWM") - before


def measured_bytes(name: str, case: Case, device: str) -> int:
    if device == "cpu":
        return in_new_process(added_bytes, name, case)
    arguments = make_arguments(case, device)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(LOG_PROB[name], *arguments)
    return torch.cuda.max_memory_allocated() - before


# ------------------------------------------------------------------------------------------ time


def measure(arguments: argparse.Namespace, bench: Bench) -> report.Document:
    def measure_case(case: Case) -> report.Document:
        compiles = case == COMPILED_FOR and bench.device == "cpu"
        functions, seconds = checked_functions(case, bench, compiles)
        for name, function in DRAWS.items():
            check_draws(name, function, case, bench.device)

        def timed(tasks: dict[str, Callable[[Tensor, list[Tensor]], object]]) -> report.Document:
            def rotation(task: Callable[[Tensor, list[Tensor]], object]) -> Task:
                return bench.rotation(lambda seed: partial(task, *make_arguments(case, bench.device, seed)))

            return bench.figures({name: rotation(task) for name, task in tasks.items()})

        named = () if arguments.quick else LOG_PROB  # a small call fits into memory that the process has
        return {
            **case._asdict(),
            "log_prob": timed({name: partial(step, function) for name, function in functions.items()}),
            "draws": timed({name: lambda _v, tensors, f=f: f(None, *tensors) for name, f in DRAWS.items()}),
            "peak_bytes": {name: measured_bytes(name, case, bench.device) for name in named},
            "compile_seconds": seconds,
        }

    cells = report.measure_cells(QUICK if arguments.quick else CASES, measure_case)
    clock = "processor" if arguments.processor_time else bench.device
    return report.document("nade", bench, cells, {"clock": clock})


def checked_functions(case: Case, bench: Bench, compiles: bool) -> tuple[dict[str, Function], float | None]:
    """The contenders whose answers are right, and the seconds that the compiled one took to compile."""
    functions, seconds = dict(LOG_PROB), None
    if compiles:
        functions[COMPILED] = torch.compile(_loop)
        begin = time.perf_counter()
        with torch._inductor.config.patch(force_disable_caches=True):
            step(functions[COMPILED], *make_arguments(case, bench.device))
        seconds = time.perf_counter() - begin
    for name, function in list(functions.items()):
        try:
            check(name, function, case, bench.device)
        except WrongAnswerError as error:
            if name in (OURS, LOOP):
                raise
            print(f"left out: {error}", file=sys.stderr)
            del functions[name]
    return functions, seconds


# ---------------------------------------------------------------------------------------- report


def notes(document: report.Document) -> list[str]:
    cells = document["cells"]
    ratios = [cell["log_prob"][LOOP]["median_s"] / cell["log_prob"][OURS]["median_s"] for cell in cells]
    found = [f"NADE: {report.ratio_text(report.geometric_mean(ratios))} the loop in the geometric mean"]
    seconds = [cell["compile_seconds"] for cell in cells if cell["compile_seconds"] is not None]
    if seconds:
        found.append(f"the compiled loop's first call, forward and backward, took {max(seconds):.0f} s")
    return found


def tables(document: report.Document) -> list[report.Table]:
    """Milliseconds, the loop and the best peer over ours, and the memory that forward and backward add."""
    cells = document["cells"]
    names = list(dict.fromkeys(name for cell in cells for name in (*LOG_PROB, *cell["log_prob"])))
    rows = [["ms", "ones", *names, "loop / ours", "best / ours", "MB", "of the loop's"]]
    for key, title in (("log_prob", "forward + backward"), ("draws", "draws")):
        for cell in cells:
            case = Case(*(cell[name] for name in Case._fields))
            medians = {name: figures["median_s"] for name, figures in cell[key].items()}
            times = [report.digits(1e3 * medians[name]) if name in medians else report.NONE for name in names]
            best = min(median for name, median in medians.items() if name != OURS)
            ratios = [report.ratio_text(other / medians[OURS]) for other in (medians[LOOP], best)]
            memory = [report.NONE, report.NONE]
            if key == "log_prob" and (peaks := cell["peak_bytes"]):
                memory = [f"{peaks[OURS] / MEGABYTE:.1f}", report.percent(peaks[OURS] / peaks[LOOP])]
            rows.append([f"{title}, {case}", f"{100 * case.ones:.0f} %", *times, *ratios, *memory])
    return [report.Table("", rows, 2)]
