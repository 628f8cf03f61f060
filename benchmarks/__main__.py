"""`python -m benchmarks NAME [options]`: one subcommand a benchmark.

A benchmark is a line in BENCHMARKS: what it measures, its arguments, and what runs it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import call, gpu_report, layer, memory, nade, optimizer, options, recurrence, scaling, show


class Benchmark(NamedTuple):
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    needs_package: bool = True


BENCHMARKS = {
    "recurrence": Benchmark(
        "the leaky recurrent layer against its peers", recurrence.add_arguments, recurrence.run
    ),
    "call": Benchmark("where the microseconds of a tiny call go", options.add_arguments, call.run),
    "layer": Benchmark("what packing, vmap and torch.compile save or cost", options.add_arguments, layer.run),
    "memory": Benchmark(
        "what a training step takes, long sequences and large batches", memory.add_arguments, memory.run
    ),
    "nade": Benchmark(
        "NADE's likelihood with its gradients, and draws, against PyTorch", nade.add_arguments, nade.run
    ),
    "optimizer": Benchmark(
        "the clipped optimizers against torch's clipping and update", optimizer.add_arguments, optimizer.run
    ),
    "scaling": Benchmark("how a step grows with T, B, H and threads", options.add_arguments, scaling.run),
    "gpu-report": Benchmark(
        "build, tests, sanitizers and benchmarks on a machine with an NVIDIA GPU",
        gpu_report.add_arguments,
        gpu_report.run,
        False,
    ),
    "show": Benchmark("table and picture of a saved run", show.add_arguments, show.run, False),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.help, description=benchmark.help)
        benchmark.add_arguments(command)
    arguments = parser.parse_args(argv)
    chosen = BENCHMARKS[arguments.benchmark]
    if chosen.needs_package:
        try:
            importlib.import_module("rnnkernels")
        except ImportError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return chosen.run(arguments)


def prefer_installed() -> None:
    """`python -m` puts the repository first on the path, and so its folder rnnkernels before the
    installed one. Where the extension was not built in place, only the installed one works."""
    root = str(Path(__file__).resolve().parent.parent)
    if root in sys.path:
        sys.path.remove(root)
        sys.path.append(root)


if __name__ == "__main__":
    prefer_installed()
    sys.exit(main())
