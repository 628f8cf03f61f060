"""What a process of a study does: one run, its file, and the checkpoints on the way."""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing.connection
import os
import signal
import threading
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from polyphonic_music import rolls
from polyphonic_music.files import read_json, write_json, write_tensors
from polyphonic_music.training import Job, State, Trainer, Watcher

CHORALES = ""  # as a source: those of music21; no path is empty


def start_worker() -> None:
    """One thread; Ctrl-C is the parent's, and so is the end: a parent that was killed tells nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # silent units and what they learn fade into numbers that x86 is slow with
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()


def end_with(sentinel: int) -> None:
    """End this process when that one ends."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


@lru_cache(maxsize=4)
def load(source: str) -> rolls.Rolls:
    """The rolls of a file, or the chorales."""
    return rolls.load_chorales() if source == CHORALES else rolls.load(source)


def path_of(job: Job, folder: Path) -> Path:
    """Of a run's files, but for their endings: .json the result, .weights the best ones, .checkpoint."""
    return folder / hashlib.sha256(repr(job).encode()).hexdigest()[:16]


def result_of(job: Job, folder: Path) -> dict[str, Any] | None:
    """What the run's file holds; None where there is none, or a damaged one."""
    kept = read_json(path_of(job, folder).with_suffix(".json"))
    if kept is None or kept.get("job") != repr(job):
        return None
    found: dict[str, Any] | None = kept.get("result")
    return found


def work(job: Job, source: str, folder: Path, events: Path | None) -> dict[str, Any]:
    """What the run's file holds, or else the run, from its checkpoint on."""
    kept = result_of(job, folder)
    if kept is not None:
        return kept
    path = path_of(job, folder)
    checkpoint = path.with_suffix(".checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(job, load(source), checkpoint)
    result = trainer.run(nothing if events is None else tensorboard(events / path.name, job))
    if job.test:
        write_tensors(path.with_suffix(".weights"), trainer.best_weights)
    content = {"job": repr(job), "settings": asdict(job.settings), "result": result}
    write_json(path.with_suffix(".json"), content)
    checkpoint.unlink(missing_ok=True)
    return result


def nothing(state: State) -> None:
    """Watches without a word."""


def tensorboard(folder: Path, job: Job) -> Watcher:
    """Writes the curves as the run goes."""
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    writer.add_text("job", repr(job))

    def watch(state: State) -> None:
        if state.curve["epoch"] and state.curve["epoch"][-1] == state.epoch:
            for name in ("train", "valid"):
                writer.add_scalar(name, state.curve[name][-1], state.updates)
            writer.flush()

    return watch
