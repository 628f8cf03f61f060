"""Tables and picture of a run on a GPU, from its document (gpu_recurrence.py) alone."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .gpu_peers import COMPILED_STEPS
from .machine import environment_line
from .peers import PEERS
from .problem import OURS
from .report import (
    GREY,
    MARKS,
    PASSES,
    RECURRENCE,
    WIDTH,
    Document,
    geometric_mean,
    label,
    markdown_rows,
    percent,
    plain,
    ratio_text,
)

NONE = "-"


def table(document: Document, markdown: bool = False) -> str:
    """Environment first, a table a pass, the summary last."""
    where = environment_line(document["environment"])
    draw = markdown_rows if markdown else plain
    lines = [where, ""] if markdown else [*textwrap.wrap(where, WIDTH), ""]
    for name, title in PASSES.items():
        title = f"{title}, microseconds a step"
        lines += [title, ""] if markdown else [title]
        lines += [*draw(rows(document, name)), ""]
    for note in notes(document):
        lines += [note, ""] if markdown else textwrap.wrap(note, WIDTH, subsequent_indent="  ")
    if not markdown:
        lines.append("")
    return "\n".join([*lines, *draw(summary_rows(document), 2), *networks_lines(document)])


def ordered(document: Document) -> list[Document]:
    return sorted(
        document["cells"], key=lambda c: (c["packed"], c["precision"], c["T"], c["H"], c["B"], c["I"])
    )


def measured_peers(document: Document) -> list[str]:
    """Those with a time anywhere, in their usual order."""
    found = {who for cell in document["cells"] for name in PASSES for who in cell[name]["times"]}
    return [peer for peer in PEERS if peer in found]


def rows(document: Document, name: str) -> list[list[str]]:
    peers = measured_peers(document)
    head = ["H", "B", "T", "dtype", "ours", *peers, "best", "alone", "floor", "share"]
    lines = [head]
    for cell in ordered(document):
        figures = cell[name]
        times = [us(figures["times"].get(who), cell["T"]) for who in (OURS, *peers)]
        share = figures["share_of_floor"]
        lines.append(
            [
                *(str(cell[size]) for size in "HB"),
                "packed" if cell["packed"] else str(cell["T"]),
                cell["precision"],
                *times,
                ratio_text(figures["best_peer_over_ours"]),
                us(figures["recurrence"], cell["T"]),
                digits(1e6 * figures["floor"]["floor_s"]),
                NONE if share is None else percent(share),
            ]
        )
    return lines


def kind_of(cell: Document) -> str:
    return f"packed {cell['precision']}" if cell["packed"] else str(cell["precision"])


def us(timing: Document | None, steps: int) -> str:
    """Microseconds a step; `*` marks a median of few calls."""
    if timing is None:
        return NONE
    return digits(1e6 * timing["median_s"] / steps) + ("*" if timing["slow"] else "")


def digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def notes(document: Document) -> list[str]:
    settings, rates = document["settings"], document["rates"]
    products = ", ".join(f"{1e-12 * rate:.3g} in {name}" for name, rate in rates["flops_per_s"].items())
    lines = [
        "Medians by the device's events, input projection included; best: the fastest other over rnnkernels,"
        " above 1x rnnkernels is faster. rnn: nn.RNN, by cuDNN where that takes the dtype; half: the same in"
        " float16, beside bfloat16; graph: the loop as one CUDA graph; compile: the loop in compiled blocks"
        f" of {COMPILED_STEPS} steps; scan: jax.lax.scan; flash: FlashRNN's Elman network. rnn, half and"
        " flash compute a recurrence without leak, all others the leaky one. JAX waits for the device at each"
        " call."
        " float32 is exact for everyone; tf32 is float32 with torch's and cuDNN's TF32 allowed, as cuDNN has"
        " it by default.",
        f"{settings['input_sets']} sets of random inputs take turns; caches are not emptied between calls.",
        "alone: the recurrence without its projection; share: of the floor in that. The floor is computed"
        f" from what this run measured: copy {1e-12 * rates['copy_bytes_per_s']:.3g} TB/s; products, TFLOP/s:"
        f" {products}; " + latency_text(rates),
    ]
    if rates["launch_s"] and rates["graph_node_s"]:
        lines.append(
            f"A small kernel every {1e6 * rates['launch_s']:.1f} us from Python, every"
            f" {1e6 * rates['graph_node_s']:.1f} us in a CUDA graph."
        )
    not_by_cudnn = [name for name, takes in document["cudnn_takes"].items() if not takes]
    if not_by_cudnn:
        lines.append(f"This torch gives no {', '.join(not_by_cudnn)} to cuDNN: there rnn is torch's own.")
    lines += [f"Not measured: {label(peer)} ({why})." for peer, why in document["skipped"].items()]
    for cell in document["cells"]:
        for who, why in cell["failed"].items():
            name = f"{OURS}, recurrence alone" if who == RECURRENCE else label(who)
            lines.append(f"Failed: {name} at {cell['point']}: {why}")
    lines += left_out_lines(document)
    if document["stopped"]:
        lines.append(f"Stopped: {document['stopped']}")
    return lines


def latency_text(rates: Document) -> str:
    if rates["latencies"] is None:
        return f"no latencies ({rates['why_no_latencies']}), a model's instead, good to a factor of two."
    named = ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {1e9 * seconds:.0f}"
        for name, seconds in rates["latencies"].items()
    )
    return f"latencies, ns: {named}."


def left_out_lines(document: Document) -> list[str]:
    """What the budget did not suffice for."""
    places: dict[str, list[str]] = {}
    for cell in ordered(document):
        for peer in cell["left_out"]:
            places.setdefault(peer, []).append(f"H {cell['H']} B {cell['B']} {cell['precision']}")
    lines = [
        f"No time for {label(peer)} at {len(where)} of {len(document['cells'])} points: {shortened(where)}."
        for peer, where in places.items()
    ]
    points = document["points_left_out"]
    return [*lines, f"No time for {len(points)} points: {'; '.join(points)}."] if points else lines


def shortened(places: Sequence[str], most: int = 4) -> str:
    return ", ".join(places[:most]) + (" and more" if len(places) > most else "")


# --------------------------------------------------------------------------------------- summary


def summary_rows(document: Document) -> list[list[str]]:
    """For each pass and precision: the means and the least over the points."""
    peers = measured_peers(document)
    lines = [["geometric means", "", "points", "best", "least", *peers, "share of floor"]]
    kinds = dict.fromkeys(map(kind_of, ordered(document)))
    for name, title in PASSES.items():
        for kind in kinds:
            figures = [cell[name] for cell in document["cells"] if kind_of(cell) == kind]
            ratios = [f["best_peer_over_ours"] for f in figures if f["best_peer"]]
            shares = [f["share_of_floor"] for f in figures if f["share_of_floor"]]
            mean_share = geometric_mean(shares)
            lines.append(
                [title, kind, str(len(figures)), ratio_text(geometric_mean(ratios))]
                + [ratio_text(min(ratios, default=None))]
                + [
                    ratio_text(
                        geometric_mean(f["peer_over_ours"][p] for f in figures if p in f["peer_over_ours"])
                    )
                    for p in peers
                ]
                + [NONE if mean_share is None else percent(mean_share)]
            )
    return lines


def networks_lines(document: Document) -> list[str]:
    found = document.get("networks")
    if not found:
        return []
    if "failed" in found:
        return [f"failed: {found['failed']}"]
    return [
        f"{found['networks']} networks of H {found['H']}, B {found['B']} under vmap, forward + backward: "
        f"{found['ratio']:.2f} times the time of one (asked: at most 3)"
    ]


# --------------------------------------------------------------------------------------- picture


def picture(document: Document, path: Path) -> None:
    """Microseconds a step against H: a row of panels for each pass and dtype, a panel a batch size."""
    figure_class: Any = importlib.import_module("matplotlib.figure").Figure
    cells = [c for c in ordered(document) if not c["packed"] and c["precision"] != "tf32"]
    if cells:
        steps = max({c["T"] for c in cells}, key=lambda t: sum(c["T"] == t for c in cells))
        cells = [c for c in cells if c["T"] == steps]
    batches = sorted({c["B"] for c in cells}) or [0]
    dtypes = sorted({c["precision"] for c in cells}) or [NONE]
    kinds = [(name, dtype) for name in PASSES for dtype in dtypes]
    size = (max(5.0, 2.4 * len(batches) + 1), 2.2 * len(kinds) + 1)
    figure = figure_class(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(len(kinds), len(batches), sharex=True, sharey="row", squeeze=False)
    for row, (name, dtype) in zip(panels, kinds, strict=True):
        for panel, batch in zip(row, batches, strict=True):
            chosen = [c for c in cells if c["B"] == batch and c["precision"] == dtype]
            draw_panel(panel, chosen, name)
            panel.set_title(f"B {batch}", fontsize=9)
        row[0].set_ylabel(f"{PASSES[name]}\n{dtype}, us a step", fontsize=8)
    labels: dict[str, Any] = {}
    for panel in panels.flat:
        labels |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    card, torch_version = document["environment"].get("card", {}), document["environment"]["torch"]
    figure.supxlabel(f"H.  {card.get('name', 'no card')}, torch {torch_version}", fontsize=8, color=GREY)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_panel(panel: Any, cells: Sequence[Document], name: str) -> None:
    ticker: Any = importlib.import_module("matplotlib.ticker")
    contenders = dict.fromkeys(who for cell in cells for who in cell[name]["times"])
    for who in contenders:
        having = [c for c in cells if who in c[name]["times"]]
        steps = [1e6 * c[name]["times"][who]["median_s"] / c["T"] for c in having]
        colour, marker = MARKS.get(who, (GREY, "x"))
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.0}
        panel.plot([c["H"] for c in having], steps, label=label(who), **style)
    floors = [(c["H"], 1e6 * c[name]["floor"]["floor_s"]) for c in cells]
    if floors:
        panel.plot(*zip(*floors, strict=True), "--", color=GREY, linewidth=1, label="floor")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.minorticks_off()
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
    panel.grid(color="#dddddd", linewidth=0.5)
    panel.tick_params(labelsize=7)
