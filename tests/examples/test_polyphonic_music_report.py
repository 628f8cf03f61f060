"""The files of a finished or unfinished study, and the description of the environment."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path

import pytest
import torch
from polyphonic_music import report
from polyphonic_music.report import environment, write_report
from polyphonic_music.table import table
from polyphonic_music_helpers import entry_of, made_results

import rnnkernels


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures have tests of their own, and take seconds."""
    monkeypatch.setattr(report, "learning_curves", lambda results, model, path: f"picture: {path.name}")


def test_the_folder_has_results_and_tables(tmp_path: Path) -> None:
    results = made_results(models=("RNN", "RNN-RBM"))
    said = write_report(results, tmp_path / "new" / "study")
    assert said == ["picture: curves-RNN.png", "picture: curves-RNN-RBM.png"]
    folder = tmp_path / "new" / "study"
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "table.txt").read_text(encoding="utf-8") == table(results)
    assert (folder / "table.md").read_text(encoding="utf-8") == table(results, markdown=True)
    assert {path.name for path in folder.iterdir()} == {"results.json", "table.txt", "table.md"}


def test_one_picture_per_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(report, "learning_curves", lambda results, model, path: drawn.append(path))
    write_report(made_results(models=("RNN", "RNN-NADE")), tmp_path)
    assert drawn == [tmp_path / "curves-RNN.png", tmp_path / "curves-RNN-NADE.png"]


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    results = made_results()
    run = entry_of(results, "Nottingham", "SGD")["runs"][0]
    run["test"] = run["curve"]["valid"][3] = math.nan
    entry_of(results, "Nottingham", "SGD")["trials"][0]["valid"] = -math.inf
    write_report(results, tmp_path)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    read = json.loads(text)
    entry = entry_of(read, "Nottingham", "SGD")
    assert entry["runs"][0]["test"] is None
    assert entry["runs"][0]["curve"]["valid"][3] is None
    assert entry["trials"][0]["valid"] is None
    assert entry["runs"][1]["test"] == pytest.approx(-5.0)
    assert table(read) == table(results)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(made_results(), tmp_path)
    before = (tmp_path / "results.json").read_text()

    def cut_short(path: Path, text: str, **_: object) -> int:
        path.write_bytes(text[:99].encode())
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", cut_short)
    with pytest.raises(OSError, match="no space left"):
        write_report(made_results(seeds=1), tmp_path)
    assert (tmp_path / "results.json").read_text() == before


def test_a_study_without_results_is_reported(tmp_path: Path) -> None:
    results = made_results() | {"results": []}
    assert write_report(results, tmp_path) == []
    assert "No results yet." in (tmp_path / "table.txt").read_text()


def test_the_environment_has_versions_and_hardware() -> None:
    found = environment(3)
    assert found["rnnkernels"] == rnnkernels.__version__
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert found["cores"] >= 1
    assert found["workers"] == 3
    assert found["processor"]
    assert len(found["date"]) == len("2026-11-28")
    assert json.loads(json.dumps(found)) == found
