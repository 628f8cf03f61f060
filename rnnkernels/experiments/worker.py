"""What a process of a study does: one run, its file, and the checkpoints on the way."""

from __future__ import annotations

import hashlib
import importlib
import signal
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from rnnkernels.experiments import rolls
from rnnkernels.experiments.files import read_json, write_json
from rnnkernels.experiments.training import Job, State, Trainer, Watcher

CHORALES = "chorales"  # as a source: those of music21


def start_worker() -> None:
    """One thread; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


@lru_cache(maxsize=4)
def load(source: str) -> rolls.Rolls:
    """The rolls of a file, or the chorales."""
    return rolls.load_chorales() if source == CHORALES else rolls.load(source)


def work(job: Job, source: str, folder: Path, events: Path | None) -> dict[str, Any]:
    """What the run's file holds, or else the run."""
    name = hashlib.sha256(repr(job).encode()).hexdigest()[:16]
    path, checkpoint = folder / f"{name}.json", folder / f"{name}.pt"
    kept = read_json(path)
    if kept is not None and kept.get("job") == repr(job):
        result: dict[str, Any] = kept["result"]
        return result
    folder.mkdir(parents=True, exist_ok=True)
    watch = nothing if events is None else tensorboard(events / name, job)
    result = Trainer(job, load(source), checkpoint).run(watch)
    write_json(path, {"job": repr(job), "settings": asdict(job.settings), "result": result})
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
