"""The tables of a study: figures, the best cells, missing figures, the sentences below."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from polyphonic_music.recipes import TECHNIQUES
from polyphonic_music.table import (
    LOG_LIKELIHOOD,
    MEASURES,
    ladder_sentence,
    make_grid,
    table,
)
from polyphonic_music_helpers import SETS, entry_of, made_results


def column_values(text: str, row: str) -> list[str]:
    """The cells of the first row of that name in a Markdown report."""
    return next(cells for first, *cells in rows_in(text) if first == row)


def rows_in(text: str) -> list[list[str]]:
    """The rows of all tables of a Markdown report."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def sentence(results: dict[str, Any]) -> str:
    return ladder_sentence(make_grid(results, "RNN", LOG_LIKELIHOOD))


def test_mean_and_sample_deviation_over_the_seeds() -> None:
    results = made_results()
    text = table(results, markdown=True)
    assert "mean ± standard deviation over 3 seeds" in text
    # sqrt(0.1^2 + 0.1^2) / 2 for the mean of two sets
    assert column_values(text, "SGD") == ["-9.00 ± 0.10", "-5.00 ± 0.10", "-7.00 ± 0.07"]
    assert column_values(text, "keys alone") == ["-11.00", "-11.00", "-11.00"]
    found = make_grid(results, "RNN", LOG_LIKELIHOOD).cells["+C", "Nottingham"]
    tests = [run["test"] for run in entry_of(results, "Nottingham", "+C")["runs"]]
    assert found.value == pytest.approx(sum(tests) / 3)
    assert found.deviation == pytest.approx(statistics.stdev(tests))
    assert found.error == pytest.approx(statistics.stdev(tests) / math.sqrt(3))


def test_a_single_seed_has_no_deviation() -> None:
    text = table(made_results(seeds=1), markdown=True)
    assert "higher is better; one seed" in text
    assert "±" not in text
    assert column_values(text, "+CLRM") == ["**-8.00**", "**-4.00**", "**-6.00**"]
    assert "standard errors" not in text


def test_seconds_are_medians_and_accuracies_percent() -> None:
    results = made_results()
    entry_of(results, "JSB_Chorales", "SGD")["runs"][2]["seconds"] = 1000.0
    cells = {measure.key: make_grid(results, "RNN", measure).cells for measure in MEASURES}
    assert cells["seconds"]["SGD", "JSB_Chorales"].value == 11.0
    assert cells["accuracy"]["SGD", "JSB_Chorales"].value == pytest.approx(26.0)
    assert cells["accuracy"]["last frame again", "JSB_Chorales"].value == pytest.approx(20.0)
    assert cells["active"]["+CL", "Nottingham"].value == pytest.approx(40.0)


def test_the_best_of_each_column_is_bold_whichever_it_is() -> None:
    results = made_results()
    results["data"]["Nottingham"]["baselines"]["keys_alone"] = -1.0
    for run, test in zip(entry_of(results, "JSB_Chorales", "+C")["runs"], (-1.0, -2.0, -3.0), strict=True):
        run["test"] = test
    text = table(results, markdown=True)
    first = text[: text.index("Expected accuracy")]
    bold = {row: [cell.startswith("**") for cell in column_values(first, row)] for row in TECHNIQUES}
    assert bold == {row: [row == "+C", False, row == "+C"] for row in TECHNIQUES}
    assert column_values(first, "keys alone") == ["-11.00", "**-1.00**", "-6.00"]
    assert "**" not in table(results)
    equal = made_results()
    entry_of(equal, "JSB_Chorales", "SGD")["runs"] = entry_of(equal, "JSB_Chorales", "+CLRM")["runs"]
    assert column_values(table(equal, markdown=True), "SGD")[0] == "**-8.00 ± 0.10**"
    shares = text[text.index("Active units") :]
    assert "**" not in shares


