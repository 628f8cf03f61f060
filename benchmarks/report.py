"""From measurements to a JSON file, a printed report and a picture.

Tables, notes and picture are made from one document (plain dicts, as in the JSON file), so that a saved run
can be shown again. A benchmark is a module with

    PLAN: TimingPlan                         how long to measure
    measure(arguments, bench) -> Document    measure, or raise WrongAnswerError or UsageError
    tables(document) -> list[Table]          the last one is the summary

and, where it needs them, `notes(document)`, `picture(document)` and `failures(document)`, the list of errors
that make the exit status 1.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from .host import OtherLoad, environment, environment_line
from .timing import Bench

WIDTH = 110
NOISY = 0.2  # cores that other processes keep busy; a report with more has a note
NONE = "-"
GREY = "#666666"

Document = dict[str, Any]
Item = TypeVar("Item")


class Table(NamedTuple):
    title: str
    rows: list[list[str]]  # the first one is the head
    left: int = 0  # columns that are aligned to the left


# -------------------------------------------------------------------------------------- document


def measure_cells(items: Iterable[Item], measure_one: Callable[[Item], Document]) -> list[Document]:
    """One cell for each item, with the load by other processes while it was measured."""
    cells, start = [], time.perf_counter()
    for item in items:
        print(f"{time.perf_counter() - start:4.0f} s  {item}", file=sys.stderr, flush=True)
        load = OtherLoad()
        cells.append(measure_one(item))
        cells[-1]["cores_of_others"] = load.cores()
    return cells


def document(name: str, bench: Bench, cells: list[Document], settings: Document | None = None) -> Document:
    plan = bench.plan
    return {
        "benchmark": name,
        "device": bench.device,
        "environment": environment(torch.get_num_threads(), bench.device),
        "settings": {
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "slow_s": plan.slow,
            "slow_calls": plan.slow_calls,
            "input_sets": bench.input_sets,
            **(settings or {}),
        },
        "cells": cells,
    }


def save_json(document: Document, path: Path) -> None:
    """Write through a temporary file, so that a run that is stopped leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(path)


def module_of(document: Document) -> Any:
    return importlib.import_module(f".{document['benchmark']}", __package__)


# ------------------------------------------------------------------------------------------ text


def text(document: Document, markdown: bool = False) -> str:
    """The environment, the notes, then the tables. Plain notes are wrapped at WIDTH."""
    module = module_of(document)
    notes = [environment_line(document["environment"]), *load_notes(document)]
    notes += module.notes(document) if hasattr(module, "notes") else []
    lines = []
    for note in notes:
        lines += [note, ""] if markdown else textwrap.wrap(note, WIDTH, subsequent_indent="  ")
    for table in module.tables(document):
        lines += ["", *draw(table, markdown)]
    return "\n".join(lines)


def draw(table: Table, markdown: bool = False) -> list[str]:
    """The title and the table, plain or in Markdown."""
    widths = [max(map(len, column)) for column in zip(*table.rows, strict=True)]
    aligned = [
        [cell.ljust(width) if place < table.left else cell.rjust(width)
         for place, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in table.rows
    ]  # fmt: skip
    if not markdown:
        return [*([table.title] if table.title else []), *("  ".join(row).rstrip() for row in aligned)]
    head, *rows = (f"| {' | '.join(row)} |" for row in aligned)
    marks = "|".join(":--" if place < table.left else "--:" for place in range(len(widths)))
    return [*([table.title, ""] if table.title else []), head, f"|{marks}|", *rows]


def load_notes(document: Document) -> list[str]:
    others = [cell.get("cores_of_others") for cell in document["cells"]]
    if max((other or 0.0 for other in others), default=0.0) <= NOISY:
        return []
    busy = ", ".join(NONE if other is None else f"{other:.1f}" for other in others)
    return [f"Noisy: other processes kept this many cores busy, by cell: {busy}."]


def geometric_mean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:.{max(0, 2 - math.floor(math.log10(rounded)))}f}" if rounded > 0 else "0"


def ratio_text(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f}%" if value >= 0.1 else f"{100 * value:.1f}%"


# --------------------------------------------------------------------------------------- picture


def can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def figure(width: float, height: float) -> Any:
    figure_class: Any = importlib.import_module("matplotlib.figure").Figure
    return figure_class(figsize=(width, height), dpi=200, layout="constrained")


def draw_picture(document: Document, path: Path) -> None:
    """Draw the picture if the benchmark has one and matplotlib is installed."""
    module = module_of(document)
    if can_draw() and document["cells"] and hasattr(module, "picture"):
        path.parent.mkdir(parents=True, exist_ok=True)
        module.picture(document).savefig(path)
