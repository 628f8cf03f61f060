"""One run in a process of a study, with its files."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import logging
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from polyphonic_music import limits
from polyphonic_music.files import (
    MissingError,
    UnusableError,
    digest,
    json_text,
    parse_json,
    parse_tensors,
    read_file,
    read_if_usable,
    tensor_bytes,
    write_bytes,
    write_json,
)
from polyphonic_music.forms import FLOAT_OR_NULL, Each, Either, check_finite, check_form
from polyphonic_music.model import Predictor
from polyphonic_music.rolls import Rolls
from polyphonic_music.training import Job, State, Trainer, Watcher, check_origin

RUN_FORMAT = 2  # increase it when the content of a run's file changes
SUFFIXES = (".json", ".weights", ".checkpoint")
LOG = logging.getLogger(__name__)

Content = TypeVar("Content")
Report = Callable[[str], object]

RUN_FORM = {
    "format": int,
    **dict.fromkeys(("sha256", "job"), str),
    "settings": dict,
    "weights": Either((type(None), str)),
    "result": dict,
}
RESULT_FORM = {
    **dict.fromkeys(("seed", "epochs", "best_epoch", "updates"), int),
    "valid": FLOAT_OR_NULL,
    "seconds": float,
    "curve": {"epoch": Each(int), "train": Each(FLOAT_OR_NULL), "valid": Each(FLOAT_OR_NULL)},
}
TEST_FORM = {  # what a result has in addition if the test split was scored
    **dict.fromkeys(("test", "accuracy", "active", "gradient"), FLOAT_OR_NULL),
    "interval": Either((type(None), [FLOAT_OR_NULL, FLOAT_OR_NULL])),
}


def start_worker() -> None:
    """Set one thread, leave Ctrl-C to the parent process, and end together with the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # Weights of silent units fade into subnormal numbers, which are slow on x86.
    torch.set_flush_denormal(True)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()


def end_with(sentinel: int) -> None:
    """End this process when the process of the sentinel ends, even if it was killed."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def path_of(job: Job, folder: Path) -> Path:
    """The path of a run's files without the suffix: .json (result), .weights, .checkpoint or .lock."""
    return folder / hashlib.sha256(repr(job).encode()).hexdigest()[:16]


def result_of(job: Job, folder: Path, report: Report = lambda why: None) -> dict[str, Any] | None:
    """The result of a run; None if its file is missing, or after reporting that a file cannot be used.

    Missing weights do not matter, because the user may have removed them.
    """
    path = path_of(job, folder)
    run = read_if_usable(
        path.with_suffix(".json"), limits.MAX_RUN_BYTES, lambda data: parse_run(data, job), report
    )
    if run is None:
        return None
    if run["weights"] is not None:
        try:
            read_weights(path, run, len)
        except MissingError:
            pass
        except UnusableError as error:
            report(str(error))
            return None
    result: dict[str, Any] = run["result"]
    return result


def parse_run(data: bytes, job: Job) -> dict[str, Any]:
    """Parse the file of a run of this job: ``result``, and in ``weights`` the digest of the weights."""
    content = parse_json(data)
    check_origin(content, RUN_FORMAT, job)
    if content.get("sha256") != run_digest(content):
        raise UnusableError("does not have the digest of its content")
    check_form(content, RUN_FORM, "the content")
    result = content["result"]
    tested = job.test and result.get("valid") is not None
    check_form(result, RESULT_FORM | (TEST_FORM if tested else {}), "result")
    if len({len(values) for values in result["curve"].values()}) > 1:
        raise UnusableError("has a curve whose lists differ in length")
    return dict(content)


def run_digest(content: dict[str, Any]) -> str:
    """The digest of all of a run's file but the digest itself."""
    return digest(json_text({name: content[name] for name in content if name != "sha256"}).encode())


def read_weights(path: Path, run: dict[str, Any], parse: Callable[[bytes], Content]) -> Content:
    """Read the weights that belong to a run's file, and return what ``parse`` makes of them."""

    def parse_own(data: bytes) -> Content:
        if digest(data) != run["weights"]:
            raise UnusableError("does not have the digest that the file of its run has")
        return parse(data)

    return read_file(path.with_suffix(".weights"), limits.MAX_TENSOR_BYTES, parse_own)


def load_weights(model: Predictor, job: Job, folder: Path) -> None:
    """Load the best weights of a run into a network, all or none.

    Raises:
        UnusableError: The file of the run or its weights are missing or cannot be used.
    """

    def parse(data: bytes) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = parse_tensors(data)
        check_form(weights, model.state_dict(), "weights")
        check_finite(weights, "weights")
        return weights

    path = path_of(job, folder)
    run = read_file(path.with_suffix(".json"), limits.MAX_RUN_BYTES, lambda data: parse_run(data, job))
    model.load_state_dict(read_weights(path, run, parse))


def do_unless_locked(job: Job, data: Rolls, folder: Path, events: Path | None) -> bool:
    """Do a run, unless another process is doing it. Return whether the run has a result now.

    A file of the run that cannot be used is reported in the log, and the run is done again.
    """

    def fail(why: str) -> NoReturn:
        raise OSError(f"{why}, although it has just been written")

    lock = path_of(job, folder).with_suffix(".lock")
    with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # It may have been done since the caller looked.
        if result_of(job, folder, lambda why: LOG.warning("%s; the run is done again", why)) is None:
            do(job, data, folder, events)
            result_of(job, folder, fail)
        lock.unlink(missing_ok=True)  # a process that has opened the removed file will find the result
    return True


def do(job: Job, data: Rolls, folder: Path, events: Path | None = None) -> dict[str, Any]:
    """Do a run from its last checkpoint on and write its result."""
    path = path_of(job, folder)
    for suffix in SUFFIXES:
        set_aside(path.with_suffix(suffix))
    for half in folder.glob(f"{path.name}.*.tmp"):  # of a process that was killed while it wrote
        half.unlink(missing_ok=True)
    checkpoint = path.with_suffix(".checkpoint")
    trainer = Trainer(job, data, checkpoint)
    result = trainer.run(*([] if events is None else [tensorboard(events / path.name, job)]))
    content = {"format": RUN_FORMAT, "job": repr(job), "settings": asdict(job.settings), "weights": None}
    if job.test:
        weights = tensor_bytes(trainer.best_weights)
        write_bytes(path.with_suffix(".weights"), weights)
        content["weights"] = digest(weights)
    content["result"] = result
    write_json(path.with_suffix(".json"), {"sha256": run_digest(content), **content})
    checkpoint.unlink(missing_ok=True)
    return result


def set_aside(path: Path) -> None:
    """Rename a directory that is where a file will be written, because a file cannot replace it."""
    if path.is_dir():
        aside = path.with_name(f"{path.name}.directory")
        path.rename(aside)
        LOG.warning("%s: is a directory; it is now %s", path, aside.name)


def tensorboard(folder: Path, job: Job) -> Watcher:
    """Return a watcher that writes the learning curves for TensorBoard during a run."""
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    writer.add_text("job", repr(job))

    def watch(state: State) -> None:
        if state.curve["epoch"] and state.curve["epoch"][-1] == state.epoch:
            for name in ("train", "valid"):
                writer.add_scalar(name, state.curve[name][-1], state.updates)
            writer.flush()

    return watch
