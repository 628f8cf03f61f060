"""Whole studies on synthetic rolls: their files, resuming, sharing, and errors."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from polyphonic_music import __main__ as command
from polyphonic_music import study as studies
from polyphonic_music.plans import CONTROL, FULL, PLANS, Part, StudyPlan
from polyphonic_music.recipes import Range, Settings, draw, ranges_of
from polyphonic_music.scores import Sampling, Scale
from polyphonic_music.study import Cell, Run, Study
from polyphonic_music.worker import do, do_unless_locked, path_of

SCALE = Scale(Sampling(20, 3, 10), Sampling(20, 3, 10), samples=2, gibbs_steps=2)
SMALL = Settings(hidden=8, output_hidden=6, batch=4, steps=10, gibbs_steps=2)
CALM = {"lr": Range(0.1, 0.5)}
PLAN = StudyPlan(
    "tiny",
    (
        Part("RNN", ("SGD", "+CLRM"), 3, 4, 2, 2, (6,), SMALL, CALM, SCALE),
        Part("RNN-RBM", ("+CLRM",), 1, 3, 1, 1, (4,), SMALL, CALM, SCALE),
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
    """Replaces the pool of processes: calls the submitted function at once, in this process."""

    _processes = None

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, function, *arguments):
        future = Future()
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


def first_job(study: Study):
    cell = study.cells[0]
    return cell.job(cell.trials()[0])


def test_worker_processes_find_the_same_results(file, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "POLL_SECONDS", 0.1)
    study = Study(replace(PLAN, parts=PLAN.parts[:1]), [str(file)], tmp_path / "runs")
    shares: list[float] = []
    study.run(2, lambda share, text: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert study.left() == []
    (cell, _) = study.cells
    run = cell.trials()[1]
    (tmp_path / "again").mkdir()
    here = do(cell.job(run), study.data[str(file)], tmp_path / "again")
    assert {**here, "seconds": 0} == {**cell.results[run], "seconds": 0}


LOCKED = """
import sys, time
from pathlib import Path
from polyphonic_music import plans, study, worker
from polyphonic_music.training import Trainer

def wait(self, *_):
    print("at it", flush=True)
    time.sleep(600)

