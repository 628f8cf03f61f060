"""Whole studies of polyphonic_music on made rolls: what they write, go on from, and refuse."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from polyphonic_music import __main__ as command
from polyphonic_music import study as studies
from polyphonic_music.plans import PLANS, Part, Plan
from polyphonic_music.recipes import Range, Settings
from polyphonic_music.scores import Sampling, Scale
from polyphonic_music.study import Run, Study, Task
from polyphonic_music.worker import path_of, work

SCALE = Scale(Sampling(20, 3, 10), Sampling(20, 3, 10), samples=2, gibbs_steps=2)
SMALL = Settings(hidden=8, output_hidden=6, batch=4, steps=10, gibbs_steps=2)
CALM = {"lr": Range(0.1, 0.5)}
PLAN = Plan(
    "tiny",
    (
        Part("RNN", ("SGD", "+CLRM"), 3, 4, 2, 2, 6, SMALL, CALM, SCALE),
        Part("RNN-RBM", ("+CLRM",), 1, 3, 1, 1, 4, SMALL, CALM, SCALE),
    ),
)


def made_steps(seed: int, lengths: list[int]) -> list[list[list[int]]]:
    rng = np.random.default_rng(seed)
    return [[[int(pitch)] for pitch in rng.integers(50, 70, length)] for length in lengths]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    splits = {
        "train": made_steps(0, [20, 9, 14]),
        "valid": made_steps(1, [12]),
        "test": made_steps(2, [13, 5]),
    }
    path = tmp_path / "made.json"
    path.write_text(json.dumps(splits))
    return path


@pytest.fixture(autouse=True)
def plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "tiny", PLAN)


class Here:
    """Stands for a pool of processes: runs what is submitted, here and now."""

    _processes = None

    def __init__(self, *_: object, **__: object) -> None:
        self.ran = 0

    def submit(self, function, *arguments):
        future = studies.Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **_: object) -> None:
        pass


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
        assert len(entry["trials"]) == part.trials and len(entry["runs"]) == part.seeds
        ranked = sorted(entry["trials"], key=lambda trial: -trial["valid"])
        finalists, others = ranked[: part.finalists], ranked[part.finalists :]
        best = max(finalists, key=lambda trial: trial["full_valid"])
        assert entry["settings"] == best["settings"] and entry["runs"][0]["valid"] == best["full_valid"]
        assert all(trial["full_valid"] is None for trial in others)
        assert all(run["updates"] == part.updates and run["test"] < 0 for run in entry["runs"])
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


def test_in_processes_of_their_own(file, tmp_path):
    """And what they find is what is found here."""
    study = Study(replace(PLAN, parts=PLAN.parts[:1]), [str(file)], tmp_path / "runs", 2)
    shares: list[float] = []
    study.run(lambda share, text: shares.append(share))
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    (cell, _) = study.cells
    here = work(cell.trial(1), str(file), tmp_path / "again", None)
    assert {**here, "seconds": 0} == {**cell.trials[1], "seconds": 0}


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from polyphonic_music.worker import start_worker
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context, initializer=start_worker)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""
    script = tmp_path / "parent.py"
    script.write_text(code)
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker went on")


def test_what_is_damaged_is_run_again(file, tmp_path):
    job = Study(PLAN, [str(file)], tmp_path, 1).cells[0].trial(0)
    first = work(job, str(file), tmp_path, None)
    path = path_of(job, tmp_path).with_suffix(".json")
    path.write_text(path.read_text()[:40])
    again = work(job, str(file), tmp_path, None)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert json.loads(path.read_text())["result"] == again


def test_another_file_of_the_same_name_is_another_study(file, tmp_path):
    first = Study(PLAN, [str(file)], tmp_path, 1).cells[0].trial(0)
    other = tmp_path / "other" / "made.json"
    other.parent.mkdir()
    other.write_text(file.read_text().replace("50", "51"))
    assert Study(PLAN, [str(other)], tmp_path, 1).cells[0].trial(0).data != first.data


def test_finalists_follow_the_last_trial_and_seeds_the_last_finalist(file, tmp_path):
    cell = Study(PLAN, [str(file)], tmp_path, 1).cells[0]
    following = []
    for number, valid in enumerate((-3.0, -1.0, -2.0)):
        following = list(Task(cell, number).keep({"valid": valid}))
        assert bool(following) == (number == 2)
    full = cell.part.updates
    assert [task.run for task in following] == [Run(1, full, 0), Run(2, full, 0)]
    job = following[0].job
    assert job.settings == cell.trial(1).settings and job.test and job.updates == full
    assert list(following[0].keep({"valid": -1.5})) == []
    assert cell.chosen() == [] and cell.seeds() == {}
    last, *above = following[1].keep({"valid": -0.9})
    assert last.run == Run(2, full, 1) and cell.chosen() == [Run(2, full, 0), last.run]
    assert [(task.cell.technique, task.run) for task in above] == [("+CLRM", number) for number in range(3)]
    assert above[0].job.settings.radius == cell.settings().radius
    assert list(last.keep({"valid": -0.7})) == []
    assert cell.seeds() == {0: {"valid": -0.9}, 1: {"valid": -0.7}}


def test_the_best_trial_may_be_better_than_any_full_run(file, tmp_path):
    part = replace(PLAN.parts[0], short_runs=True)
    for best_full, chosen in ((-0.9, (1, part.trial_updates)), (-0.5, (2, part.updates))):
        cell = Study(replace(PLAN, parts=(part,)), [str(file)], tmp_path, 1).cells[0]
        for number, valid in enumerate((-3.0, -0.8, -2.0)):
            following = list(Task(cell, number).keep({"valid": valid}))
        first, second = following
        assert list(first.keep({"valid": -1.5})) == []
        left = [task.run for task in second.keep({"valid": best_full}) if task.cell is cell]
        assert cell.chosen() == [Run(*chosen, seed) for seed in range(part.seeds)]
        assert left == [run for run in cell.chosen() if run not in cell.runs]
        assert cell.settings() == cell.trial(chosen[0]).settings
        job = cell.job(Run(*chosen, 0))
        assert job.test and job.updates == chosen[1]


def test_where_all_diverge_nothing_is_chosen(file, tmp_path):
    diverged = {"valid": None, "seconds": 1}
    cell = Study(PLAN, [str(file)], tmp_path, 1).cells[0]
    following = [list(Task(cell, number).keep(diverged)) for number in range(3)]
    assert following[:2] == [[], []] and len(following[2]) == 3
    assert {task.cell for task in following[2]} == {cell.above}  # which then draws all of its settings
    assert cell.entry()["settings"] is None and cell.entry()["runs"] == []
    cell = Study(PLAN, [str(file)], tmp_path, 1).cells[0]
    sound = {"valid": -1.0, "seconds": 1}
    for number in range(3):
        following = list(Task(cell, number).keep(sound))
    assert [{t.cell for t in task.keep(diverged)} for task in following] == [set(), {cell.above}]
    assert cell.entry()["settings"] is None and cell.entry()["runs"] == []


def test_a_stopped_study_is_reported(file, tmp_path, monkeypatch, capsys):
    class Stopped(Here):
        def submit(self, function, *arguments):
            self.ran += 1
            if self.ran == 7:
                raise KeyboardInterrupt
            return super().submit(function, *arguments)

    monkeypatch.setattr(studies, "ProcessPoolExecutor", Stopped)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        command.main(["--plan", "tiny", "--data", str(file), "--out", str(out), "--workers", "1"])
    results = json.loads((out / "results.json").read_text())
    assert len(results["results"][0]["trials"]) == 3 and len(results["results"][0]["runs"]) == 2
    assert "Missing" in capsys.readouterr().out


def test_a_study_that_goes_on_reports_all_that_was_there(file, tmp_path, monkeypatch):
    """However early it is stopped again."""

    class Stopped(Here):
        def submit(self, function, *arguments):
            raise KeyboardInterrupt

    monkeypatch.setattr(studies, "ProcessPoolExecutor", Here)
    arguments = ["--plan", "tiny", "--data", str(file), "--out", str(tmp_path), "--workers", "1"]
    assert command.main(arguments) == 0
    before = json.loads((tmp_path / "results.json").read_text())["results"]
    study = Study(PLAN, [str(file)], tmp_path / "runs", 1)
    last = study.cells[-1]
    path_of(last.trial(0), study.folder).with_suffix(".json").unlink()
    monkeypatch.setattr(studies, "ProcessPoolExecutor", Stopped)
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments)
    after = json.loads((tmp_path / "results.json").read_text())["results"]
    assert after[:-1] == before[:-1] and after[0]["runs"]
    assert after[-1]["trials"] == before[-1]["trials"][1:] and after[-1]["runs"] == []


def test_two_files_of_one_name_are_refused(file, capsys):
    file.with_suffix(".pickle").write_bytes(pickle.dumps(json.loads(file.read_text())))
    assert (
        command.main(["--plan", "tiny", "--data", str(file.parent), "--out", str(file.parent / "out")]) == 2
    )
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "made.pickle: has the name of" in printed and "made.json" in printed


def test_a_file_that_is_not_there_is_no_chorales(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--plan", "tiny", "--data", "chorales"]) == 2
    assert "chorales: the ending '' is not one of" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(file, capsys):
    assert command.main(["--plan", "tiny", "--data", str(file), "--out", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and str(file) in printed.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "runs/a.json"), "No space left on device: 'runs/a.json'"),
        (BrokenProcessPool("abruptly"), "the same command goes on from here"),
    ],
)
def test_what_ends_a_study_is_one_line_after_the_report(file, tmp_path, monkeypatch, capsys, error, said):
    class Broken(Here):
        def submit(self, *_: object):
            raise error

    monkeypatch.setattr(studies, "ProcessPoolExecutor", Broken)
    assert command.main(["--plan", "tiny", "--data", str(file), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and said in printed.err
    assert (tmp_path / "out" / "results.json").exists()


def test_weights_that_are_gone_are_said(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "ProcessPoolExecutor", Here)
    arguments = ["--plan", "tiny", "--data", str(file), "--out", str(tmp_path), "--workers", "1"]
    assert command.main(arguments) == 0
    for path in (tmp_path / "runs").glob("*.weights"):
        path.unlink()
    assert command.main(arguments) == 0
    assert "no piece for made: " in capsys.readouterr().out


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
    assert printed.out == "" and printed.err.count("\n") == 1 and str(path) in printed.err


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


def test_tensorboard_gets_the_curves(file, tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder: str) -> None:
            written.append(os.path.basename(folder))

        def add_text(self, *_: object) -> None: ...

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None: ...

    class Module:
        SummaryWriter = Writer

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Module)
    job = Study(PLAN, [str(file)], tmp_path, 1).cells[0].trial(0)
    result = work(job, str(file), tmp_path / "runs", tmp_path / "events")
    assert written[0] == path_of(job, tmp_path).name
    valid = [value for name, value, _ in written[1:] if name == "valid"]
    assert valid == result["curve"]["valid"] and len(valid) > 0
