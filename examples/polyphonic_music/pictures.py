"""Pictures of a study: learning curves, and a sampled piece beside a real one. matplotlib draws them.

Every function returns one line: where the picture is, or why there is none.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyphonic_music.files import write_file
from polyphonic_music.recipes import TECHNIQUES
from polyphonic_music.rolls import KEYS, LOWEST_PITCH
from polyphonic_music.table import Results, number, sets_of

# Colour and mark both differ (Okabe and Ito's colours), so that neither grey nor colour blindness mixes them.
MARKS = dict(
    zip(
        TECHNIQUES,
        [("#000000", "o"), ("#E69F00", "s"), ("#0072B2", "^"), ("#009E73", "D"), ("#CC79A7", "v")],
        strict=True,
    )
)
BLACK_KEYS = (1, 3, 6, 8, 10)  # pitches over C


def learning_curves(results: Results, model: str, path: str | Path) -> str:
    """Validation log-likelihood over epochs: a panel a data set, a colour a rung, a line a seed.

    A mark is where the validation was best, whose weights were tested. A panel shows what is near the
    best values, and not the start nor how deep a run fell that diverged.
    """
    curves = {name: _curves(results, model, name) for name in sets_of(results, model)}
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        return f"no picture: {model} has no learning curve yet"
    columns, rows = min(2, len(curves)), (len(curves) + 1) // 2
    figure = _figure((2.4 + 4 * columns, 0.9 + 3.3 * rows))
    if isinstance(figure, str):
        return figure
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(curves) :]:
        panel.remove()
    for panel, (name, found) in zip(panels, curves.items(), strict=False):
        alone = number(results["data"].get(name, {}).get("baselines", {}).get("keys_alone"))
        _draw_curves(panel, found, alone)
        panel.set_title(name, fontsize=11, loc="left")
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("validation log-likelihood, nats a step", fontsize=10)
    shown = [rung for rung in MARKS if any(rung in found for found in curves.values())]
    lines: Any = importlib.import_module("matplotlib.lines")
    handles = [lines.Line2D([], [], color=MARKS[rung][0], marker=MARKS[rung][1]) for rung in shown]
    title = f"{model}: a line a seed, a mark at its best epoch"
    place = "outside upper center"
    figure.legend(handles, shown, loc=place, ncols=len(shown), frameon=False, title=title)
    return _saved(figure, path)


Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]  # epochs, values


def _curves(results: Results, model: str, name: str) -> dict[str, list[Curve]]:
    """Those of every run of every rung; NaN where there is no finite value."""
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
    """Where a panel begins: all runs' best values fill its upper third, if they differ enough.

    Neither a best value nor anything else counts that is lower than that of the keys alone.
    """
    floor = -np.inf if alone is None else alone
    best = [float(np.nanmax(v)) for v in values]
    top, least = max(best), max(floor, min(float(np.nanmin(v)) for v in values))
    return max(least, top - max(3 * (top - max(floor, min(best))), 0.25 * (top - least)))


def _draw_curves(panel: Any, curves: dict[str, list[Curve]], alone: float | None) -> None:
    every = [values for runs in curves.values() for _, values in runs]
    top, bottom = max(float(np.nanmax(values)) for values in every), lowest_shown(every, alone)
    margin = 0.06 * abs(top - bottom) or 0.1
    panel.set_ylim(min(top, bottom) - margin, top + margin)
    for rung, (color, mark) in MARKS.items():
        for epochs, values in curves.get(rung, []):
            best = int(np.nanargmax(values))
            panel.plot(epochs, values, color=color, linewidth=0.9)
            panel.scatter(epochs[best], values[best], 42, color, marker=mark, edgecolor="white", zorder=3)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.tick_params(labelsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def two_rolls(sampled: ArrayLike, real: ArrayLike, path: str | Path, *, name: str = "") -> str:
    """A sampled piece above a real one, rolls [T, 88], as their notes over the steps.

    `name` is what the real one is from. Both are drawn to the end of the shorter one.
    """
    pieces = [np.asarray(roll) for roll in (sampled, real)]
    for argument, piece in zip(("sampled", "real"), pieces, strict=True):
        if piece.ndim != 2 or piece.shape[1] != KEYS or not len(piece):
            raise ValueError(f"{argument} must have shape [T, {KEYS}] and a step, got {list(piece.shape)}")
    steps = min(map(len, pieces))
    pieces = [piece[:steps] for piece in pieces]
    figure = _figure((9, 5.6))
    if isinstance(figure, str):
        return figure
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


def _draw_roll(panel: Any, roll: NDArray[Any], color: str) -> None:
    """Notes as bars, over stripes for the black keys; the Cs are named."""
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


def _figure(size: tuple[float, float]) -> Any:
    """A figure of inches, or the line that says why there is none."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return "no picture: matplotlib is not installed"
    return matplotlib.Figure(figsize=size, dpi=150, layout="constrained")


def _saved(figure: Any, path: str | Path) -> str:
    path = Path(path)
    try:
        write_file(path, lambda beside: figure.savefig(beside, format=path.suffix[1:]))
    except (OSError, ValueError) as error:
        return f"no picture: {path} cannot be written ({error})"
    return f"picture: {path}"
