"""From timings to figures, and from figures to a table, a JSON file and a picture.

All three are made from one document (plain dicts, as in the JSON file), so a saved run can be
shown again without measuring.
"""

from __future__ import annotations

import importlib
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .machine import environment_line
from .peers import PEERS
from .problem import OURS, Cell
from .timing import Timing

WIDTH = 110
PASSES = {"forward": "forward", "forward_backward": "forward + backward"}
STEADY = 0.75  # of the best rate of the matrix product; less needs a word, too
NOISY = 0.2  # cores busy with something else; figures taken so need a word
RECURRENCE = "recurrence"  # timed beside the contenders, without being one

Document = dict[str, Any]
Timings = Mapping[tuple[str, str], Timing]  # by contender and pass


def label(contender: str) -> str:
    return OURS if contender == OURS else PEERS[contender].label


def geometric_mean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def pass_figures(cell: Cell, name: str, timings: Timings, gemm_rate: float) -> Document:
    """One cell, one pass: all times, and what follows from their medians. Contenders may be missing."""
    times = {contender: t for (contender, which), t in timings.items() if which == name}
    recurrence = times.pop(RECURRENCE, None)
    ours = times.get(OURS)
    ratios = {peer: t.median / ours.median for peer, t in times.items() if peer != OURS} if ours else {}
    best = min(ratios, key=ratios.__getitem__, default=None)
    rate = None
    if recurrence:
        rate = cell.recurrence_flops(name == "forward_backward") / recurrence.median
    return {
        "times": {contender: t.figures() for contender, t in times.items()},
        "peer_over_ours": ratios,
        "best_peer": best,
        "best_peer_over_ours": None if best is None else ratios[best],
        "recurrence": recurrence and recurrence.figures(),
        "recurrence_flops_per_s": rate,
        "recurrence_share_of_gemm": rate and rate / gemm_rate,
    }


def summary(cells: Sequence[Document]) -> Document:
    """Geometric means over the cells, because ratios multiply."""
    result: Document = {}
    for name in PASSES:
        figures = [cell[name] for cell in cells]
        peers = list(dict.fromkeys(peer for f in figures for peer in f["peer_over_ours"]))
        best = [f["best_peer_over_ours"] for f in figures if f["best_peer"] is not None]
        result[name] = {
            "cells": len(figures),
            "best_peer_over_ours": geometric_mean(best),
            "peer_over_ours": {
                peer: geometric_mean(
                    f["peer_over_ours"][peer] for f in figures if peer in f["peer_over_ours"]
                )
                for peer in peers
            },
            "recurrence_share_of_gemm": geometric_mean(
                f["recurrence_share_of_gemm"] for f in figures if f["recurrence_share_of_gemm"]
            ),
        }
    return result


