"""The command of the study on synthetic rolls: its files and its errors."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from polyphonic_music import __main__ as command
from polyphonic_music import study as studies
from polyphonic_music.plans import PLANS
from polyphonic_music.study import Study
from polyphonic_music.worker import path_of
from polyphonic_music_helpers import PLAN, Here, write_made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_made(tmp_path)


@pytest.fixture(autouse=True)
def plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "tiny", PLAN)


def test_the_command_leaves_a_report(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "ProcessPoolExecutor", Here)
    out = tmp_path / "out"
    arguments = ["--plan", "tiny", "--data", str(file), "--out", str(out), "--workers", "1"]
    assert command.main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["command"] == "python -m polyphonic_music --plan tiny --data FILE"
    assert [(e["model"], e["technique"]) for e in results["results"]] == [
        ("RNN", "SGD"),
        ("RNN", "+CLRM"),
        ("RNN-RBM", "+CLRM"),
    ]
    for entry, part in zip(results["results"], (PLAN.parts[0], *PLAN.parts), strict=True):
        assert entry["data"] == "made"
        assert len(entry["trials"]) == part.trials
        assert len(entry["runs"]) == part.seeds
        ranked = sorted(entry["trials"], key=lambda trial: -trial["valid"])
        finalists, others = ranked[: part.finalists], ranked[part.finalists :]
        best = max(finalists, key=lambda trial: trial["full_valid"])
        assert entry["settings"] == best["settings"]
        assert entry["runs"][0]["valid"] == best["full_valid"]
        assert all(trial["full_valid"] is None for trial in others)
        assert all(run["updates"] == part.updates[0] and run["test"] < 0 for run in entry["runs"])
    assert results["data"]["made"]["baselines"]["keys_alone"] < 0
    assert results["seconds"] > 0
    printed = capsys.readouterr().out
    assert (out / "table.txt").read_text() in printed
    names = {path.name for path in out.iterdir()}
    assert {"table.md", "runs", "sampled-made.mid", "sampled-made.png", "curves-RNN.png"} <= names
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    assert command.main(arguments) == 0  # nothing is run again
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()} == before
    again = json.loads((out / "results.json").read_text())
    assert again["results"] == results["results"]
    left = {path.suffix for path in out.rglob("*")}
    assert left == {"", ".json", ".weights", ".txt", ".md", ".mid", ".png"}  # no checkpoint, no half file


def test_a_stopped_study_is_reported(file, tmp_path, monkeypatch, capsys):
    ran, single = [], studies.do_unless_locked

    def stop_at_the_seventh(*arguments):
        ran.append(arguments)
        if len(ran) == 7:
            raise KeyboardInterrupt
        return single(*arguments)

    monkeypatch.setattr(studies, "do_unless_locked", stop_at_the_seventh)
    monkeypatch.setattr(studies, "ProcessPoolExecutor", Here)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        command.main(["--plan", "tiny", "--data", str(file), "--out", str(out), "--workers", "1"])
    results = json.loads((out / "results.json").read_text())
    assert len(results["results"][0]["trials"]) == 3
    assert len(results["results"][0]["runs"]) == 2
    assert "Missing" in capsys.readouterr().out


def test_a_study_that_is_continued_and_stopped_at_once_reports_all_earlier_results(
    file, tmp_path, monkeypatch
):

    class Stopped(Here):
        def submit(self, function, *arguments):
            raise KeyboardInterrupt

    monkeypatch.setattr(studies, "ProcessPoolExecutor", Here)
    arguments = ["--plan", "tiny", "--data", str(file), "--out", str(tmp_path), "--workers", "1"]
    assert command.main(arguments) == 0
    before = json.loads((tmp_path / "results.json").read_text())["results"]
    study = Study(PLAN, [str(file)], tmp_path / "runs")
    last = study.rungs[-1]
    path_of(last.job(last.trials()[0]), study.folder).with_suffix(".json").unlink()
    monkeypatch.setattr(studies, "ProcessPoolExecutor", Stopped)
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments)
    after = json.loads((tmp_path / "results.json").read_text())["results"]
    assert after[:-1] == before[:-1]
    assert after[0]["runs"]
    assert after[-1]["trials"] == before[-1]["trials"][1:]
    assert after[-1]["runs"] == []


def test_the_old_command_says_where_the_study_is():
    done = subprocess.run(
        [sys.executable, "-m", "rnnkernels.experiments"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "moved: PYTHONPATH=examples python -m polyphonic_music\n"


def test_two_files_of_one_name_are_refused(file, capsys):
    file.with_suffix(".pickle").write_bytes(pickle.dumps(json.loads(file.read_text())))
    assert (
        command.main(["--plan", "tiny", "--data", str(file.parent), "--out", str(file.parent / "out")]) == 2
    )
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "made.pickle: the data set has the same name as" in printed
    assert "made.json" in printed


def test_a_missing_file_is_not_replaced_by_the_chorales(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--plan", "tiny", "--data", "chorales"]) == 2
    assert "chorales: the ending '' is not one of" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(file, capsys):
    assert command.main(["--plan", "tiny", "--data", str(file), "--out", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert str(file) in printed.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "runs/a.json"), "No space left on device: 'runs/a.json'"),
        (BrokenProcessPool("abruptly"), "the same command continues"),
    ],
)
def test_an_error_is_one_line_after_the_report(file, tmp_path, monkeypatch, capsys, error, said):
    class Broken(Here):
        def submit(self, *_: object):
            raise error

    monkeypatch.setattr(studies, "ProcessPoolExecutor", Broken)
    assert command.main(["--plan", "tiny", "--data", str(file), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert said in printed.err
    assert (tmp_path / "out" / "results.json").exists()


def test_missing_weights_are_reported(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "ProcessPoolExecutor", Here)
    arguments = ["--plan", "tiny", "--data", str(file), "--out", str(tmp_path), "--workers", "1"]
    assert command.main(arguments) == 0
    for path in (tmp_path / "runs").glob("*.weights"):
        path.unlink()
    assert command.main(arguments) == 0
    assert "no sampled piece for made: " in capsys.readouterr().out


def test_tensorboard_that_is_missing_is_one_line(file, monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command.main(["--data", str(file), "--tensorboard", "events"])
    assert "--tensorboard needs the package tensorboard" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", '{"train": [], "valid": [], "test": []}', None])
def test_a_wrong_file_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "wrong.json"
    if content is not None:
        path.write_text(content)
    assert command.main(["--plan", "tiny", "--data", str(path), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert str(path) in printed.err


def test_a_folder_without_rolls_is_one_line(tmp_path, capsys):
    assert command.main(["--data", str(tmp_path)]) == 2
    assert f"{tmp_path}: no file of rolls" in capsys.readouterr().err


def test_a_folder_is_all_of_its_files(file):
    (file.parent / "b.MAT").touch()
    (file.parent / "readme.md").touch()
    assert command.sources(file.parent) == [str(file.parent / "b.MAT"), str(file)]


def test_workers_are_at_least_one(capsys):
    with pytest.raises(SystemExit):
        command.main(["--workers", "0"])
    assert "--workers must be at least 1, got 0" in capsys.readouterr().err
