"""The tables of a study, from its results alone, as aligned text or as Markdown.

A table a measure and model: rows are the rungs of the ladder below a baseline, columns the data sets and,
of several, their mean. Of test log-likelihood and accuracy a cell has, over the seeds' values x_1..x_n,

    mean +- deviation,   mean = sum x_i / n,   deviation^2 = sum (x_i - mean)^2 / (n - 1),

of the other measures the median. Over K data sets the mean of the means has deviation^2 and error^2
sum_k deviation_k^2 / K^2 and sum_k deviation_k^2 / (n_k K^2): seeds of different sets are independent.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from polyphonic_music.recipes import TECHNIQUES

WIDTH = 100
NONE = "-"

Results: TypeAlias = dict[str, Any]


class Cell(NamedTuple):
    """What the seeds brought; the two spreads and the interval are None where there are none."""

    value: float
    seeds: int = 0  # 0: not trained
    deviation: float | None = None
    error: float | None = None  # standard error of the mean over the seeds
    interval: tuple[float, float] | None = None  # mean lower and upper end of the estimates'


class Measure(NamedTuple):
    """A figure that a run has, and how a table shows it."""

    key: str
    title: str
    scale: float = 1.0
    digits: int = 2
    mean: bool = False  # mean and deviation, the highest being the best; else the median
    baseline: tuple[str, str] | None = None  # its name and its key in the results


LOG_LIKELIHOOD = Measure(
    "test",
    "Test log-likelihood, nats a step, higher is better",
    mean=True,
    baseline=("keys alone", "keys_alone"),
)
MEASURES = (
    LOG_LIKELIHOOD,
    Measure(
        "accuracy",
        "Expected accuracy on the test split, %, higher is better",
        scale=100.0,
        digits=1,
        mean=True,
        baseline=("last frame again", "repeat_accuracy"),
    ),
    Measure("seconds", "Seconds of a run on one thread, training and validation", digits=1),
    Measure("active", "Units that are active, % of their values over zero", scale=100.0, digits=1),
    Measure("gradient", "Gradient entries that are not zero, %", scale=100.0, digits=1),
)


class Grid(NamedTuple):
    """The cells of one table; what has no figure has no key."""

    measure: Measure
    rows: list[str]
    sets: list[str]
    cells: dict[tuple[str, str], Cell]  # by row and data set
    means: dict[str, Cell]  # by row, over `common`
    common: list[str]  # the sets of which every row with a figure has one


def number(value: Any) -> float | None:
    """A finite number, or None: null, NaN and infinities stand for what there is not."""
    found = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if found else None


def models(results: Results) -> list[str]:
    """Those of the results, each once, in their order."""
    return list(dict.fromkeys(entry["model"] for entry in results["results"]))


def sets_of(results: Results, model: str) -> list[str]:
    """The data sets with an entry of the model, in the order of the results' data."""
    found = [entry["data"] for entry in results["results"] if entry["model"] == model]
    return [name for name in dict.fromkeys([*results["data"], *found]) if name in found]


def rungs_of(results: Results, model: str) -> list[str]:
    """The rungs with an entry of the model: those that were to be run."""
    found = {entry["technique"] for entry in results["results"] if entry["model"] == model}
    return [rung for rung in TECHNIQUES if rung in found]


def cell(runs: Iterable[Results], measure: Measure) -> Cell | None:
    """One rung on one data set, over its seeds."""
    known = [(run, x) for run in runs if (x := number(run.get(measure.key))) is not None]
    values = [measure.scale * x for _, x in known]
    count = len(values)
    if not count:
        return None
    if not measure.mean:
        return Cell(statistics.median(values), count)
    deviation = statistics.stdev(values) if count > 1 else None
    error = None if deviation is None else deviation / math.sqrt(count)
    intervals = [run.get("interval") for run, _ in known if measure is LOG_LIKELIHOOD]
    return Cell(statistics.fmean(values), count, deviation, error, _mean_interval(intervals))


def _mean_interval(intervals: Sequence[Sequence[float] | None]) -> tuple[float, float] | None:
    """The mean of the lower and that of the upper ends, if all have them."""
    known = [(low, high) for low, high in filter(None, intervals) if None not in (number(low), number(high))]
    if not known or len(known) < len(intervals):
        return None
    return statistics.fmean(low for low, _ in known), statistics.fmean(high for _, high in known)


def over_sets(cells: Sequence[Cell]) -> Cell:
    """The mean over data sets, with its spread over seeds."""
    deviations = [c.deviation for c in cells if c.deviation is not None]
    errors = [c.error for c in cells if c.error is not None]
    spread = len(deviations) == len(cells)
    return Cell(
        statistics.fmean(c.value for c in cells),
        min(c.seeds for c in cells),
        math.hypot(*deviations) / len(cells) if spread else None,
        math.hypot(*errors) / len(cells) if spread else None,
        _mean_interval([c.interval for c in cells]),
    )


