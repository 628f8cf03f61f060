"""The study's own files when they are damaged or foreign: one line each, and they are made again."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from polyphonic_music import __main__ as command
from polyphonic_music import study as studies
from polyphonic_music import training, worker
from polyphonic_music.files import UnusableError, digest, parse_tensors, sealed, tensor_bytes, unsealed
from polyphonic_music.model import Predictor
from polyphonic_music.plans import PLANS
from polyphonic_music.rolls import KEYS, Rolls, load
from polyphonic_music.study import Study
from polyphonic_music.training import Job, Trainer
from polyphonic_music.worker import do, do_unless_locked, load_weights, path_of, result_of, run_digest
from polyphonic_music_helpers import PLAN, Here, first_job, write_made

Content = dict[str, Any]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(PLAN, [str(write_made(tmp_path))], tmp_path / "runs")


@pytest.fixture
def job(study: Study) -> Job:
    """A short run that is tested, so that it has weights."""
    rung = study.rungs[0]
    return rung.job(rung.trials()[0]._replace(test=True))


@pytest.fixture
def data(study: Study) -> Rolls:
    return next(iter(study.data.values()))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages so far, each of which must be one line."""
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    assert all(message.isprintable() for message in said)
    return said


def figures(result: Content | None) -> Content:
    assert result is not None
    return {**result, "seconds": 0}


# Damage to the bytes of any file; None makes a directory of it.
ANY_FILE: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "one bit": lambda whole: whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:],
    "foreign text": lambda whole: b"no such thing\n" * 50,
    "not UTF-8": lambda whole: b"\xff\xfe\xfd" * 50,
    "list": lambda whole: b"[1, 2]",
    "empty dict": lambda whole: b"{}",
    "deep": lambda whole: b"[" * 200_000,
    "deep dict": lambda whole: b'{"a":' * 200_000,
    "foreign tensors": lambda whole: tensor_bytes({"a": torch.zeros(3)}),
    "foreign pickle": lambda whole: pickle.dumps(os.getcwd),
    "directory": lambda whole: None,
}


