"""Options of the benchmarks that print one table and write one JSON file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from . import report
from .machine import environment_line
from .timing import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="few small problems, seconds")
    parser.add_argument("--threads", type=int, help="default: what PyTorch takes")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"), metavar="DIR")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def run(
    arguments: argparse.Namespace,
    measure: Callable[[bool, Plan], report.Document],
    rows: Callable[[report.Document], list[list[str]]],
    plan: Plan,
    picture: Callable[[report.Document, Path], None] | None = None,
) -> int:
    """Measure, write, draw, and print the rows (two columns of text, then figures) with the notes."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    document = measure(arguments.quick, Plan(seconds=1.0, rounds=5) if arguments.quick else plan)
    path = arguments.output / f"{document['benchmark']}.json"
    report.save_json(document, path)
    written = [path]
    if picture and report.can_draw():
        written.append(path.with_suffix(".png"))
        picture(document, written[-1])
    lines = (report.markdown_rows if arguments.markdown else report.plain)(rows(document), 2)
    busiest = max(cell["cores_of_others"] or 0.0 for cell in document["cells"])
    lines += ["", *document.get("notes", []), f"other processes used up to {busiest:.2f} cores"]
    print("\n".join([*lines, environment_line(document["environment"])]))
    print("written:", ", ".join(map(str, written)), file=sys.stderr)
    return 0