def make_grid(results: Results, model: str, measure: Measure) -> Grid:
    """All cells of one measure of one model."""
    sets, rungs, cells = sets_of(results, model), rungs_of(results, model), {}
    for entry in results["results"]:
        if entry["model"] == model and (found := cell(entry["runs"], measure)):
            cells[entry["technique"], entry["data"]] = found
    known = [rung for rung in rungs if any((rung, name) in cells for name in sets)]
    common = [name for name in sets if known and all((rung, name) in cells for rung in known)]
    if measure.baseline:
        for name in sets:
            value = number(results["data"].get(name, {}).get("baselines", {}).get(measure.baseline[1]))
            if value is not None:
                cells[measure.baseline[0], name] = Cell(measure.scale * value)
    rows = [*([measure.baseline[0]] if measure.baseline else []), *rungs]
    whole = [row for row in rows if common and all((row, name) in cells for name in common)]
    means = {row: over_sets([cells[row, name] for name in common]) for row in whole}
    return Grid(measure, rows, sets, cells, means, common)


# ------------------------------------------------------------------------------------------ text


def cell_text(found: Cell | None, measure: Measure, seeds: int, bold: bool) -> str:
    """`-8.40 ± 0.05`, with (n) where seeds are missing; an interval goes on a line of its own."""
    if found is None:
        return NONE
    text = decimal(found.value, measure.digits)
    if found.deviation is not None:
        text += f" ± {decimal(found.deviation, measure.digits)}"
    if 0 < found.seeds < seeds:
        text += f" ({found.seeds})"
    if bold:
        text = f"**{text}**"
    if found.interval is not None:
        text += f"\n[{', '.join(decimal(end, measure.digits) for end in found.interval)}]"
    return text


def decimal(value: float, digits: int) -> str:
    """With so many digits after the point; of a run that diverged only what shows that it did."""
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}"


def best_rows(cells: dict[str, Cell], measure: Measure) -> set[str]:
    """The rows with the highest value of a column, equal being what the table shows as equal."""
    shown = {row: round(found.value, measure.digits) for row, found in cells.items()}
    highest = max(shown.values(), default=0.0)
    compared = measure.mean and len(shown) > 1
    return {row for row, value in shown.items() if value == highest} if compared else set()


def text_rows(grid: Grid, markdown: bool) -> list[list[str]]:
    """The head and the rows, the best of each column in bold in Markdown."""
    measure = grid.measure
    columns = [{row: c for (row, data), c in grid.cells.items() if data == name} for name in grid.sets]
    names = ["", *grid.sets]
    if len(grid.sets) > 1:
        names.append("mean")
        columns.append(grid.means)
    seeds = most_seeds(grid)
    lines = [names, *([row] for row in grid.rows)]
    for column in columns:
        best = best_rows(column, measure) if markdown else set()
        for line in lines[1:]:
            line.append(cell_text(column.get(line[0]), measure, seeds, line[0] in best))
    return lines


def most_seeds(grid: Grid) -> int:
    """The seeds that a cell has where none is missing."""
    return max((found.seeds for found in grid.cells.values()), default=0)


def title(grid: Grid) -> str:
    """The measure and how its seeds are taken together."""
    seeds = most_seeds(grid)
    if seeds < 2:
        return f"{grid.measure.title}; one seed" if seeds else grid.measure.title
    kind = "mean ± standard deviation" if grid.measure.mean else "median"
    return f"{grid.measure.title}; {kind} over {seeds} seeds"


