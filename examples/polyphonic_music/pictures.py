"""Figures of a study: learning curves, and a sampled piece above a real one.

Each function returns one line that says where the picture is, or why there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from polyphonic_music.files import write_file
from polyphonic_music.recipes import TECHNIQUES
from polyphonic_music.rolls import KEYS, LOWEST_PITCH
from polyphonic_music.table import Results, number, rows_of, sets_of

# Colors (Okabe and Ito) and marks both differ, so that neither grey print nor color blindness mixes rungs up.
COLORS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7")
MARKS = dict(zip(TECHNIQUES, zip(COLORS, "os^Dv", strict=True), strict=True))
OTHER_MARK = ("#888888", "X")  # a row that is not a rung of the ladder
BLACK_KEYS = (1, 3, 6, 8, 10)  # semitones above C

Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]  # epochs, values


def learning_curves(results: Results, model: str, path: str | Path) -> str:
    """Plot validation log-likelihood over epochs: a panel per data set, a color per rung, a line per seed.

    A mark is at the epoch of the best validation, whose weights were tested. A panel shows the range near the
    best values, without the beginning of a run and without the depth to which a diverged run falls.
    """
    curves = {name: _curves(results, model, name) for name in sets_of(results, model)}
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        return f"no picture: {model} has no learning curve yet"
    columns, rows = min(2, len(curves)), (len(curves) + 1) // 2
    figure = _figure(2.4 + 4 * columns, 0.9 + 3.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(curves) :]:
        panel.remove()
    for panel, (name, found) in zip(panels, curves.items(), strict=False):
        alone = number(results["data"].get(name, {}).get("baselines", {}).get("keys_alone"))
        _draw_curves(panel, found, alone)
        panel.set_title(name, fontsize=11, loc="left")
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("validation log-likelihood, nats per step", fontsize=10)
    shown = [row for row in rows_of(results, model) if any(row in found for found in curves.values())]
    marks = [MARKS.get(row, OTHER_MARK) for row in shown]
    figure.legend(
        [Line2D([], [], color=color, marker=mark) for color, mark in marks],
        shown,
        loc="outside upper center",
        ncols=len(shown),
        frameon=False,
        title=f"{model}: one line per seed, a mark at its best epoch",
    )
    return _saved(figure, path)


def _curves(results: Results, model: str, name: str) -> dict[str, list[Curve]]:
    """The curves of all runs by row; a value that is not finite is NaN."""
    found: dict[str, list[Curve]] = {}
    for entry in results["results"]:
        if (entry["model"], entry["data"]) != (model, name):
            continue
        for run in entry["runs"]:
            values = np.array([np.nan if (x := number(v)) is None else x for v in run["curve"]["valid"]])
            if np.isfinite(values).any():
                epochs = np.array(run["curve"]["epoch"], float)
                found.setdefault(entry["technique"], []).append((epochs, values))
    return found


def lowest_shown(values: list[NDArray[np.float64]], alone: float | None) -> float:
    """The lower end of a panel, such that the runs' best values fill its upper third if they differ enough.

    Values below `alone`, the log-likelihood of the keys alone, do not count.
    """
    floor = -np.inf if alone is None else alone
    best = [float(np.nanmax(v)) for v in values]
    top, least = max(best), max(floor, min(float(np.nanmin(v)) for v in values))
    return max(least, top - max(3 * (top - max(floor, min(best))), 0.25 * (top - least)))


def _draw_curves(panel: Axes, curves: dict[str, list[Curve]], alone: float | None) -> None:
    every = [values for runs in curves.values() for _, values in runs]
    top, bottom = max(float(np.nanmax(values)) for values in every), lowest_shown(every, alone)
    margin = 0.06 * abs(top - bottom) or 0.1
    panel.set_ylim(min(top, bottom) - margin, top + margin)
    for row, runs in curves.items():
        color, mark = MARKS.get(row, OTHER_MARK)
        for epochs, values in runs:
            best = int(np.nanargmax(values))
            panel.plot(epochs, values, color=color, linewidth=0.9)
            panel.scatter(epochs[best], values[best], 42, color, marker=mark, edgecolor="white", zorder=3)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.tick_params(labelsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def two_rolls(sampled: ArrayLike, real: ArrayLike, path: str | Path, *, name: str = "") -> str:
    """Draw a sampled piece above a real one, both rolls [T, 88], up to the end of the shorter one.

    `name` is the data set of the real piece.
    """
    pieces = [np.asarray(roll) for roll in (sampled, real)]
    for argument, piece in zip(("sampled", "real"), pieces, strict=True):
        if piece.ndim != 2 or piece.shape[1] != KEYS or not len(piece):
            raise ValueError(f"{argument} must have shape [T, {KEYS}] with T > 0, got {list(piece.shape)}")
    steps = min(map(len, pieces))
    pieces = [piece[:steps] for piece in pieces]
    figure = _figure(9, 5.6)
    used = np.flatnonzero(np.concatenate(pieces).any(axis=0))
    low, high = (int(used[0]), int(used[-1])) if len(used) else (0, KEYS - 1)
    titles = ("sampled", f"real, from the test split{f' of {name}' if name else ''}")
    for panel, piece, title, color in zip(
        figure.subplots(2, 1, sharex=True, sharey=True), pieces, titles, ("#D55E00", "#0072B2"), strict=True
    ):
        _draw_roll(panel, piece, color)
        panel.set_ylim(max(-0.5, low - 2.5), min(KEYS - 0.5, high + 2.5))
        panel.set_title(title, fontsize=11, loc="left")
        panel.set_ylabel("key", fontsize=10)
    panel.set_xlabel("step", fontsize=10)
    return _saved(figure, path)


def _draw_roll(panel: Axes, roll: NDArray[Any], color: str) -> None:
    """Notes as bars, above stripes for the black keys; the Cs are labelled."""
    for key in range(KEYS):
        if (LOWEST_PITCH + key) % 12 in BLACK_KEYS:
            panel.axhspan(key - 0.5, key + 0.5, color="#f3f3f3", linewidth=0)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], roll[:, key] != 0, [0]])))
        bars = [(int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]
        panel.broken_barh(bars, (key - 0.42, 0.84), facecolor=color, edgecolor="white", linewidth=0.4)
    octaves = [key for key in range(KEYS) if (LOWEST_PITCH + key) % 12 == 0]
    panel.set_yticks(octaves, [f"C{(LOWEST_PITCH + key) // 12 - 1}" for key in octaves], fontsize=9)
    panel.grid(axis="y", color="#cccccc", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_xlim(0, len(roll))
    panel.tick_params(labelsize=9, length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    """An empty figure; the size is in inches."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _saved(figure: Figure, path: str | Path) -> str:
    path = Path(path)
    try:
        write_file(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))
    except (OSError, ValueError) as error:
        return f"no picture: {path} cannot be written ({error})"
    return f"picture: {path}"
