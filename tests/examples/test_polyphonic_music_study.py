"""Studies on synthetic rolls: which runs follow, resuming, sharing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from polyphonic_music import study as studies
from polyphonic_music.plans import CONTROL, FULL, Part, StudyPlan
from polyphonic_music.recipes import draw, ranges_of
from polyphonic_music.study import Run, Rung, Study
from polyphonic_music.worker import do, do_unless_locked, path_of
from polyphonic_music_helpers import PLAN, Here, first_job, write_made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_made(tmp_path)


def test_worker_processes_find_the_same_results(file, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "POLL_SECONDS", 0.1)
    study = Study(replace(PLAN, parts=PLAN.parts[:1]), [str(file)], tmp_path / "runs")
    shares: list[float] = []
    study.run(2, lambda share, text: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert study.left() == []
    (rung, _) = study.rungs
    run = rung.trials()[1]
    (tmp_path / "again").mkdir()
    here = do(rung.job(run), study.data[str(file)], tmp_path / "again")
    assert {**here, "seconds": 0} == {**rung.results[run], "seconds": 0}


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
from polyphonic_music_helpers import PLAN, first_job
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
        assert (study.rungs[0], study.rungs[0].trials()[0]) in study.left()
        other.kill()
    path_of(job, study.folder).with_suffix(".json.123.tmp").touch()  # a file that was being written
    assert do_unless_locked(job, data, study.folder, None)
    assert (study.rungs[0], study.rungs[0].trials()[0]) not in study.left()
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
    assert [c.results for c in first.rungs] == [c.results for c in second.rungs]
    assert len(done) == 1 + sum(len(rung.results) for rung in first.rungs)  # the first one looked twice


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


def rung_with_trials(file: Path, folder: Path, part: Part, *valid: float | None) -> Rung:
    rung = Study(replace(PLAN, parts=(part,)), [str(file)], folder).rungs[0]
    for run, value in zip(rung.trials(), valid, strict=True):
        assert run in rung.left()
        assert rung.full_runs() == []
        rung.results[run] = {"valid": value, "seconds": 1}
    return rung


def test_full_runs_follow_the_last_trial_and_seeds_the_last_full_run(file, tmp_path):
    study = Study(PLAN, [str(file)], tmp_path)
    rung, above = study.rungs[:2]
    trials = rung.trials()
    for run, valid in zip(trials, (-3.0, -1.0, -2.0), strict=True):
        assert above.left() == []
        assert rung.full_runs() == []
        rung.results[run] = {"valid": valid}
    [full] = rung.part.updates
    assert rung.left() == [Run(1, full), Run(2, full)]
    job = rung.job(Run(1, full))
    assert job.settings == rung.drawn(1)
    assert job.test
    assert job.updates == full
    rung.results[Run(1, full)] = {"valid": -1.5}
    assert rung.chosen() == []
    assert rung.seeds() == []
    assert above.left() == []
    rung.results[Run(2, full)] = {"valid": -0.9}
    assert rung.chosen() == [Run(2, full), Run(2, full, 1)]
    assert rung.left() == [Run(2, full, 1)]
    assert above.left() == above.trials()
    assert above.drawn(0).radius == rung.settings().radius
    rung.results[Run(2, full, 1)] = {"valid": -0.7}
    assert rung.left() == []
    assert rung.seeds() == [{"valid": -0.9}, {"valid": -0.7}]


def test_the_best_trial_may_be_better_than_any_full_run(file, tmp_path):
    part = replace(PLAN.parts[0], short_runs=True)
    for best_full, chosen in ((-0.9, (1, part.trial_updates)), (-0.5, (2, part.updates[0]))):
        rung = rung_with_trials(file, tmp_path, part, -3.0, -0.8, -2.0)
        first, second = rung.left()
        rung.results |= {first: {"valid": -1.5}, second: {"valid": best_full}}
        assert rung.chosen() == [Run(*chosen, seed) for seed in range(part.seeds)]
        assert rung.left() == [run for run in rung.chosen() if run not in rung.results] != []
        assert rung.settings() == rung.drawn(chosen[0])
        job = rung.job(Run(*chosen, 0))
        assert job.test
        assert job.updates == chosen[1]


def test_the_validation_split_chooses_among_several_lengths(file, tmp_path):
    part = replace(PLAN.parts[0], updates=(6, 9, 12))
    rung = rung_with_trials(file, tmp_path, part, -3.0, -0.8, -2.0)
    assert rung.left() == [Run(trial, updates) for trial in (1, 2) for updates in (6, 9, 12)]
    for run, valid in zip(rung.full_runs(), (-1.0, -0.7, -0.9, -0.8, None, -1.2), strict=True):
        rung.results[run] = {"valid": valid, "seconds": 1}
    assert rung.chosen() == [Run(1, 9, 0), Run(1, 9, 1)]
    assert rung.left() == [Run(1, 9, 1)]
    assert [trial["full_valid"] for trial in rung.entry()["trials"]] == [None, -0.7, -0.8]
    assert part.most_updates == 3 * 4 + 2 * (6 + 9 + 12) + 12


def test_where_all_runs_diverge_none_is_chosen(file, tmp_path):
    diverged = {"valid": None, "seconds": 1}
    part = PLAN.parts[0]
    study = Study(PLAN, [str(file)], tmp_path)
    rung, above = study.rungs[:2]
    rung.results |= dict.fromkeys(rung.trials(), diverged)
    assert rung.left() == []
    assert above.left() == above.trials()
    assert above.drawn(0) == draw(ranges_of("+CLRM", part.changes), 0, part.base)  # all settings
    assert rung.entry()["settings"] is None
    assert rung.entry()["runs"] == []
    rung = rung_with_trials(file, tmp_path, part, -1.0, -1.0, -1.0)
    rung.results |= dict.fromkeys(rung.full_runs(), diverged)
    assert rung.decided()
    assert rung.left() == []
    assert rung.entry()["settings"] is None
    assert rung.entry()["runs"] == []


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
    sgd, searched = study.rungs[0], study.rungs[-1]
    assert [sgd.job(run) for run in sgd.trials()] == [searched.job(run) for run in searched.trials()[:8]]
    assert searched.entry()["technique"] == control.row
    rates = [searched.drawn(trial).lr for trial in range(control.trials)]
    assert len(set(rates)) == control.trials
    assert 0.05 <= min(rates) < 0.06
    assert 9 < max(rates) < 10


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