def test_intervals_of_estimates_stand_below_their_means() -> None:
    results = made_results(models=("RNN", "RNN-RBM"))
    text = table(results, markdown=True)
    bernoulli, rbm = text.split("## RNN-RBM")
    assert "<br>" not in bernoulli
    assert column_values(rbm, "SGD")[0] == "-9.00 ± 0.10<br>[-9.10, -8.80]"
    assert column_values(rbm, "+CLRM")[2] == "**-6.00 ± 0.07**<br>[-6.10, -5.80]"
    assert "95 % interval of the estimate" in rbm
    results["results"][-1]["runs"][0]["interval"] = None  # a mean of some would not be that of the cell
    assert "<br>" not in column_values(table(results, markdown=True).split("## RNN-RBM")[1], "+CLRM")[1]


def test_plain_columns_are_aligned() -> None:
    text = table(made_results(models=("RNN-RBM",)))
    lines = text[text.index("Test log-likelihood") :].splitlines()
    rows = lines[1 : lines.index("")]
    assert len(rows) == 2 + 2 * len(TECHNIQUES)  # head, baseline, rungs with their intervals
    assert len({len(row) for row in rows}) == 1
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("rises", "count"),
    [((0.1, 0.1, 0.1, 0.1), 4), ((0.1, -0.1, 0.1, -0.1), 2), ((-0.1, -0.1, -0.1, 0.0), 0)],
)
def test_rungs_that_improve_are_counted(rises: tuple[float, ...], count: int) -> None:
    results = made_results()
    for name in SETS:
        base = -9.0
        for technique, rise in zip(TECHNIQUES, (0.0, *rises), strict=True):
            base += rise
            for run, off in zip(entry_of(results, name, technique)["runs"], (-0.02, 0.0, 0.02), strict=True):
                run["test"] = base + off
    text = sentence(results)
    assert text.startswith(f"{count} of 4 rungs improve the mean")
    assert f"+C over SGD by {rises[0]:.3f}" in text
    # two errors of a difference: 2 sqrt(2) 0.02 / sqrt(3) / sqrt(2), less than 0.1
    assert f"; {count} by more than two standard errors" in text


def test_an_improvement_within_the_noise_is_counted_as_such() -> None:
    results = made_results()
    for name in SETS:
        for run in entry_of(results, name, "+CL")["runs"]:
            run["test"] -= 0.15  # 0.05 above +C and below +CLR, while a difference has an error of 0.058
    assert sentence(results).startswith("4 of 4 rungs")
    assert "; 2 by more than two" in sentence(results)


def test_a_control_is_a_row_after_the_ladder_and_compared_with_its_last_rung() -> None:
    results = made_results()
    control = entry_of(results, "Nottingham", "SGD") | {"technique": "SGD, 40 trials"}
    results["results"].insert(0, control)
    text = table(results, markdown=True)
    assert rows_in(text)[-1][0] == "SGD, 40 trials"
    assert column_values(text, "SGD, 40 trials") == ["-", "-5.00 ± 0.10", "-"]
    assert column_values(text, "+CLRM")[2] == "**-6.00 ± 0.07**"  # a control does not narrow the mean
    assert "minus" not in text
    both = entry_of(results, "JSB_Chorales", "SGD") | {"technique": "SGD, 40 trials"}
    results["results"].append(both)
    text = table(results)
    assert "The mean log-likelihood of +CLRM minus that of SGD, 40 trials: 1.000 (standard" in text
    alone = table(results | {"results": [control, both]}, markdown=True)
    assert column_values(alone, "SGD, 40 trials")[2] == "**-7.00 ± 0.07**"
    assert "cannot be compared" not in alone


def test_a_missing_figure_is_a_dash_and_is_named() -> None:
    results = made_results()
    results["results"].remove(entry_of(results, "Nottingham", "+CL"))
    entry_of(results, "Nottingham", "+CLR")["runs"] = []
    for run in entry_of(results, "JSB_Chorales", "+C")["runs"]:
        run["accuracy"] = None
    entry_of(results, "JSB_Chorales", "SGD")["runs"][1]["test"] = math.nan
    results["data"]["MuseData"] = {"note": "", "baselines": {}}
    text = table(results, markdown=True)
    assert column_values(text, "+CL") == ["-8.50 ± 0.10", "-", "-8.50 ± 0.10"]
    assert column_values(text, "SGD")[0] == "-9.00 ± 0.14 (2)"
    assert "(n): mean over n seeds only" in text
    assert "Missing: +CL, +CLR on Nottingham." in text
    assert "Missing: +C on JSB_Chorales; +CL, +CLR on Nottingham." in text  # of the accuracies
    assert "The mean is over JSB_Chorales, where every rung with figures has one." in text
    assert "Not run: MuseData." in text
    assert text.count("Missing: +CL, +CLR on Nottingham.") == 1  # not below each of the tables