def save_json(document: Document, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")  # whoever is stopped while writing leaves the file of before
    whole.write_text(json.dumps(document, indent=1) + "\n")
    whole.replace(path)


# ---------------------------------------------------------------------------------------- tables


def _ms(seconds: float) -> str:
    """Three digits, in milliseconds, without an exponent."""
    ms = float(f"{seconds * 1e3:.3g}")
    return f"{ms:.{max(0, 2 - math.floor(math.log10(ms)))}f}"


def ratio_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def percent(value: float) -> str:
    return f"{100 * value:.0f}%" if value >= 0.1 else f"{100 * value:.1f}%"


def _rows(document: Document, name: str) -> list[list[str]]:
    """The head and one row a cell; `*` marks a median of few calls."""
    first = document["cells"][0][name]
    contenders = list(first["times"])
    head = [*Cell._fields, *map(label, contenders), "vs best", "vs loop", "gemm"]
    rows = [head]
    for cell in document["cells"]:
        figures = cell[name]
        row = [str(cell[size]) for size in Cell._fields]
        for contender in contenders:
            timing = figures["times"][contender]
            row.append(_ms(timing["median_s"]) + ("*" if timing["slow"] else ""))
        row.append(ratio_text(figures["best_peer_over_ours"]))
        row.append(ratio_text(figures["peer_over_ours"].get("loop")))
        row.append(percent(figures["recurrence_share_of_gemm"]))
        rows.append(row)
    return rows


def _summary_rows(document: Document) -> list[list[str]]:
    means = document["summary"]
    peers = list(means["forward"]["peer_over_ours"])
    rows = [["geometric mean", "best peer", *map(label, peers), "gemm"]]
    for name, title in PASSES.items():
        mean = means[name]
        rows.append(
            [title, ratio_text(mean["best_peer_over_ours"])]
            + [ratio_text(mean["peer_over_ours"][peer]) for peer in peers]
            + [percent(mean["recurrence_share_of_gemm"])]
        )
    return rows


def plain(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Columns as wide as they must be; the first `left` of them aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if place < left else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def markdown_rows(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    rule = ["---" if place < left else "--:" for place in range(len(rows[0]))]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]


def gemm_share(document: Document, cell: Document) -> float:
    """The rate of the matrix product in one cell over the best of the run: 1 on a steady machine."""
    gemm = document["gemm"]
    rate = 2.0 * gemm["size"] ** 3 / cell["gemm"]["median_s"]
    return float(rate / gemm["best_flops_per_s"])


def _notes(document: Document) -> list[str]:
    settings, gemm = document["settings"], document["gemm"]
    notes = [
        "Medians in ms. A ratio above 1x: rnnkernels is faster. nn.RNN computes the plain"
        " recurrence, all others the leaky one.",
        f"gemm: floating-point rate of the recurrence alone over that of torch.mm,"
        f" {gemm['best_flops_per_s'] / 1e9:.0f} GFLOP/s at {gemm['size']} x {gemm['size']},"
        " the best of this run.",
    ]
    for cell in document["cells"]:
        if "cache" in cell:
            cache, sizes = cell["cache"], Cell(*(cell[size] for size in Cell._fields))
            walk, read = (cache[name] / 1e9 for name in ("walk_bytes_per_s", "read_bytes_per_s"))
            notes.append(
                f"{sizes}: the forward recurrence goes through its matrix at {walk:.0f} GB/s,"
                f" {percent(walk / read)} of the {read:.0f} GB/s at which one thread reads its cache."
            )
    if any(
        timing["slow"]
        for cell in document["cells"]
        for name in PASSES
        for timing in (*cell[name]["times"].values(), cell[name]["recurrence"])
    ):
        notes.append(
            f"*: {settings['slow_calls']} calls only, because one takes more than {settings['slow_s']:g} s."
        )
    others = [cell["cores_of_others"] for cell in document["cells"]]
    if max((other or 0.0 for other in others), default=0.0) > NOISY:
        busy = ", ".join("-" if other is None else f"{other:.1f}" for other in others)
        notes.append(f"Noisy: other processes kept this many cores busy, cell by cell: {busy}.")
    rates = [gemm_share(document, cell) for cell in document["cells"]]
    if min(rates) < STEADY:
        shares = ", ".join(f"{100 * rate:.0f}" for rate in rates)
        notes.append(
            f"Unsteady: the machine did not always give what it can; torch.mm had this percentage of its best"
            f" rate, cell by cell: {shares}."
        )
    notes += [f"Not measured: {label(peer)} ({why})." for peer, why in document["skipped"].items()]
    return notes


def table(document: Document, markdown: bool = False) -> str:
    """Environment first, a table a pass, the geometric means last; lines of at most WIDTH."""
    settings = document["settings"]
    where = f"{environment_line(document['environment'])}; {settings['dtype']}"
    lines = [where, ""] if markdown else [*textwrap.wrap(where, WIDTH), ""]
    draw = markdown_rows if markdown else plain
    for name, title in PASSES.items():
        lines += [title, ""] if markdown else [title]
        lines += [*draw(_rows(document, name)), ""]
    for note in _notes(document):
        lines += [note, ""] if markdown else textwrap.wrap(note, WIDTH)
    if not markdown:
        lines.append("")
    return "\n".join(lines + draw(_summary_rows(document), left=1))


# --------------------------------------------------------------------------------------- picture

# Colour and shape both differ, so that neither printing in grey nor colour blindness mixes them.
MARKS = {
    OURS: ("#000000", "|"),
    "rnn": ("#0072B2", "o"),
    "loop": ("#D55E00", "s"),
    "script": ("#CC79A7", "D"),
    "scan": ("#009E73", "^"),
    "naive": ("#8C6D31", "v"),
    "graph": ("#E69F00", "P"),
    "compile": ("#56B4E9", "X"),
    "half": ("#44AA99", "h"),
    "flash": ("#882255", "*"),
}
GREY = "#666666"


def can_draw() -> bool:
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        return False
    return True


def picture(document: Document, path: Path) -> None:
    """Dots: each contender's time over ours, a panel a pass; for about 900 pixels of width."""
    figure_class: Any = importlib.import_module("matplotlib.figure").Figure
    cells = document["cells"]
    height = 1.5 + 0.34 * len(cells)
    figure = figure_class(figsize=(9, height), dpi=200, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (name, title) in zip(panels, PASSES.items(), strict=True):
        _draw_pass(panel, [cell[name] for cell in cells], title)
    # Monospaced, so that the sizes stand under one another.
    sizes = [[str(cell[size]) for size in Cell._fields] for cell in cells]
    names = plain([Cell._fields, *sizes])
    panels[0].set_yticks(range(-1, len(cells)), names, family="monospace", fontsize=9)
    panels[0].set_ylim(len(cells) - 0.5, -1.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    settings, env = document["settings"], document["environment"]
    figure.supxlabel(
        "time relative to rnnkernels; further right is slower.  "
        f"{env['cpu']}, {env['threads']} threads, {settings['dtype']}",
        fontsize=9,
        color=GREY,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_pass(panel: Any, cells: Sequence[Document], title: str) -> None:
    contenders = list(cells[0]["times"])
    ratios = {
        contender: [cell["times"][contender]["median_s"] / cell["times"][OURS]["median_s"] for cell in cells]
        for contender in contenders
    }
    every = [ratio for values in ratios.values() for ratio in values]
    low, high = min(0.8, min(every) / 1.25), max(1.25, max(every) * 1.25)
    right = high * (high / low) ** 0.2  # room for our own times
    panel.set_xscale("log")
    panel.set_xlim(low, right)
    for row in range(0, len(cells), 2):
        panel.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", zorder=0)
    panel.axvline(1.0, color="black", linewidth=1, zorder=1)
    for place, (contender, values) in enumerate(ratios.items()):
        colour, marker = MARKS[contender]
        ours = contender == OURS
        # The peers lie on lines of their own, so that equal ones do not hide each other.
        shift = 0.0 if ours else 0.17 * (place - len(ratios) / 2)
        rows = [row + shift for row in range(len(values))]
        style = {"c": colour, "marker": marker, "s": 90 if ours else 26}
        panel.scatter(values, rows, label=label(contender), zorder=3, **style)
    panel.set_title(title, fontsize=11)
    ticks = [tick for tick in _nice_ticks() if low <= tick <= high]
    panel.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=9)
    panel.minorticks_off()
    panel.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    panel.tick_params(length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    times = [_ms(cell["times"][OURS]["median_s"]) for cell in cells]
    for row, text in enumerate([f"{OURS}, ms", *times], -1):
        text += " "  # keeps off the edge
        panel.text(right, row, text, ha="right", va="center", fontsize=8.5, color=GREY)


def _nice_ticks() -> list[float]:
    return [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]