def plain(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, the first to the left; a cell may have several lines."""
    lines: list[list[str]] = []
    for row in rows:
        parts = [text.split("\n") for text in row]
        height = max(map(len, parts))
        lines += [[part[i] if i < len(part) else "" for part in parts] for i in range(height)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return ["  ".join(line) for line in aligned]


def markdown_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """The same rows as a table of Markdown."""
    rule = ["---", *["--:"] * (len(rows[0]) - 1)]
    return ["| " + " | ".join(row).replace("\n", "<br>") + " |" for row in (rows[0], rule, *rows[1:])]


# ----------------------------------------------------------------------------------- what is said


def absent(grid: Grid) -> list[str]:
    """What has no figure, a data set after the other: "all rungs on A", "+CL, +CLR on B"."""
    parts = []
    for name in grid.sets:
        rows = [row for row in grid.rows if (row, name) not in grid.cells]
        rungs = [row for row in grid.rows if row in TECHNIQUES]
        if len(rungs) > 1 and set(rungs) <= set(rows):
            rows = ["all rungs", *(row for row in rows if row not in rungs)]
        if rows:
            parts.append(f"{', '.join(rows)} on {name}")
    return parts


def notes(grid: Grid) -> list[str]:
    """The lines below a table: what is missing, and what the mean is over if not over all."""
    lines = []
    if parts := absent(grid):
        lines.append(f"Missing: {'; '.join(parts)}.")
    if grid.common and grid.common != grid.sets:
        lines.append(f"The mean is over {', '.join(grid.common)}, where every rung with figures has one.")
    if any(0 < found.seeds < most_seeds(grid) for found in grid.cells.values()):
        lines.append("(n): of n seeds only, the others are missing.")
    if any(found.interval for found in grid.cells.values()):
        lines.append("[a, b]: the 95 % interval of the estimate, its ends being means over the seeds.")
    return lines


def ladder_sentence(grid: Grid) -> str:
    """How many rungs have a higher mean than the one before them, and how far beyond the seeds' spread."""
    steps = list(pairwise(rung for rung in TECHNIQUES if rung in grid.means))
    if not steps:
        return "Fewer than two rungs have a mean, so none can be said to improve on another."
    changes = {step: grid.means[step[1]].value - grid.means[step[0]].value for step in steps}
    better = [step for step in steps if changes[step] > 0]
    listed = ", ".join(f"{high} over {low} by {decimal(changes[low, high], 3)}" for low, high in steps)
    text = f"{len(better)} of {len(steps)} rungs improve the mean log-likelihood: {listed}"
    errors = {step: [grid.means[rung].error for rung in step] for step in steps}
    spread = {step: math.hypot(a, b) for step, (a, b) in errors.items() if a is not None and b is not None}
    if len(spread) == len(steps):
        sure = sum(changes[step] > 2 * spread[step] for step in better)
        text += f"; {sure} by more than two standard errors of the seeds"
    return text + "."


def diverged_sentence(results: Results, model: str, kind: str, what: str) -> str | None:
    """Those of an entry's ``trials`` or ``runs`` that have no validation score; None without any."""
    counts = {rung: [0, 0] for rung in TECHNIQUES}
    for entry in results["results"]:
        if entry["model"] == model:
            counts[entry["technique"]][0] += sum(number(run["valid"]) is None for run in entry[kind])
            counts[entry["technique"]][1] += len(entry[kind])
    parts = [f"{rung} {lost} of {count}" for rung, (lost, count) in counts.items() if lost]
    return f"{what} that diverged: {', '.join(parts)}." if parts else None


def head(results: Results) -> list[str]:
    """What was run, where, on what data."""
    environment = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    plan = results["plan"].get("name", "without a name")
    lines = [
        f"Plan {plan}, {results['seconds']:.0f} s of training in all: {results['command']}",
        environment,
        *(f"{name}: {data['note']}" for name, data in results["data"].items()),
    ]
    return [line for line in lines if line]


def model_lines(results: Results, model: str, markdown: bool) -> list[str]:
    """All tables of a model, each with its notes, and the sentences on the whole."""
    lines = [f"## {model}" if markdown else f"{model}\n{'=' * len(model)}", ""]
    said: list[str] = []
    for measure in MEASURES:
        grid = make_grid(results, model, measure)
        rows = text_rows(grid, markdown)
        lines += [title(grid), "", *markdown_rows(rows)] if markdown else [title(grid), *plain(rows)]
        new = [note for note in notes(grid) if note not in said]  # most tables lack the same
        said += new
        lines += ["", *_paragraphs(new, markdown)]
        if measure is LOG_LIKELIHOOD and len(rungs_of(results, model)) > 1:
            lines += _paragraphs([ladder_sentence(grid)], markdown)
    others = [name for name in results["data"] if name not in sets_of(results, model)]
    rungs = [rung for rung in TECHNIQUES if rung not in rungs_of(results, model)]
    kinds = (("trials", "Trials of the search"), ("runs", "Full runs, in no figure here,"))
    sentences = [diverged_sentence(results, model, *kind) for kind in kinds]
    sentences += [f"Not run: {', '.join(names)}." for names in (rungs, others) if names]
    return [*lines, *_paragraphs([text for text in sentences if text], markdown)]


def _paragraphs(texts: Iterable[str], markdown: bool) -> list[str]:
    lines: list[str] = []
    for text in texts:
        lines += [*([text] if markdown else textwrap.wrap(text, WIDTH, subsequent_indent="  ")), ""]
    return lines


def table(results: Results, markdown: bool = False) -> str:
    """The whole report of a study, finished or not, as text for a terminal or as Markdown.

    Args:
        results: What the study wrote, with `results`, `data`, `environment`, `plan`, `command`, `seconds`.
        markdown: Markdown, with the best of each column in bold, instead of aligned text.

    Returns:
        The lines, ended by a newline. A dash stands for what there is not, and a line says which.
    """
    lines = _paragraphs(head(results), markdown)
    if not markdown:
        lines = [line for line in lines if line] + [""]
    if not results["results"]:
        lines.append("No results yet.")
    for model in models(results):
        lines += model_lines(results, model, markdown)
    return "\n".join(lines).rstrip() + "\n"
