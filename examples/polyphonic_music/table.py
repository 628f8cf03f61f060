"""The tables of a study, as aligned text or as Markdown.

There is one table for each model and measure. Its rows are a baseline, the rungs of the ladder and controls,
its columns the data sets and their mean. A cell of log-likelihood or accuracy summarizes the values x_1..x_n
of n seeds:

    mean +- deviation,   mean = sum x_i / n,   deviation^2 = sum (x_i - mean)^2 / (n - 1)

A cell of another measure is the median. The mean over K data sets has

    deviation^2 = sum_k deviation_k^2 / K^2,   standard error^2 = sum_k deviation_k^2 / (n_k K^2)

because the seeds of different data sets are independent.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from tabulate import tabulate

from polyphonic_music.recipes import TECHNIQUES

WIDTH = 100
NONE = "-"

Results: TypeAlias = dict[str, Any]


class Summary(NamedTuple):
    """What a cell shows, over the seeds; a spread or an interval that does not exist is None."""

    value: float
    seeds: int = 0  # 0 for a baseline
    deviation: float | None = None
    error: float | None = None  # standard error of the mean over the seeds
    interval: tuple[float, float] | None = None  # means of the lower and of the upper ends


class Measure(NamedTuple):
    """A figure of a run, and how a table shows it."""

    key: str
    title: str
    scale: float = 1.0
    digits: int = 2
    mean: bool = False  # show mean and deviation, the highest value is the best; else show the median
    baseline: tuple[str, str] | None = None  # its name and its key in the results


LOG_LIKELIHOOD = Measure(
    "test",
    "Test log-likelihood, nats per step, higher is better",
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
    Measure("seconds", "Seconds per run on one thread, training and validation", digits=1),
    Measure("active", "Active units, % of states greater than zero", scale=100.0, digits=1),
    Measure("gradient", "Gradient entries that are not zero, %", scale=100.0, digits=1),
)


class Grid(NamedTuple):
    """The cells of one table; a missing figure has no key."""

    measure: Measure
    rows: list[str]
    sets: list[str]
    cells: dict[tuple[str, str], Summary]  # by row and data set
    means: dict[str, Summary]  # by row, over `common`
    common: list[str]  # the data sets on which every rung that has figures has one

    @property
    def seeds(self) -> int:
        """The number of seeds of a complete cell."""
        return max((cell.seeds for cell in self.cells.values()), default=0)


def number(value: Any) -> float | None:
    """Return a finite number, or None for null, NaN and infinities."""
    found = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if found else None


def models(results: Results) -> list[str]:
    """The models in the results, each once."""
    return list(dict.fromkeys(entry["model"] for entry in results["results"]))


def sets_of(results: Results, model: str) -> list[str]:
    """The data sets on which the model was run."""
    found = [entry["data"] for entry in results["results"] if entry["model"] == model]
    return [name for name in dict.fromkeys([*results["data"], *found]) if name in found]


def rows_of(results: Results, model: str) -> list[str]:
    """The rungs of the ladder that were run, then other rows such as the control."""
    found = dict.fromkeys(entry["technique"] for entry in results["results"] if entry["model"] == model)
    return sorted(found, key=lambda row: TECHNIQUES.index(row) if row in TECHNIQUES else len(TECHNIQUES))


def summary(runs: Iterable[Results], measure: Measure) -> Summary | None:
    """The cell of one row on one data set; None without any value."""
    known = [(run, x) for run in runs if (x := number(run.get(measure.key))) is not None]
    values = [measure.scale * x for _, x in known]
    count = len(values)
    if not count:
        return None
    if not measure.mean:
        return Summary(statistics.median(values), count)
    deviation = statistics.stdev(values) if count > 1 else None
    error = None if deviation is None else deviation / math.sqrt(count)
    intervals = [run.get("interval") for run, _ in known if measure is LOG_LIKELIHOOD]
    return Summary(statistics.fmean(values), count, deviation, error, _mean_interval(intervals))


def _mean_interval(intervals: Sequence[Sequence[float] | None]) -> tuple[float, float] | None:
    """The means of the lower and of the upper ends; None unless all intervals exist."""
    known = [(low, high) for low, high in filter(None, intervals) if None not in (number(low), number(high))]
    if not known or len(known) < len(intervals):
        return None
    return statistics.fmean(low for low, _ in known), statistics.fmean(high for _, high in known)


def over_sets(cells: Sequence[Summary]) -> Summary:
    """The mean over data sets, with its spread over seeds."""
    deviations = [c.deviation for c in cells if c.deviation is not None]
    errors = [c.error for c in cells if c.error is not None]
    spread = len(deviations) == len(cells)
    return Summary(
        statistics.fmean(c.value for c in cells),
        min(c.seeds for c in cells),
        math.hypot(*deviations) / len(cells) if spread else None,
        math.hypot(*errors) / len(cells) if spread else None,
        _mean_interval([c.interval for c in cells]),
    )


def make_grid(results: Results, model: str, measure: Measure) -> Grid:
    """All cells of one measure of one model."""
    sets, rows, cells = sets_of(results, model), rows_of(results, model), {}
    for entry in results["results"]:
        if entry["model"] == model and (found := summary(entry["runs"], measure)):
            cells[entry["technique"], entry["data"]] = found
    known = [row for row in rows if any((row, name) in cells for name in sets)]
    rungs = [row for row in known if row in TECHNIQUES] or known  # a control must not narrow their mean
    common = [name for name in sets if rungs and all((row, name) in cells for row in rungs)]
    if measure.baseline:
        rows = [measure.baseline[0], *rows]
        for name in sets:
            value = number(results["data"].get(name, {}).get("baselines", {}).get(measure.baseline[1]))
            if value is not None:
                cells[rows[0], name] = Summary(measure.scale * value)
    whole = [row for row in rows if common and all((row, name) in cells for name in common)]
    means = {row: over_sets([cells[row, name] for name in common]) for row in whole}
    return Grid(measure, rows, sets, cells, means, common)


# ------------------------------------------------------------------------------------------ cells


def cell_text(found: Summary | None, measure: Measure, seeds: int, bold: bool) -> str:
    """`-8.40 ± 0.05`, followed by (n) where seeds are missing; an interval is on a second line."""
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
    """Fixed-point notation; scientific notation for the huge value of a diverged run."""
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}"


def best_rows(cells: dict[str, Summary], measure: Measure) -> set[str]:
    """The rows with the highest value of a column, as rounded in the table."""
    shown = {row: round(found.value, measure.digits) for row, found in cells.items()}
    highest = max(shown.values(), default=0.0)
    compared = measure.mean and len(shown) > 1
    return {row for row, value in shown.items() if value == highest} if compared else set()


def grid_table(grid: Grid, markdown: bool) -> str:
    """The table as aligned text, or as Markdown with the best of each column in bold."""
    columns = {name: {r: c for (r, data), c in grid.cells.items() if data == name} for name in grid.sets}
    if len(grid.sets) > 1:
        columns["mean"] = grid.means
    rows = [[row] for row in grid.rows]
    for column in columns.values():
        best = best_rows(column, grid.measure) if markdown else set()
        for row in rows:
            text = cell_text(column.get(row[0]), grid.measure, grid.seeds, row[0] in best)
            row.append(text.replace("\n", "<br>") if markdown else text)
    kind, aligned = "pipe" if markdown else "plain", ["left", *["right"] * len(columns)]
    return str(tabulate(rows, ["", *columns], tablefmt=kind, colalign=aligned, disable_numparse=True))


def title(grid: Grid) -> str:
    """The measure and the summary over seeds."""
    if grid.seeds < 2:
        return f"{grid.measure.title}; one seed" if grid.seeds else grid.measure.title
    kind = "mean ± standard deviation" if grid.measure.mean else "median"
    return f"{grid.measure.title}; {kind} over {grid.seeds} seeds"


# ------------------------------------------------------------------------------------------ notes


def absent(grid: Grid) -> list[str]:
    """The missing figures by data set: "all rungs on A", "+CL, +CLR on B"."""
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
    """The lines below a table."""
    lines = []
    if parts := absent(grid):
        lines.append(f"Missing: {'; '.join(parts)}.")
    if grid.common and grid.common != grid.sets:
        lines.append(f"The mean is over {', '.join(grid.common)}, where every rung with figures has one.")
    if any(0 < found.seeds < grid.seeds for found in grid.cells.values()):
        lines.append("(n): mean over n seeds only, because the others are missing.")
    if any(found.interval for found in grid.cells.values()):
        lines.append("[a, b]: 95 % interval of the estimate; its ends are means over the seeds.")
    return lines


def difference(grid: Grid, low: str, high: str) -> tuple[float, float | None]:
    """How much the mean of a row is above the mean of another row, and the standard error."""
    errors = [e for row in (low, high) if (e := grid.means[row].error) is not None]
    change = grid.means[high].value - grid.means[low].value
    return change, math.hypot(*errors) if len(errors) == 2 else None


def ladder_sentence(grid: Grid) -> str:
    """How many rungs improve on the rung before, and how many by more than the spread over seeds."""
    steps = list(pairwise(rung for rung in TECHNIQUES if rung in grid.means))
    if not steps:
        return "Fewer than two rungs have a mean, so rungs cannot be compared."
    changes = [difference(grid, low, high) for low, high in steps]
    named = zip(steps, changes, strict=True)
    listed = ", ".join(f"{high} over {low} by {decimal(change, 3)}" for (low, high), (change, _) in named)
    better = sum(change > 0 for change, _ in changes)
    text = f"{better} of {len(steps)} rungs improve the mean log-likelihood: {listed}"
    if all(error is not None for _, error in changes):
        sure = sum(change > max(0.0, 2 * error) for change, error in changes if error is not None)
        text += f"; {sure} by more than two standard errors of the seeds"
    return text + "."


def control_sentences(grid: Grid) -> list[str]:
    """How far the last rung is above each row that is not a rung of the ladder."""
    last = [rung for rung in TECHNIQUES if rung in grid.means][-1:]
    rows = [row for row in grid.rows[1:] if row not in TECHNIQUES and row in grid.means]
    lines = []
    for rung, row in ((rung, row) for rung in last for row in rows):
        change, error = difference(grid, row, rung)
        spread = "" if error is None else f" (standard error {decimal(error, 3)})"
        lines.append(f"The mean log-likelihood of {rung} minus that of {row}: {decimal(change, 3)}{spread}.")
    return lines


def diverged_sentence(results: Results, model: str, kind: str, subject: str) -> str | None:
    """How many ``trials`` or ``runs`` have no validation score; None if all have one."""
    counts = {row: [0, 0] for row in rows_of(results, model)}
    for entry in results["results"]:
        if entry["model"] == model:
            counts[entry["technique"]][0] += sum(number(run["valid"]) is None for run in entry[kind])
            counts[entry["technique"]][1] += len(entry[kind])
    parts = [f"{row} {lost} of {count}" for row, (lost, count) in counts.items() if lost]
    return f"{subject}: {', '.join(parts)}." if parts else None


# ----------------------------------------------------------------------------------------- report


def head(results: Results) -> list[str]:
    """The plan, the environment and the data sets."""
    environment = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    plan = results["plan"].get("name", "without a name")
    lines = [
        f"Plan {plan}, {results['seconds']:.0f} s of training in all: {results['command']}",
        environment,
        *(f"{name}: {data['note']}" for name, data in results["data"].items()),
    ]
    return [line for line in lines if line]


def model_lines(results: Results, model: str, markdown: bool) -> list[str]:
    """All tables of a model with their notes, and the sentences about the whole model."""
    lines = [f"## {model}" if markdown else f"{model}\n{'=' * len(model)}", ""]
    said: list[str] = []
    for measure in MEASURES:
        grid = make_grid(results, model, measure)
        lines += [title(grid), *([""] if markdown else []), grid_table(grid, markdown)]
        new = [note for note in notes(grid) if note not in said]  # most tables of a model lack the same cells
        said += new
        lines += ["", *_paragraphs(new, markdown)]
        if measure is LOG_LIKELIHOOD and len(rows_of(results, model)) > 1:
            lines += _paragraphs([ladder_sentence(grid), *control_sentences(grid)], markdown)
    others = [name for name in results["data"] if name not in sets_of(results, model)]
    rungs = [rung for rung in TECHNIQUES if rung not in rows_of(results, model)]
    kinds = (
        ("trials", "Diverged trials of the search"),
        ("runs", "Diverged full runs (excluded from the tables)"),
    )
    sentences = [diverged_sentence(results, model, *kind) for kind in kinds]
    sentences += [f"Not run: {', '.join(names)}." for names in (rungs, others) if names]
    return [*lines, *_paragraphs([text for text in sentences if text], markdown)]


def _paragraphs(texts: Iterable[str], markdown: bool) -> list[str]:
    lines: list[str] = []
    for text in texts:
        lines += [*([text] if markdown else textwrap.wrap(text, WIDTH, subsequent_indent="  ")), ""]
    return lines


def table(results: Results, markdown: bool = False) -> str:
    """The report of a finished or unfinished study, as text for a terminal or as Markdown.

    Args:
        results: The results file, with `results`, `data`, `environment`, `plan`, `command`, `seconds`.
        markdown: Whether to return Markdown, with the best of each column in bold.

    Returns:
        The lines, terminated by a newline. A dash is a missing figure, which a line below the table names.
    """
    lines = _paragraphs(head(results), markdown)
    if not markdown:
        lines = [line for line in lines if line] + [""]
    if not results["results"]:
        lines.append("No results yet.")
    for model in models(results):
        lines += model_lines(results, model, markdown)
    return "\n".join(lines).rstrip() + "\n"