def test_a_mean_is_over_the_same_sets_for_all() -> None:
    """Otherwise a rung that lacks the hardest set would look best."""
    results = made_results()
    results["results"].remove(entry_of(results, "JSB_Chorales", "+C"))
    means = make_grid(results, "RNN", LOG_LIKELIHOOD).means
    assert means["SGD"].value == pytest.approx(-5.0)
    assert means["+C"].value == pytest.approx(-4.7)
    assert means["keys alone"].value == -11.0


def test_a_rung_without_any_figure_has_no_part_in_the_sentence() -> None:
    results = made_results()
    for name in SETS:
        entry_of(results, name, "+C")["runs"] = []
    text = table(results, markdown=True)
    assert "2 of 3 rungs improve the mean log-likelihood: +CL over SGD by 0.500, +CLR over +CL by" in text
    assert column_values(text, "+C") == ["-", "-", "-"]
    assert "Missing: +C on JSB_Chorales; +C on Nottingham." in text


def test_rungs_that_were_not_to_be_run_are_no_rows() -> None:
    results = made_results()
    results["results"] = [e for e in results["results"] if e["technique"] in ("SGD", "+CLRM")]
    text = table(results, markdown=True)
    assert all(first != "+C" for first, *_ in rows_in(text))
    assert "Missing" not in text
    assert "Not run: +C, +CL, +CLR." in text
    assert "1 of 1 rungs improve the mean log-likelihood: +CLRM over SGD by 1.000" in text
    for name in SETS:
        entry_of(results, name, "SGD")["runs"] = entry_of(results, name, "+CLRM")["runs"] = []
    assert "Missing: all rungs on JSB_Chorales; all rungs on Nottingham." in table(results)


def test_a_study_that_has_just_begun() -> None:
    results = made_results()
    kept = results["results"][:1]
    for runs, expected in (([], "-"), (kept[0]["runs"][1:2], "**-9.00**")):
        begun = [kept[0] | {"runs": runs, "trials": []}]
        results["results"] = begun
        text = table(results, markdown=True)
        assert column_values(text, "SGD") == [expected]
        assert "improve" not in text  # there is one rung only
        results["results"] = [*begun, begun[0] | {"technique": "+C", "runs": []}]
        assert "rungs cannot be compared" in table(results)
    results["results"] = []
    assert "No results yet." in table(results)
    assert "No results yet." in table(results | {"data": {}, "plan": {}, "environment": {}})


def test_diverged_trials_are_counted() -> None:
    results = made_results()
    assert "diverged" not in table(results)
    valids = (-9.0, None, -math.inf, -9.5)
    entry_of(results, "Nottingham", "SGD")["trials"] = [{"valid": valid} for valid in valids]
    assert "Diverged trials of the search: SGD 2 of 5." in table(results)
    assert "full runs" not in table(results)


def test_a_run_that_diverged_does_not_widen_the_table() -> None:
    results = made_results()
    entry_of(results, "Nottingham", "SGD")["runs"][0]["test"] = -3e12
    assert column_values(table(results, markdown=True), "SGD")[1] == "-1.0e+12 ± 1.7e+12"
    assert "+C over SGD by 5.0e+11, +CL" in sentence(results)


def test_full_runs_that_diverged_are_counted() -> None:
    """Their number is needed, because a mean without them is too good."""
    results = made_results()
    run = entry_of(results, "Nottingham", "+C")["runs"][1]
    run["valid"] = run["test"] = None
    text = table(results, markdown=True)
    assert "Diverged full runs (excluded from the tables): +C 1 of 6." in text
    assert column_values(text, "+C")[1].endswith("(2)")
