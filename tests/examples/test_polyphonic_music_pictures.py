"""The pictures of a study: their content, and the line that says where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polyphonic_music import pictures
from polyphonic_music.pictures import MARKS, learning_curves, lowest_shown, two_rolls
from polyphonic_music_helpers import entry_of, made_results


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would be saved."""
    kept: list[Any] = []

    def keep(figure: Any, path: str | Path) -> str:
        kept.append(figure)
        return f"picture: {path}"

    monkeypatch.setattr(pictures, "_saved", keep)
    return kept


def test_a_panel_per_data_set_a_color_per_rung_a_line_per_seed(figures: list[Any]) -> None:
    results = made_results(seeds=2)
    values = entry_of(results, "Nottingham", "+CL")["runs"][1]["curve"]["valid"]
    values[3] = 0.5
    learning_curves(results, "RNN", "a.png")
    [figure] = figures
    panels = figure.axes
    assert [panel.get_title(loc="left") for panel in panels] == ["JSB_Chorales", "Nottingham"]
    for panel in panels:
        assert [line.get_color() for line in panel.lines] == [c for c, _ in MARKS.values() for _ in range(2)]
    line = panels[1].lines[5]
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 9))
    np.testing.assert_array_equal(line.get_ydata(), values)
    np.testing.assert_array_equal(panels[1].collections[5].get_offsets(), [[4, 0.5]])
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(MARKS)


def test_a_control_is_drawn_after_the_rungs(figures: list[Any]) -> None:
    results = made_results(seeds=1)
    results["results"].insert(0, entry_of(results, "Nottingham", "SGD") | {"technique": "SGD, 40 trials"})
    learning_curves(results, "RNN", "a.png")
    [figure] = figures
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*MARKS, "SGD, 40 trials"]
    assert figure.axes[1].lines[0].get_color() == pictures.OTHER_MARK[0]


def test_an_unfinished_study_is_drawn(figures: list[Any]) -> None:
    results = made_results(seeds=1)
    for technique in MARKS:
        entry_of(results, "Nottingham", technique)["runs"] = []
    results["results"].remove(entry_of(results, "JSB_Chorales", "+CLRM"))
    entry_of(results, "JSB_Chorales", "SGD")["runs"][0]["curve"]["valid"][2:] = [None] * 6
    entry_of(results, "JSB_Chorales", "+C")["runs"][0]["curve"] = {"epoch": [], "train": [], "valid": []}
    learning_curves(results, "RNN", "a.png")
    [figure] = figures
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["JSB_Chorales"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SGD", "+CL", "+CLR"]
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [False, False] + [True] * 6
    assert learning_curves(results, "RNN-RBM", "a.png") == "no picture: RNN-RBM has no learning curve yet"


def test_a_run_that_diverged_does_not_flatten_the_others() -> None:
    good, better = np.array([-11.0, -9.0, -8.5]), np.array([-11.0, -8.5, -8.0])
    assert lowest_shown([good, better], -11.1) == pytest.approx(-8.0 - 3 * 0.5)
    fallen = np.array([-8.4, -1e6, np.nan])
    assert lowest_shown([good, better, fallen], -11.1) == pytest.approx(-8.0 - 3 * 0.5)
    assert lowest_shown([better, fallen - 100], -11.1) == -11.1
    assert lowest_shown([better, better], None) == pytest.approx(-8.0 - 0.25 * 3)


def test_notes_are_bars_of_their_length(figures: list[Any]) -> None:
    sampled, real = np.zeros((6, 88)), np.zeros((9, 88))
    sampled[1:4, 39] = sampled[5, 39] = real[:, 45] = 1
    two_rolls(sampled, real, "a.png", name="JSB_Chorales")
    [figure] = figures
    first, second = figure.axes
    assert second.get_title(loc="left") == "real, from the test split of JSB_Chorales"
    for panel, key, expected in ((first, 39, [(1, 4), (5, 6)]), (second, 45, [(0, 6)])):
        extents = [path.get_extents() for bars in panel.collections for path in bars.get_paths()]
        assert [(box.x0, box.x1) for box in extents] == expected
        assert all(box.y0 < key < box.y1 for box in extents)
    labels = dict(zip(first.get_yticks(), [t.get_text() for t in first.get_yticklabels()], strict=True))
    assert labels[60 - 21] == "C4"
    with pytest.raises(ValueError, match=r"real must have shape \[T, 88\] with T > 0, got \[0, 88\]"):
        two_rolls(sampled, real[:0], "a.png")


def test_files_are_written_or_a_line_says_why_not(tmp_path: Path) -> None:
    roll = np.ones((3, 88))
    for path, said in (
        (tmp_path / "a.png", learning_curves(made_results(1), "RNN", tmp_path / "a.png")),
        (tmp_path / "b.png", two_rolls(roll, roll, tmp_path / "b.png")),
    ):
        assert said == f"picture: {path}"
        assert path.read_bytes()[:4] == b"\x89PNG"
    figure = pictures._figure(1, 1)
    assert "cannot be written" in pictures._saved(figure, tmp_path / "nowhere" / "a.png")
