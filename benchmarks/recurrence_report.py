"""Ratios, tables, notes and picture of `python -m benchmarks recurrence`, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .loops import COMPILED_STEPS
from .peers import PEERS, label
from .problem import OURS, Cell
from .report import GREY, NONE, Document, Table, digits, figure, geometric_mean, percent, ratio_text

PASSES = {"forward": "forward", "forward_backward": "forward + backward"}
GEMM, CACHE = "gemm", "cache"
STEADY = 0.75  # share of the matrix product's best rate; a run with less has a note


# ---------------------------------------------------------------------------------------- ratios


def on_gpu(document: Document) -> bool:
    return "rates" in document


def ordered(document: Document) -> list[Document]:
    """The cells in the order of the tables. Older files name the dtype only once."""
    old = {"precision": document["settings"].get("dtype"), "packed": False, "failed": {}, "left_out": []}
    cells = [{**old, **cell} for cell in document["cells"]]
    if not on_gpu(document):
        return cells
    return sorted(cells, key=lambda c: (c["packed"], c["precision"], c["T"], c["H"], c["B"], c["I"]))


def sizes(cell: Document) -> Cell:
    return Cell(*(cell[size] for size in Cell._fields))


def kind(cell: Document) -> str:
    return f"packed {cell['precision']}" if cell["packed"] else str(cell["precision"])


def measured_peers(document: Document) -> list[str]:
    """The peers with a time anywhere, in their usual order."""
    found = {peer for cell in document["cells"] for name in PASSES for peer in cell[name]["times"]}
    return [peer for peer in PEERS if peer in found]


def peer_over_ours(figures: Document) -> dict[str, float]:
    """Ratios of medians, for the times of one pass. Contenders may be missing."""
    medians = {contender: timing["median_s"] for contender, timing in figures["times"].items()}
    ours = medians.pop(OURS, None)
    return {peer: median / ours for peer, median in medians.items()} if ours else {}


def best(figures: Document) -> float | None:
    return min(peer_over_ours(figures).values(), default=None)


def share(document: Document, cell: Document, name: str) -> float | None:
    """The recurrence alone, relative to its limit: the floor on a GPU, the matrix product on the CPU."""
    alone = cell[name]["recurrence"]
    if not alone:
        return None
    if on_gpu(document):
        return float(cell["T"] * cell[name]["floor"]["floor_s"] / alone["median_s"])
    rate = sizes(cell).recurrence_flops(name == "forward_backward") / alone["median_s"]
    return float(rate / document["gemm"]["best_flops_per_s"])


def mean(values: Iterable[float | None]) -> float | None:
    """Geometric, because ratios multiply."""
    return geometric_mean(value for value in values if value is not None)


# ---------------------------------------------------------------------------------------- tables


def tables(document: Document) -> list[Table]:
    found = [Table(f"{title}, milliseconds", rows(document, name)) for name, title in PASSES.items()]
    return [*found, Table("", summary_rows(document), 2)]


def rows(document: Document, name: str) -> list[list[str]]:
    """One row per cell; `*` marks a median of few calls."""
    peers, gpu = measured_peers(document), on_gpu(document)
    kinds, limit = (["dtype"], "floor") if gpu else ([], "gemm")
    lines = [[*Cell._fields, *kinds, *map(label, (OURS, *peers)), "vs best", "vs loop", limit]]
    for cell in ordered(document):
        figures = cell[name]
        times = [time_text(figures["times"].get(contender)) for contender in (OURS, *peers)]
        ratios = [best(figures), peer_over_ours(figures).get("loop")]
        ends = [*map(ratio_text, ratios), percent(share(document, cell, name))]
        lines.append([*map(str, sizes(cell)), *([kind(cell)] if gpu else []), *times, *ends])
    return lines


def time_text(timing: Document | None) -> str:
    return digits(1e3 * timing["median_s"]) + ("*" if timing["slow"] else "") if timing else NONE


def summary_rows(document: Document) -> list[list[str]]:
    """Geometric means and the least ratio, for each pass and precision."""
    peers, limit = measured_peers(document), "share of floor" if on_gpu(document) else "gemm"
    lines = [["geometric means", "", "cells", "vs best", "least", *map(label, peers), limit]]
    for name, title in PASSES.items():
        for each in dict.fromkeys(map(kind, ordered(document))):
            cells = [cell for cell in ordered(document) if kind(cell) == each]
            bests = [ratio for cell in cells if (ratio := best(cell[name])) is not None]
            ratios = [geometric_mean(bests), min(bests, default=None)]
            ratios += [mean(peer_over_ours(cell[name]).get(peer) for cell in cells) for peer in peers]
            shares = mean(share(document, cell, name) for cell in cells)
            lines.append([title, each, str(len(cells)), *map(ratio_text, ratios), percent(shares)])
    return lines


# ----------------------------------------------------------------------------------------- notes


def notes(document: Document) -> list[str]:
    cells, settings = ordered(document), document["settings"]
    lines = gpu_notes(document) if on_gpu(document) else cpu_notes(document)
    passes = [cell[name] for cell in cells for name in PASSES]
    timings = [timing for figures in passes for timing in (*figures["times"].values(), figures["recurrence"])]
    if any(timing and timing["slow"] for timing in timings):
        lines.append(
            f"*: {settings['slow_calls']} calls only, because one takes more than {settings['slow_s']:g} s."
        )
    lines += [f"Not measured: {label(peer)} ({why})." for peer, why in document["skipped"].items()]
    for cell in cells:
        for contender, why in cell["failed"].items():
            lines.append(f"Failed: {label(contender)} at {cell['point']}: {why}")
    for peer in dict.fromkeys(peer for cell in cells for peer in cell["left_out"]):
        count = sum(peer in cell["left_out"] for cell in cells)
        lines.append(f"No time for {label(peer)} at {count} of {len(cells)} points.")
    if points := document.get("points_left_out"):
        lines.append(f"No time for {len(points)} points: {'; '.join(points)}.")
    if document.get("stopped"):
        lines.append(f"Stopped: {document['stopped']}")
    return lines


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
        alone = cell["forward"]["recurrence"]
        if (cache := cell.get(CACHE)) and alone:
            read = cache["read_bytes_per_s"] / 1e9
            share_of_read = cache["read"]["median_s"] / alone["median_s"]
            lines.append(
                f"{sizes(cell)}: the forward recurrence reads its matrix at {share_of_read * read:.0f} GB/s,"
                f" {percent(share_of_read)} of the {read:.0f} GB/s at which one thread reads its cache."
            )
    rates = [gemm_share(document, cell) for cell in document["cells"] if GEMM in cell]
    if min(rates, default=1.0) < STEADY:
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
        "Medians in ms by device events, input projection included. Ratios are times of peers over ours."
        " nn.RNN uses cuDNN if that supports the dtype, and runs in float16 beside bfloat16; CUDA graph: the"
        f" loop as one graph; compiled: the loop in compiled blocks of {COMPILED_STEPS} steps; FlashRNN: its"
        " Elman network. nn.RNN and FlashRNN compute a recurrence without leak, all others the leaky one. JAX"
        " waits for the device at each call. float32 is exact for all contenders; tf32 is float32 with TF32"
        " allowed to torch and cuDNN, which is cuDNN's default.",
        f"{sets} sets of random inputs take turns; caches are not emptied between calls.",
        "floor: the floor of a step relative to the recurrence alone, without its projection. It follows"
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


# --------------------------------------------------------------------------------------- picture


def picture(document: Document) -> Any:
    """The time of each peer relative to ours, and a GPU's floor: one panel per pass, one line per cell."""
    cells, peers, env = ordered(document), measured_peers(document), document["environment"]
    drawn = figure(9, 1.5 + 0.3 * len(cells))
    panels = drawn.subplots(1, 2, sharey=True)
    for panel, (name, title) in zip(panels, PASSES.items(), strict=True):
        # Color and shape both differ, so that neither gray printing nor color blindness confuses them.
        for marker, peer in zip("osD^vPXh", peers, strict=False):
            ratios = [peer_over_ours(cell[name]).get(peer) for cell in cells]
            draw_points(panel, ratios, label=label(peer), marker=marker)
        if on_gpu(document):
            draw_points(panel, [floor_over_ours(cell, name) for cell in cells], label="floor", marker="<")
        panel.axvline(1.0, color="black", linewidth=1)
        panel.set_xscale("log")
        panel.set_title(title, fontsize=11)
        panel.grid(color="#dddddd", linewidth=0.6)
    names = [f"{sizes(cell)}, {kind(cell)}" for cell in cells]
    panels[0].set_yticks(range(len(cells)), names, fontsize=9)
    panels[0].invert_yaxis()
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    where = env["card"]["name"] if "card" in env else f"{env['cpu']}, {env['threads']} threads"
    drawn.supxlabel(f"time relative to rnnkernels (further right is slower); {where}", fontsize=9, color=GREY)
    return drawn


def floor_over_ours(cell: Document, name: str) -> float | None:
    ours = cell[name]["times"].get(OURS)
    return cell["T"] * cell[name]["floor"]["floor_s"] / ours["median_s"] if ours else None


def draw_points(panel: Any, ratios: Sequence[float | None], **style: Any) -> None:
    points = [(ratio, row) for row, ratio in enumerate(ratios) if ratio is not None]
    panel.scatter([ratio for ratio, _ in points], [row for _, row in points], s=26, zorder=3, **style)
