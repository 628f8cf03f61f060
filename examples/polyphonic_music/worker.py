"""One run in a process of a study, with its files."""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import multiprocessing.connection
import os
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from polyphonic_music.files import read_json, write_json, write_tensors
from polyphonic_music.rolls import Rolls
from polyphonic_music.training import Job, State, Trainer, Watcher


def start_worker() -> None:
    """Set one thread, leave Ctrl-C to the parent process, and end together with the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.set_flush_denormal(
        True
    )  # weights of silent units fade into subnormal numbers, which are slow on x86
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


def result_of(job: Job, folder: Path) -> dict[str, Any] | None:
    """The result of a run; None if its file is missing or damaged."""
    kept = read_json(path_of(job, folder).with_suffix(".json"))
    if kept is None or kept.get("job") != repr(job):
        return None
    found: dict[str, Any] | None = kept.get("result")
    return found


def do_unless_locked(job: Job, data: Rolls, folder: Path, events: Path | None) -> bool:
    """Do a run, unless another process is doing it. Return whether the run has a result now."""
    lock = path_of(job, folder).with_suffix(".lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if result_of(job, folder) is None:  # it may have been done since the caller looked
            do(job, data, folder, events)
        lock.unlink(missing_ok=True)  # a process that has opened the removed file will find the result
    return True


def do(job: Job, data: Rolls, folder: Path, events: Path | None = None) -> dict[str, Any]:
    """Do a run from its last checkpoint on and write its result."""
    path = path_of(job, folder)
    checkpoint = path.with_suffix(".checkpoint")
    trainer = Trainer(job, data, checkpoint)
    result = trainer.run(*([] if events is None else [tensorboard(events / path.name, job)]))
    if job.test:
        write_tensors(path.with_suffix(".weights"), trainer.best_weights)
    content = {"job": repr(job), "settings": asdict(job.settings), "result": result}
    write_json(path.with_suffix(".json"), content)
    checkpoint.unlink(missing_ok=True)
    return result


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