def damage(path: Path, name: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    found = ANY_FILE[name](whole)
    path.mkdir() if found is None else path.write_bytes(found)


@pytest.mark.parametrize("name", ANY_FILE)
@pytest.mark.parametrize("suffix", [".json", ".weights"])
def test_a_damaged_file_of_a_run_is_reported_and_made_again(
    study: Study, job: Job, data: Rolls, caplog: pytest.LogCaptureFixture, suffix: str, name: str
) -> None:
    do(job, data, study.folder)
    first = figures(result_of(job, study.folder))
    path = path_of(job, study.folder).with_suffix(suffix)
    whole = path.read_bytes()
    damage(path, name)
    assert result_of(job, study.folder) is None
    assert lines(caplog) == []  # looking alone says nothing, because it is done every second
    assert do_unless_locked(job, data, study.folder, None)
    said = lines(caplog)
    assert said[0].startswith(f"{path}: ")
    assert said[0].endswith("; the run is done again")
    assert said[1:] == (
        [f"{path}: is a directory; it is now {path.name}.directory"] if name == "directory" else []
    )
    assert figures(result_of(job, study.folder)) == first
    if suffix == ".weights":
        assert path.read_bytes() == whole


def rewritten(path: Path, **changes: Any) -> None:
    """Change a run's file, and write the digest of the new content."""
    content = json.loads(path.read_text()) | changes
    content["sha256"] = run_digest(content)
    path.write_text(json.dumps(content))


def without(content: Content, name: str) -> Content:
    return {key: value for key, value in content.items() if key != name}


def reason(job: Job, folder: Path) -> str:
    """Why the files of a run cannot be used."""
    said: list[str] = []
    assert result_of(job, folder, said.append) is None
    [why] = said
    assert why.startswith(str(path_of(job, folder)))
    assert why.isprintable()
    return why.partition(": ")[2]


def test_a_run_file_of_another_version_run_or_form(study: Study, job: Job, data: Rolls) -> None:
    do(job, data, study.folder)
    path = path_of(job, study.folder).with_suffix(".json")
    whole = path.read_text()
    result = json.loads(whole)["result"]
    curve = result["curve"]
    for changes, why in (
        ({"format": 1}, "belongs to another version of the study"),
        ({"job": "Job()"}, "belongs to another run"),
        ({"result": None}, "the content['result'] must be of type dict, got NoneType"),
        ({"weights": 3}, "the content['weights'] has a wrong form, got int"),
        ({"more": 3}, "the content has 'more'"),
        ({"result": without(result, "accuracy")}, "result lacks 'accuracy'"),
        ({"result": without(result, "curve")}, "result lacks 'curve'"),
        ({"result": result | {"valid": "high"}}, "result['valid'] has a wrong form, got str"),
        ({"result": result | {"seconds": None}}, "result['seconds'] must be of type float, got NoneType"),
        ({"result": result | {"interval": [1.0]}}, "result['interval'] has a wrong form, got list"),
        ({"result": result | {"curve": curve | {"epoch": [0.5]}}}, "result['curve']['epoch'][0] must be"),
        ({"result": result | {"curve": curve | {"valid": []}}}, "has a curve whose lists differ in length"),
        ({"result": result | {"test": float("nan")}}, "has a number that is not finite, NaN"),
    ):
        path.write_text(whole)
        rewritten(path, **changes)
        assert why in reason(job, study.folder)
    path.write_text(whole)
    rewritten(path)
    assert result_of(job, study.folder) == result
    path.write_text(whole.replace('"valid": -', '"valid": -1', 1))  # another figure
    assert reason(job, study.folder) == "does not have the digest of its content"
    os.truncate(path, 1 << 30)
    assert reason(job, study.folder) == "has more than 16,777,216 bytes"


def test_weights_that_were_removed_do_not_matter_until_they_are_used(
    study: Study, job: Job, data: Rolls
) -> None:
    do(job, data, study.folder)
    path_of(job, study.folder).with_suffix(".weights").unlink()
    assert result_of(job, study.folder) is not None
    with pytest.raises(UnusableError, match=r"\.weights: cannot be read: No such file"):
        load_weights(Predictor(job.model, job.settings, np.full(KEYS, 0.1)), job, study.folder)


def test_weights_are_loaded_as_a_whole_or_not_at_all(study: Study, job: Job, data: Rolls) -> None:
    do(job, data, study.folder)
    path = path_of(job, study.folder)
    good = torch.load(path.with_suffix(".weights"), weights_only=True)  # as a user would
    first = next(iter(good))
    last = list(good)[-1]
    model = Predictor(job.model, job.settings, np.full(KEYS, 0.1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for wrong, why in (
        (without(good, last), f"weights lacks '{last}'"),
        (good | {"more": torch.zeros(1)}, "weights has 'more'"),
        (good | {last: torch.zeros(1)}, "must be torch.float32"),
        (good | {last: good[last].double()}, "got torch.float64"),
        (good | {last: None}, "must be a tensor, got NoneType"),
        (good | {first: torch.full_like(good[first], torch.nan)}, "has entries that are not finite"),
        ([1, 2], "weights must be of type Mapping, got list"),
    ):
        data_of_file = tensor_bytes(wrong)  # type: ignore[arg-type]
        path.with_suffix(".weights").write_bytes(data_of_file)
        rewritten(path.with_suffix(".json"), weights=digest(data_of_file))
        with pytest.raises(UnusableError, match=r"\.weights: ") as caught:
            load_weights(model, job, study.folder)
        assert why in str(caught.value)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])
    path.with_suffix(".weights").write_bytes(tensor_bytes(good))
    rewritten(path.with_suffix(".json"), weights=digest(tensor_bytes(good)))
    load_weights(model, job, study.folder)
    assert torch.equal(model.state_dict()[last], good[last])


def test_weights_that_run_code_do_not_run_it(study: Study, job: Job, data: Rolls, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    do(job, data, study.folder)
    path = path_of(job, study.folder)
    trap = tensor_bytes({"a": Trap()})
    path.with_suffix(".weights").write_bytes(trap)
    rewritten(path.with_suffix(".json"), weights=digest(trap))
    with pytest.raises(UnusableError, match=r"not a readable \.weights file"):
        load_weights(Predictor(job.model, job.settings, np.full(KEYS, 0.1)), job, study.folder)
    assert not (tmp_path / "made").exists()


# ------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoint(job: Job, data: Rolls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The last checkpoint of the run."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    path = tmp_path / "run.checkpoint"
    Trainer(job, data, path).run()
    return path


def is_fresh(trainer: Trainer, job: Job, data: Rolls) -> bool:
    """Whether nothing of a checkpoint is in the trainer or in torch's generator."""
    random = torch.get_rng_state()
    fresh = Trainer(job, data)
    assert torch.equal(random, torch.get_rng_state())
    for own, expected in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(own, expected)
    for name, weight in fresh.best_weights.items():
        assert torch.equal(trainer.best_weights[name], weight)
    assert len(trainer.optimizer.state) == 0
    assert trainer.optimizer.param_groups[0]["params"] == list(trainer.model.parameters())
    return trainer.state == fresh.state


@pytest.mark.parametrize("name", ANY_FILE)
def test_a_damaged_checkpoint_is_reported_and_the_run_begins_again(
    job: Job, data: Rolls, checkpoint: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    damage(checkpoint, name)
    trainer = Trainer(job, data, checkpoint)
    [said] = lines(caplog)
    assert said.startswith(f"{checkpoint}: ")
    assert said.endswith("; the run begins again")
    assert is_fresh(trainer, job, data)


def changed(content: Content, *keys: Any, to: Any) -> Content:
    """A copy with another value for ``content[keys[0]][keys[1]]...``"""
    key, *rest = keys
    copy = list(content) if isinstance(content, list) else dict(content)
    copy[key] = changed(content[key], *rest, to=to) if rest else to
    return copy


def test_a_checkpoint_of_another_form_is_refused_as_a_whole(
    job: Job, data: Rolls, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = parse_tensors(unsealed(checkpoint.read_bytes()))
    assert good["state"]["epoch"] > 0
    weight = list(good["model"])[-1]
    velocity = good["optimizer"]["state"][0]["velocity"]
    odd = {"momentum": velocity}
    for wrong, why in (
        ([1, 2], "the content must be of type dict, got list"),
        (changed(good, "format", to=1), "belongs to another version of the study"),
        (changed(good, "job", to="Job()"), "belongs to another run"),
        (without(good, "random"), "the checkpoint lacks 'random'"),
        (changed(good, "model", weight, to=torch.zeros(1)), "must be torch.float32"),
        (changed(good, "model", weight, to=good["model"][weight].double()), "got torch.float64"),
        (changed(good, "model", to=without(good["model"], weight)), "['model'] lacks"),
        (changed(good, "best", weight, to=torch.full_like(good["model"][weight], torch.nan)), "not finite"),
        (changed(good, "state", "epoch", to=None), "['state']['epoch'] must be of type int, got NoneType"),
        (changed(good, "state", "updates", to=99), f"has made 99 of {job.updates} updates"),
        (changed(good, "state", "updates", to=-1), f"has made -1 of {job.updates} updates"),
        (changed(good, "state", "curve", "valid", to=[None]), "['curve']['valid'][0] must be of type float"),
        (changed(good, "optimizer", "state", 0, "velocity", to=velocity[:1]), "state 0 of the optimizer"),
        (changed(good, "optimizer", "state", 0, to={}), "state 0 of the optimizer lacks 'velocity'"),
        (
            changed(good, "optimizer", "state", 0, to=odd),
            "not a readable .checkpoint file",
        ),
        (changed(good, "optimizer", "param_groups", to=[]), "['param_groups'] must have 1 entries, got 0"),
        (changed(good, "random", to=good["random"][:-1]), "['random'] must be torch.uint8"),
        (changed(good, "random", to=torch.zeros_like(good["random"])), "not a readable .checkpoint file"),
    ):
        checkpoint.write_bytes(sealed(tensor_bytes(wrong)))  # type: ignore[arg-type]
        trainer = Trainer(job, data, checkpoint)
        [said] = lines(caplog)
        assert why in said
        assert is_fresh(trainer, job, data)
    checkpoint.write_bytes(sealed(tensor_bytes(good)))
    assert Trainer(job, data, checkpoint).state.epoch == good["state"]["epoch"]
    assert lines(caplog) == []


def test_a_run_with_a_directory_for_its_checkpoint_is_done(
    study: Study, data: Rolls, caplog: pytest.LogCaptureFixture
) -> None:
    job = first_job(study)
    path = path_of(job, study.folder).with_suffix(".checkpoint")
    path.mkdir()
    (path / "kept").touch()
    assert do_unless_locked(job, data, study.folder, None)
    assert lines(caplog) == [f"{path}: is a directory; it is now {path.name}.directory"]
    assert (path.with_name(f"{path.name}.directory") / "kept").exists()
    assert result_of(job, study.folder) is not None


def test_a_pipe_for_a_lock_or_a_result_does_not_stop_the_study(
    study: Study, data: Rolls, caplog: pytest.LogCaptureFixture
) -> None:
    job = first_job(study)
    for suffix in (".lock", ".json"):
        os.mkfifo(path_of(job, study.folder).with_suffix(suffix))
    assert do_unless_locked(job, data, study.folder, None)
    [said] = lines(caplog)
    assert said.endswith(".json: must be a regular file, got a named pipe; the run is done again")
    assert result_of(job, study.folder) is not None


def test_a_result_that_is_not_as_it_was_written_ends_the_study(
    study: Study, data: Rolls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the run would be done again and again."""
    monkeypatch.setattr(worker, "write_json", lambda path, content: path.write_text("{}"))
    with pytest.raises(OSError, match=r"\.json: .*, although it has just been written"):
        do_unless_locked(first_job(study), data, study.folder, None)


# ------------------------------------------------------------------------------------- the command


def test_the_command_reports_damaged_files_and_gives_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(PLANS, "tiny", PLAN)
    monkeypatch.setattr(studies, "ProcessPoolExecutor", Here)
    arguments = ["--plan", "tiny", "--data", str(write_made(tmp_path)), "--out", str(tmp_path)]
    assert command.main(arguments) == 0

    def results() -> Any:
        found = json.loads((tmp_path / "results.json").read_text())["results"]
        for entry in found:
            for run in (*entry["trials"], *entry["runs"]):
                run["seconds"] = 0
        return found

    before = results()
    files = sorted((tmp_path / "runs").iterdir())
    assert {path.suffix for path in files} == {".json", ".weights"}
    for path, name in zip(files, [*ANY_FILE, *ANY_FILE], strict=False):
        damage(path, name)
    assert command.main(arguments) == 0
    assert results() == before
    said = lines(caplog)
    assert all(any(str(path) in line for line in said) for path in files if path.suffix == ".json")
    assert len(said) <= 2 * len(files)
    assert command.main(arguments) == 0
    assert lines(caplog) == []


def test_the_files_of_a_study_can_be_read_by_others(study: Study, job: Job, data: Rolls) -> None:
    """The result is JSON, the weights are what torch.load reads."""
    do(job, data, study.folder)
    path = path_of(job, study.folder)
    content = json.loads(path.with_suffix(".json").read_text())
    assert content["weights"] == digest(path.with_suffix(".weights").read_bytes())
    assert load(next(iter(study.data))).name == "made"