Trainer.run = wait
sys.path.insert(0, sys.argv[3])
from test_polyphonic_music_study import PLAN, first_job
found = study.Study(PLAN, [sys.argv[1]], Path(sys.argv[2]))
worker.do_unless_locked(first_job(found), found.data[sys.argv[1]], found.folder, None)
"""


def test_a_run_is_done_by_one_process_and_is_free_when_that_is_killed(file, tmp_path):
    study = Study(PLAN, [str(file)], tmp_path / "runs")
    job, data = first_job(study), study.data[str(file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [str(file), str(study.folder), str(Path(__file__).parent)]
    with subprocess.Popen(
        [sys.executable, "-c", LOCKED, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "at it\n"
        assert not do_unless_locked(job, data, study.folder, None)
        assert (study.cells[0], study.cells[0].trials()[0]) in study.left()
        other.kill()
    assert do_unless_locked(job, data, study.folder, None)
    assert (study.cells[0], study.cells[0].trials()[0]) not in study.left()
    assert [path.suffix for path in study.folder.iterdir()] == [".json"]


def test_two_commands_share_a_study(file, tmp_path, monkeypatch):
    """Each run is done once, and both see all results."""
    monkeypatch.setattr(studies, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(studies, "POLL_SECONDS", 0.01)
    first, second = (Study(PLAN, [str(file)], tmp_path) for _ in range(2))
    done, single = [], studies.do_unless_locked

    def interleaved(job, *arguments):
        if not done:
            done.append(job)
            second.run(1, lambda share, text: None)
        else:
            done.append(job)
        return single(job, *arguments)

    monkeypatch.setattr(studies, "do_unless_locked", interleaved)
    first.run(1, lambda share, text: None)
    assert first.left() == second.left() == []
    assert [c.results for c in first.cells] == [c.results for c in second.cells]
    assert len(done) == 1 + sum(len(cell.results) for cell in first.cells)  # the first one looked twice


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


def test_a_run_with_a_damaged_file_is_run_again(file, tmp_path):
    study = Study(PLAN, [str(file)], tmp_path)
    job, data = first_job(study), study.data[str(file)]
    first = do(job, data, tmp_path)
    path = path_of(job, tmp_path).with_suffix(".json")
    path.write_text(path.read_text()[:40])
    assert do_unless_locked(job, data, tmp_path, None)
    again = json.loads(path.read_text())["result"]
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_another_file_of_the_same_name_is_another_study(file, tmp_path):
    other = tmp_path / "other" / "made.json"
    other.parent.mkdir()
    other.write_text(file.read_text().replace("50", "51"))
    jobs = [first_job(Study(PLAN, [str(path)], tmp_path)) for path in (file, other)]
    assert jobs[0].data != jobs[1].data


def cell_with_trials(file: Path, folder: Path, part: Part, *valid: float | None) -> Cell:
    cell = Study(replace(PLAN, parts=(part,)), [str(file)], folder).cells[0]
    for run, value in zip(cell.trials(), valid, strict=True):
        assert run in cell.left()
        assert cell.full_runs() == []
        cell.results[run] = {"valid": value, "seconds": 1}
    return cell


def test_full_runs_follow_the_last_trial_and_seeds_the_last_full_run(file, tmp_path):
    study = Study(PLAN, [str(file)], tmp_path)
    cell, above = study.cells[:2]
    trials = cell.trials()
    for run, valid in zip(trials, (-3.0, -1.0, -2.0), strict=True):
        assert above.left() == []
        assert cell.full_runs() == []
        cell.results[run] = {"valid": valid}
    [full] = cell.part.updates
    assert cell.left() == [Run(1, full), Run(2, full)]
    job = cell.job(Run(1, full))
    assert job.settings == cell.drawn(1)
    assert job.test
    assert job.updates == full
    cell.results[Run(1, full)] = {"valid": -1.5}
    assert cell.chosen() == []
    assert cell.seeds() == []
    assert above.left() == []
    cell.results[Run(2, full)] = {"valid": -0.9}
    assert cell.chosen() == [Run(2, full), Run(2, full, 1)]
    assert cell.left() == [Run(2, full, 1)]
    assert above.left() == above.trials()
    assert above.drawn(0).radius == cell.settings().radius
    cell.results[Run(2, full, 1)] = {"valid": -0.7}
    assert cell.left() == []
    assert cell.seeds() == [{"valid": -0.9}, {"valid": -0.7}]


def test_the_best_trial_may_be_better_than_any_full_run(file, tmp_path):
    part = replace(PLAN.parts[0], short_runs=True)
    for best_full, chosen in ((-0.9, (1, part.trial_updates)), (-0.5, (2, part.updates[0]))):
        cell = cell_with_trials(file, tmp_path, part, -3.0, -0.8, -2.0)
        first, second = cell.left()
        cell.results |= {first: {"valid": -1.5}, second: {"valid": best_full}}
        assert cell.chosen() == [Run(*chosen, seed) for seed in range(part.seeds)]
        assert cell.left() == [run for run in cell.chosen() if run not in cell.results] != []
        assert cell.settings() == cell.drawn(chosen[0])
        job = cell.job(Run(*chosen, 0))
        assert job.test
        assert job.updates == chosen[1]


def test_the_validation_split_chooses_among_several_lengths(file, tmp_path):
    part = replace(PLAN.parts[0], updates=(6, 9, 12))
    cell = cell_with_trials(file, tmp_path, part, -3.0, -0.8, -2.0)
    assert cell.left() == [Run(trial, updates) for trial in (1, 2) for updates in (6, 9, 12)]
    for run, valid in zip(cell.full_runs(), (-1.0, -0.7, -0.9, -0.8, None, -1.2), strict=True):
        cell.results[run] = {"valid": valid, "seconds": 1}
    assert cell.chosen() == [Run(1, 9, 0), Run(1, 9, 1)]
    assert cell.left() == [Run(1, 9, 1)]
    assert [trial["full_valid"] for trial in cell.entry()["trials"]] == [None, -0.7, -0.8]
    assert part.most_updates == 3 * 4 + 2 * (6 + 9 + 12) + 12


def test_where_all_runs_diverge_none_is_chosen(file, tmp_path):
    diverged = {"valid": None, "seconds": 1}
    part = PLAN.parts[0]
    study = Study(PLAN, [str(file)], tmp_path)
    cell, above = study.cells[:2]
    cell.results |= dict.fromkeys(cell.trials(), diverged)
    assert cell.left() == []
    assert above.left() == above.trials()
    assert above.drawn(0) == draw(ranges_of("+CLRM", part.changes), 0, part.base)  # all settings
    assert cell.entry()["settings"] is None
    assert cell.entry()["runs"] == []
    cell = cell_with_trials(file, tmp_path, part, -1.0, -1.0, -1.0)
    cell.results |= dict.fromkeys(cell.full_runs(), diverged)
    assert cell.decided()
    assert cell.left() == []
    assert cell.entry()["settings"] is None
    assert cell.entry()["runs"] == []


def test_a_part_replaces_an_earlier_one_on_the_data_sets_that_it_names():
    general, named = (Part("RNN-NADE", ("+CLRM",), updates=(n,), only=o) for n, o in ((1, ()), (2, ("A",))))
    control = Part("RNN", ("SGD",), row="SGD, 40 trials")
    plan = StudyPlan("p", (Part("RNN"), general, named, control))
    assert plan.parts_on("A") == [Part("RNN"), named, control]
    assert plan.parts_on("B") == [Part("RNN"), general, control]


def test_the_control_has_the_trials_and_full_runs_of_all_rungs(file, tmp_path):
    ladder = FULL.parts[0]
    [control] = [part for part in FULL.parts if part.row]
    assert control.trials == ladder.trials * len(ladder.techniques)
    assert control.finalists == ladder.finalists * len(ladder.techniques)
    assert control.techniques == ("SGD",)
    assert control.row == f"SGD, {control.trials} trials"
    assert control in CONTROL.parts
    study = Study(StudyPlan("both", (ladder, control)), [str(file)], tmp_path)
    sgd, searched = study.cells[0], study.cells[-1]
    assert [sgd.job(run) for run in sgd.trials()] == [searched.job(run) for run in searched.trials()[:8]]
    assert searched.entry()["technique"] == control.row
    rates = [searched.drawn(trial).lr for trial in range(control.trials)]
    assert len(set(rates)) == control.trials
    assert 0.05 <= min(rates) < 0.06
    assert 9 < max(rates) < 10


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
    last = study.cells[-1]
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
    study = Study(PLAN, [str(file)], tmp_path)
    job = first_job(study)
    result = do(job, study.data[str(file)], tmp_path, tmp_path / "events")
    assert written[0] == path_of(job, tmp_path).name
    valid = [value for name, value, _ in written[1:] if name == "valid"]
    assert valid == result["curve"]["valid"]
    assert len(valid) > 0
