"""Figures, tables, notes and pictures of `python -m benchmarks recurrence`, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .loops import COMPILED_STEPS
from .peers import PEERS, RECURRENCE, label
from .problem import OURS, Cell
from .report import (
    GREY,
    NONE,
    Document,
    Table,
    digits,
    draw,
    figure,
    geometric_mean,
    percent,
    ratio_text,
)
from .timing import Timing

PASSES = {"forward": "forward", "forward_backward": "forward + backward"}
GEMM, CACHE, FLOOR = "gemm", "cache", "floor"
STEADY = 0.75  # share of the matrix product's best rate; a run with less has a note
# Color and shape both differ, so that neither gray printing nor color blindness confuses them.
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
    FLOOR: (GREY, "<"),
}


# --------------------------------------------------------------------------------------- figures


def pass_figures(
    cell: Cell, name: str, timings: Mapping[tuple[str, str], Timing], gemm_rate: float
) -> Document:
    """All times of one pass and the ratios of their medians. Contenders may be missing."""
    times = {contender: t for (contender, which), t in timings.items() if which == name}
    recurrence = times.pop(RECURRENCE, None)
    ours = times.get(OURS)
    ratios = {peer: t.median / ours.median for peer, t in times.items() if peer != OURS} if ours else {}
    best = min(ratios, key=ratios.__getitem__, default=None)
    flops = cell.recurrence_flops(name == "forward_backward")
    rate = recurrence and flops / recurrence.median
    return {
        "times": {contender: t.figures() for contender, t in times.items()},
        "peer_over_ours": ratios,
        "best_peer": best,
        "best_peer_over_ours": None if best is None else ratios[best],
        "recurrence": recurrence and recurrence.figures(),
        "recurrence_flops_per_s": rate,
        "recurrence_share_of_gemm": rate and rate / gemm_rate,
    }


def share(figures: Document) -> float | None:
    """The recurrence alone, relative to its limit: the floor on a GPU, the matrix product on the CPU."""
    found: float | None = figures.get("share_of_floor", figures["recurrence_share_of_gemm"])
    return found


def means(figures: Sequence[Document]) -> Document:
    """Geometric means over cells, because ratios multiply."""
    best = [f["best_peer_over_ours"] for f in figures if f["best_peer"] is not None]
    peers = dict.fromkeys(peer for f in figures for peer in f["peer_over_ours"])
    ratios = {
        peer: [f["peer_over_ours"][peer] for f in figures if peer in f["peer_over_ours"]] for peer in peers
    }
    return {
        "cells": len(figures),
        "best_peer_over_ours": geometric_mean(best),
        "least": min(best, default=None),
        "peer_over_ours": {peer: geometric_mean(values) for peer, values in ratios.items()},
        "share": geometric_mean(s for f in figures if (s := share(f))),
    }


def summary(cells: Sequence[Document]) -> Document:
    return {name: means([cell[name] for cell in cells]) for name in PASSES}


# ---------------------------------------------------------------------------------------- tables


def on_gpu(document: Document) -> bool:
    return "rates" in document


def ordered(document: Document) -> list[Document]:
    """The cells in the order of the tables. Older files name the dtype only once."""
    cells = [
        {
            "precision": document["settings"].get("dtype"),
            "packed": False,
            "failed": {},
            "left_out": [],
            **cell,
        }
        for cell in document["cells"]
    ]
    if not on_gpu(document):
        return cells
    return sorted(cells, key=lambda c: (c["packed"], c["precision"], c["T"], c["H"], c["B"], c["I"]))


def measured_peers(document: Document) -> list[str]:
    """The peers with a time anywhere, in their usual order."""
    found = {who for cell in document["cells"] for name in PASSES for who in cell[name]["times"]}
    return [peer for peer in PEERS if peer in found]


def tables(document: Document) -> list[Table]:
    unit = "microseconds per step" if on_gpu(document) else "milliseconds"
    found = [Table(f"{title}, {unit}", rows(document, name)) for name, title in PASSES.items()]
    return [*found, Table("", summary_rows(document), 2)]


def rows(document: Document, name: str) -> list[list[str]]:
    """One row per cell; `*` marks a median of few calls."""
    gpu, peers = on_gpu(document), measured_peers(document)
    if gpu:
        head = ["H", "B", "T", "dtype", "ours", *peers, "best", "alone", "floor", "share"]
    else:
        head = [*Cell._fields, *map(label, (OURS, *peers)), "vs best", "vs loop", "gemm"]
    lines = [head]
    for cell in ordered(document):
        figures, unit = cell[name], 1e6 / cell["T"] if gpu else 1e3

        def time(timing: Document | None, unit: float = unit) -> str:
            return digits(unit * timing["median_s"]) + ("*" if timing["slow"] else "") if timing else NONE

        sizes = [str(cell[size]) for size in ("HB" if gpu else Cell._fields)]
        ends = [ratio_text(figures["best_peer_over_ours"])]
        if gpu:
            sizes += ["packed" if cell["packed"] else str(cell["T"]), cell["precision"]]
            ends += [time(figures["recurrence"]), digits(1e6 * figures["floor"]["floor_s"])]
        else:
            ends.append(ratio_text(figures["peer_over_ours"].get("loop")))
        times = [time(figures["times"].get(who)) for who in (OURS, *peers)]
        lines.append([*sizes, *times, *ends, percent(share(figures))])
    return lines


def kind_of(cell: Document) -> str:
    return f"packed {cell['precision']}" if cell["packed"] else str(cell["precision"])


def summary_rows(document: Document) -> list[list[str]]:
    """Means and the least ratio, for each pass and precision."""
    peers, cells = measured_peers(document), ordered(document)
    limit = "share of floor" if on_gpu(document) else "gemm"
    lines = [["geometric means", "", "cells", "vs best", "least", *map(label, peers), limit]]
    for name, title in PASSES.items():
        for kind in dict.fromkeys(map(kind_of, cells)):
            mean = means([cell[name] for cell in cells if kind_of(cell) == kind])
            ratios = [mean["best_peer_over_ours"], mean["least"], *map(mean["peer_over_ours"].get, peers)]
            lines.append([title, kind, str(mean["cells"]), *map(ratio_text, ratios), percent(mean["share"])])
    return lines


# ----------------------------------------------------------------------------------------- notes


def notes(document: Document) -> list[str]:
    cells, settings = ordered(document), document["settings"]
    lines = gpu_notes(document) if on_gpu(document) else cpu_notes(document)
    alone = [cell[name]["recurrence"] for cell in cells for name in PASSES]
    timings = [timing for cell in cells for name in PASSES for timing in cell[name]["times"].values()]
    if any(timing and timing["slow"] for timing in (*timings, *alone)):
        lines.append(
            f"*: {settings['slow_calls']} calls only, because one takes more than {settings['slow_s']:g} s."
        )
    lines += [f"Not measured: {label(peer)} ({why})." for peer, why in document["skipped"].items()]
    for cell in cells:
        for who, why in cell["failed"].items():
            name = f"{OURS}, recurrence alone" if who == RECURRENCE else label(who)
            lines.append(f"Failed: {name} at {cell['point']}: {why}")
    places: dict[str, list[str]] = {}
    for cell in cells:
        for peer in cell["left_out"]:
            places.setdefault(peer, []).append(f"H {cell['H']} B {cell['B']} {cell['precision']}")
    for peer, where in places.items():
        some = ", ".join(where[:4]) + (" and more" if len(where) > 4 else "")
        lines.append(f"No time for {label(peer)} at {len(where)} of {len(cells)} points: {some}.")
    if points := document.get("points_left_out"):
        lines.append(f"No time for {len(points)} points: {'; '.join(points)}.")
    if document.get("stopped"):
        lines.append(f"Stopped: {document['stopped']}")
    return [*lines, *networks_notes(document)]


def gemm_share(document: Document, cell: Document) -> float:
    """The rate of the matrix product in one cell relative to the best of the run: 1 on a steady host."""
    gemm = document["gemm"]
    rate = 2.0 * gemm["size"] ** 3 / cell["gemm"]["median_s"]
    return float(rate / gemm["best_flops_per_s"])


def cpu_notes(document: Document) -> list[str]:
    gemm = document["gemm"]
    lines = [
        f"Medians in ms, {document['settings']['dtype']}. Ratios are times of peers over rnnkernels. nn.RNN"
        " computes the recurrence without leak, all others the leaky one.",
        "gemm: floating-point rate of the recurrence alone, relative to the best rate of torch.mm in this"
        f" run, {gemm['best_flops_per_s'] / 1e9:.0f} GFLOP/s at {gemm['size']} x {gemm['size']}.",
    ]
    for cell in document["cells"]:
        if cache := cell.get(CACHE):
            scan = cache.get("scan_bytes_per_s", cache.get("walk_bytes_per_s")) / 1e9
            read = cache["read_bytes_per_s"] / 1e9
            lines.append(
                f"{Cell(*(cell[size] for size in Cell._fields))}: the forward recurrence reads its matrix at"
                f" {scan:.0f} GB/s, {percent(scan / read)} of the {read:.0f} GB/s at which one thread reads"
                " its cache."
            )
    rates = [gemm_share(document, cell) for cell in document["cells"]]
    if min(rates) < STEADY:
        shares = ", ".join(f"{100 * rate:.0f}" for rate in rates)
        lines.append(f"Unsteady: torch.mm reached this percentage of its best rate, by cell: {shares}.")
    return lines


def gpu_notes(document: Document) -> list[str]:
    rates, sets = document["rates"], document["settings"]["input_sets"]
    products = ", ".join(f"{1e-12 * rate:.3g} in {name}" for name, rate in rates["flops_per_s"].items())
    latencies = f"no latencies ({rates['why_no_latencies']}), so the floor has none"
    if found := rates["latencies"]:
        each = (f"{name.removesuffix('_s').replace('_', ' ')} {1e9 * s:.0f}" for name, s in found.items())
        latencies = f"latencies, ns: {', '.join(each)}"
    lines = [
        "Medians by device events, input projection included. best: time of the fastest peer over rnnkernels."
        " rnn: nn.RNN, by cuDNN if that supports the dtype; half: nn.RNN in float16, beside bfloat16;"
        " graph: the loop as one CUDA graph; compile: the loop in compiled blocks of"
        f" {COMPILED_STEPS} steps; scan: jax.lax.scan; flash: FlashRNN's Elman network. rnn, half and flash"
        " compute a recurrence without leak, all others the leaky one. JAX waits for the device at each call."
        " float32 is exact for all contenders; tf32 is float32 with TF32 allowed to torch and cuDNN, which is"
        " cuDNN's default.",
        f"{sets} sets of random inputs take turns; caches are not emptied between calls.",
        "alone: the recurrence without its projection; share: the floor relative to that. The floor follows"
        f" from rates of this run. Copy: {1e-12 * rates['copy_bytes_per_s']:.3g} TB/s; products, TFLOP/s:"
        f" {products}; {latencies}.",
    ]
    if rates["launch_s"] and rates["graph_node_s"]:
        launch, node = (1e6 * rates[name] for name in ("launch_s", "graph_node_s"))
        lines.append(
            f"Time between small kernels: {launch:.1f} us from Python, {node:.1f} us in a CUDA graph."
        )
    if not_by_cudnn := [name for name, takes in document["cudnn_takes"].items() if not takes]:
        lines.append(f"torch does not use cuDNN for nn.RNN in {', '.join(not_by_cudnn)}.")
    return lines


def networks_notes(document: Document) -> list[str]:
    found = document.get("networks")
    if not found:
        return []
    if "failed" in found:
        return [f"Failed: {found['failed']}"]
    return [
        f"{found['networks']} networks of H {found['H']}, B {found['B']} under vmap, forward + backward: "
        f"{found['ratio']:.2f} times the time of one network (goal: at most 3)."
    ]


# --------------------------------------------------------------------------------------- picture


def picture(document: Document) -> Any:
    """Each contender's time relative to ours: one panel per pass, one line per cell; and a GPU's floor."""
    cells, env = ordered(document), document["environment"]
    where = f"{env['cpu']}, {env['threads']} threads, {document['settings']['dtype']}"
    names = [[str(cell[size]) for size in Cell._fields] for cell in cells]
    head = list(Cell._fields)
    if on_gpu(document):
        where = f"{env.get('card', {}).get('name', 'no GPU')}, torch {env['torch']}"
        names = [[*sizes, kind_of(cell)] for sizes, cell in zip(names, cells, strict=True)]
        head.append("dtype")
    drawn = figure(9, 1.5 + 0.34 * len(cells))
    panels = drawn.subplots(1, 2, sharey=True)
    for panel, (name, title) in zip(panels, PASSES.items(), strict=True):
        _draw_pass(panel, cells, name, title)
    panels[0].set_yticks(
        range(-1, len(cells)), draw(Table("", [head, *names])), family="monospace", fontsize=9
    )
    panels[0].set_ylim(len(cells) - 0.5, -1.5)
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), frameon=False)
    drawn.supxlabel(f"time relative to rnnkernels (further right is slower); {where}", fontsize=9, color=GREY)
    return drawn


def _draw_pass(panel: Any, cells: Sequence[Document], name: str, title: str) -> None:
    ours: dict[int, float] = {}
    points: dict[str, list[tuple[float, int]]] = {}  # by contender: the ratio and the row
    for row, cell in enumerate(cells):
        times = {who: timing["median_s"] for who, timing in cell[name]["times"].items()}
        if OURS in times:
            ours[row] = times[OURS]
            times |= {FLOOR: cell[name]["floor"]["floor_s"] * cell["T"]} if "floor" in cell[name] else {}
            for who, seconds in times.items():
                points.setdefault(who, []).append((seconds / times[OURS], row))
    ratios = [ratio for found in points.values() for ratio, _ in found] or [1.0]
    low, high = min(0.8, min(ratios) / 1.25), max(1.25, max(ratios) * 1.25)
    right = high * (high / low) ** 0.2  # leaves room for our own times
    panel.set_xscale("log")
    panel.set_xlim(low, right)
    for row in range(0, len(cells), 2):
        panel.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", zorder=0)
    panel.axvline(1.0, color="black", linewidth=1, zorder=1)
    for place, (who, found) in enumerate(points.items()):
        color, marker = MARKS.get(who, (GREY, "x"))
        # Each peer has a line of its own within the row, so that equal times do not hide each other.
        shift = 0.0 if who == OURS else 0.17 * (place - len(points) / 2)
        x, y = zip(*((ratio, row + shift) for ratio, row in found), strict=True)
        style = {"s": 90 if who == OURS else 26, "color": color, "marker": marker}
        panel.scatter(x, y, label=who if who == FLOOR else label(who), zorder=3, **style)
    panel.set_title(title, fontsize=11)
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [t for power in range(-4, 5) for digit in steps if low <= (t := digit * 10.0**power) <= high]
    panel.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=9)
    panel.minorticks_off()
    panel.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    panel.tick_params(length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    for row, words in {-1: f"{OURS}, ms", **{row: digits(1e3 * s) for row, s in ours.items()}}.items():
        panel.text(right, row, f"{words} ", ha="right", va="center", fontsize=8.5, color=GREY)
