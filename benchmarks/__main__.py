"""`python -m benchmarks NAME [options]`: one subcommand per benchmark (report.py says how to add one)."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import gpu_report, report
from .check import UsageError, WrongAnswerError
from .gpu import no_gpu
from .problem import Cell
from .timing import QUICK_PLAN, Bench, TimingPlan, cuda_bench, processor_clock


def parse_grid(text: str) -> tuple[Cell, ...]:
    cells = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        sizes = [int(size) for size in part.split(",")]
        if len(sizes) != 4 or min(sizes) < 1:
            raise argparse.ArgumentTypeError(f"a cell is B,T,I,H, four positive numbers, got {part!r}")
        cells.append(Cell(*sizes))
    if not cells:
        raise argparse.ArgumentTypeError("the grid has no cell")
    return tuple(cells)


def parse_peers(text: str) -> tuple[str, ...]:
    from .peers import PEERS

    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    return names


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


OPTIONS: dict[str, dict[str, Any]] = {
    "quick": {"action": "store_true", "help": "few small problems and a short measurement: seconds"},
    "threads": {"type": positive, "help": "number of CPU threads, default: torch's"},
    "seconds": {"type": float, "help": "begin no round of a measurement after this time"},
    "rounds": {"type": positive, "help": "rounds of a measurement, at most"},
    "output": {
        "type": Path,
        "default": Path("build/benchmarks"),
        "metavar": "DIR",
        "help": "default: %(default)s",
    },
    "markdown": {"action": "store_true", "help": "print Markdown"},
    "picture": {"type": Path, "metavar": "PATH", "help": "default: DIR/NAME.png, if matplotlib is installed"},
    "device": {"choices": ("cpu", "cuda"), "default": "cpu"},
    "seed": {"type": int, "default": 0, "help": "of the random problems"},
    "grid": {"type": parse_grid, "metavar": "B,T,I,H;...", "help": "other sizes"},
    "dtype": {
        "choices": ("float32", "float64", "bfloat16"),
        "help": "default: float32; with cuda also bfloat16",
    },
    "peers": {"type": parse_peers, "metavar": "NAME,...", "help": "names from benchmarks/peers.py, or none"},
    "budget": {"type": float, "metavar": "SECONDS", "help": "of the whole run with cuda, default: 300"},
    "processor-time": {
        "action": "store_true",
        "help": "time one thread on its processor, for a host that other processes use as well",
    },
    "case": {"type": json.loads, "help": argparse.SUPPRESS},  # measure one case's memory in this process
}
COMMON = ("quick", "threads", "seconds", "rounds", "output", "markdown")


class Benchmark(NamedTuple):
    help: str
    options: tuple[str, ...] = ()


BENCHMARKS = {
    "recurrence": Benchmark(
        "the leaky recurrent layer compared with its peers",
        ("picture", "device", "seed", "grid", "dtype", "peers", "budget"),
    ),
    "call": Benchmark("the parts of a tiny call, in microseconds"),
    "layer": Benchmark("what packing, vmap, faded units and torch.compile save or cost"),
    "memory": Benchmark("peak memory of a training step on long sequences and on a large batch", ("case",)),
    "nade": Benchmark(
        "NADE's log-likelihood with gradients, and its draws, compared with PyTorch",
        ("device", "processor-time", "case"),
    ),
    "optimizer": Benchmark("the clipped optimizers compared with torch's clipping and update", ("device",)),
    "scaling": Benchmark("how the time of a step grows with T, B, H and threads", ("picture",)),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)

    def command(name: str, help: str, options: Sequence[str] = ()) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        for option in options:
            added.add_argument(f"--{option}", **OPTIONS[option])
        return added

    for name, (text, options) in BENCHMARKS.items():
        command(name, text, (*COMMON, *options))
    gpu_report.add_arguments(
        command("gpu-report", "build, tests, sanitizers and benchmarks on an NVIDIA GPU")
    )
    command("show", "tables and picture of a saved run", ("picture", "markdown")).add_argument(
        "run", type=Path
    )
    arguments = parser.parse_args(argv)
    special = {"gpu-report": gpu_report.run, "show": show}
    try:
        return special.get(arguments.benchmark, run)(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WrongAnswerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def show(arguments: argparse.Namespace) -> int:
    document = json.loads(arguments.run.read_text())
    print(report.text(document, arguments.markdown))
    if arguments.picture:
        report.draw_picture(document, arguments.picture)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the JSON file, print the report, draw the picture."""
    name, device = arguments.benchmark, getattr(arguments, "device", "cpu")
    try:
        module = importlib.import_module(f".{name}", __package__)
        importlib.import_module("rnnkernels")
    except ImportError as error:
        raise UsageError(str(error)) from error
    if device == "cuda" and (why := no_gpu()):
        raise UsageError(why)
    if getattr(arguments, "picture", None) and not report.can_draw():
        raise UsageError("--picture needs matplotlib")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if getattr(arguments, "case", None):
        print(module.added_bytes(arguments.case))
        return 0
    document = module.measure(arguments, make_bench(arguments, device, module.PLAN))
    path = arguments.output / f"{name}.json"
    report.save_json(document, path)
    print(report.text(document, arguments.markdown))
    picture = getattr(arguments, "picture", None) or path.with_suffix(".png")
    written = [path, *report.draw_picture(document, picture)]
    print("written:", ", ".join(map(str, written)), file=sys.stderr)
    failures = module.failures(document) if hasattr(module, "failures") else []
    for why in failures:
        print(f"error: {why}", file=sys.stderr)
    return 1 if failures else 0


def make_bench(arguments: argparse.Namespace, device: str, plan: TimingPlan) -> Bench:
    bench = Bench(plan=QUICK_PLAN if arguments.quick else plan)
    if device == "cuda":
        bench = cuda_bench(arguments.quick)
    if getattr(arguments, "processor_time", False):
        if device != "cpu" or arguments.threads != 1:
            raise UsageError("--processor-time needs --threads 1 on the CPU")
        bench = replace(bench, new_stopwatch=lambda: processor_clock)
    given = {key: value for key in ("seconds", "rounds") if (value := getattr(arguments, key)) is not None}
    return replace(bench, plan=replace(bench.plan, **given))


if __name__ == "__main__":
    sys.exit(main())
