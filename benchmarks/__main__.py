"""`python -m benchmarks NAME [options]`: one subcommand per benchmark (report.py says how to add one)."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import gpu_report, report
from .check import UsageError, WrongAnswerError
from .gpu import no_gpu
from .problem import Cell
from .timing import QUICK_PLAN, Bench, TimingPlan, cuda_bench, processor_clock, wall_clock


def parse_grid(text: str) -> tuple[Cell, ...]:
    cells = []
    for part in text.split(";"):
        sizes = [int(size) for size in part.split(",")]
        if len(sizes) != 4 or min(sizes) < 1:
            raise argparse.ArgumentTypeError(f"a cell is B,T,I,H, four positive numbers, got {part!r}")
        cells.append(Cell(*sizes))
    return tuple(cells)


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


OPTIONS: dict[str, dict[str, Any]] = {
    "quick": {"action": "store_true", "help": "few small problems and a short measurement: seconds"},
    "threads": {"type": positive, "help": "number of CPU threads, default: torch's"},
    "output": {
        "type": Path,
        "default": Path("build/benchmarks"),
        "metavar": "DIR",
        "help": "default: %(default)s",
    },
    "markdown": {"action": "store_true", "help": "print Markdown"},
    "device": {"choices": ("cpu", "cuda"), "default": "cpu"},
    "grid": {"type": parse_grid, "metavar": "B,T,I,H;...", "help": "other sizes"},
    "dtype": {
        "choices": ("float32", "float64", "bfloat16"),
        "help": "default: float32; with cuda also bfloat16",
    },
    "peers": {"metavar": "NAME,...", "help": "names from benchmarks/peers.py, or none"},
    "budget": {
        "type": float,
        "default": 300.0,
        "metavar": "SECONDS",
        "help": "of the run with cuda, default: %(default)s",
    },
    "processor-time": {
        "action": "store_true",
        "help": "time one thread on its processor, for a host that other processes use as well",
    },
}
COMMON = ("quick", "threads", "output", "markdown")

# By name: help, and the options that the benchmark has besides the common ones.
BENCHMARKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "recurrence": (
        "the leaky recurrent layer compared with its peers",
        ("device", "grid", "dtype", "peers", "budget"),
    ),
    "call": ("the parts of a tiny call, and one step of small networks, in microseconds", ()),
    "layer": ("what packing, vmap, subnormal states and torch.compile save or cost", ("device",)),
    "load": ("several training processes at the same time, and more threads than CPUs", ()),
    "memory": ("peak memory of a training step on long sequences and on a large batch", ()),
    "nade": (
        "NADE's log-likelihood with gradients, and its draws, compared with PyTorch",
        ("device", "processor-time"),
    ),
    "optimizer": ("the clipped optimizers compared with torch's clipping and update", ("device",)),
    "scaling": ("how the time of a step grows with T, B, H and threads", ()),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(run=run, device="cpu", processor_time=False)
        return added

    for name, (text, options) in BENCHMARKS.items():
        added = command(name, measure, text)
        for option in (*COMMON, *options):
            added.add_argument(f"--{option}", **OPTIONS[option])
    text = "build, tests, sanitizers and benchmarks on an NVIDIA GPU"
    gpu_report.add_arguments(command("gpu-report", gpu_report.run, text))
    added = command("show", show, "tables and picture of a saved run")
    added.add_argument("file", type=Path)
    added.add_argument("--markdown", **OPTIONS["markdown"])
    added.add_argument("--picture", type=Path, metavar="PATH", help="draw it, too")
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (UsageError, WrongAnswerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return status


def show(arguments: argparse.Namespace) -> int:
    document = json.loads(arguments.file.read_text())
    print(report.text(document, arguments.markdown))
    if arguments.picture:
        report.draw_picture(document, arguments.picture)
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """Measure, write the JSON file, print the report, draw the picture."""
    name = arguments.benchmark
    try:
        module = importlib.import_module(f".{name}", __package__)
    except ImportError as error:
        raise UsageError(str(error)) from error
    if arguments.device == "cuda" and (why := no_gpu()):
        raise UsageError(why)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    document = module.measure(arguments, make_bench(arguments, module.PLAN))
    path = arguments.output / f"{name}.json"
    report.save_json(document, path)
    print(report.text(document, arguments.markdown))
    report.draw_picture(document, path.with_suffix(".png"))
    print(f"written to {arguments.output}", file=sys.stderr)
    failures = module.failures(document) if hasattr(module, "failures") else []
    for why in failures:
        print(f"error: {why}", file=sys.stderr)
    return 1 if failures else 0


def make_bench(arguments: argparse.Namespace, plan: TimingPlan) -> Bench:
    if arguments.processor_time and (arguments.device == "cuda" or arguments.threads != 1):
        raise UsageError("--processor-time needs --threads 1 on the CPU")
    if arguments.device == "cuda":
        return cuda_bench(arguments.quick)
    clock = processor_clock if arguments.processor_time else wall_clock
    return Bench(QUICK_PLAN if arguments.quick else plan, new_stopwatch=lambda: clock)


if __name__ == "__main__":
    sys.exit(main())
