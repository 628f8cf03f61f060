"""A study: all runs of a plan on all data sets, in processes of one thread each.

Every run's result is a file of its own, named by a hash of all that the run depends on. What is there is not
run again, so the same command goes on where it was stopped, and a plan with more trials runs only those.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rnnkernels.experiments import rolls
from rnnkernels.experiments.plans import Part, Plan
from rnnkernels.experiments.recipes import draw, ranges_of
from rnnkernels.experiments.training import Job
from rnnkernels.experiments.worker import load, start_worker, work

Progress = Callable[[float, str], object]


@dataclass(eq=False)
class Cell:
    """One row of a table in one column: a rung of a model on a data set."""

    source: str
    data: str  # the set's name and a digest of what is in it
    part: Part
    technique: str
    trials: dict[int, dict[str, Any]] = field(default_factory=dict)
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)

    def trial(self, number: int) -> Job:
        """A short run with drawn settings."""
        part = self.part
        settings = draw(ranges_of(self.technique, part.changes), number, part.base)
        return Job(self.data, part.model, self.technique, settings, 0, part.trial_updates, False, part.scale)

    def best_trial(self) -> int | None:
        """The one with the highest validation log-likelihood; None where all diverged."""
        sound = [number for number, trial in self.trials.items() if trial["valid"] is not None]
        return max(sound, key=lambda number: float(self.trials[number]["valid"]), default=None)

    def run(self, number: int, seed: int) -> Job:
        """A full run with the settings of a trial."""
        part, settings = self.part, self.trial(number).settings
        return Job(self.data, part.model, self.technique, settings, seed, part.updates, True, part.scale)

    def entry(self) -> dict[str, Any]:
        """Of the results file."""
        best = self.best_trial()
        return {
            "data": self.data.rpartition("-")[0],
            "model": self.part.model,
            "technique": self.technique,
            "settings": None if best is None else asdict(self.trial(best).settings),
            "trials": [
                {
                    "settings": asdict(self.trial(number).settings),
                    "valid": trial["valid"],
                    "seconds": trial["seconds"],
                }
                for number, trial in sorted(self.trials.items())
            ],
            "runs": [run for _, run in sorted(self.runs.items())],
        }


@dataclass(frozen=True)
class Task:
    """A run of a cell: a trial, or with a seed a full one."""

    cell: Cell
    trial: int
    seed: int | None = None

    @property
    def job(self) -> Job:
        """What the worker is given."""
        return self.cell.trial(self.trial) if self.seed is None else self.cell.run(self.trial, self.seed)

    def keep(self, result: dict[str, Any]) -> Iterator[Task]:
        """Note the result. Yields what can be run now: after the last trial, the full runs."""
        cell = self.cell
        if self.seed is not None:
            cell.runs[self.seed] = result
            return
        cell.trials[self.trial] = result
        best = cell.best_trial()
        if len(cell.trials) == cell.part.trials and best is not None:
            yield from (Task(cell, best, seed) for seed in range(cell.part.seeds))


class Study:
    """A plan on data sets, with its files in a folder."""

    def __init__(
        self, plan: Plan, sources: Sequence[str], folder: Path, workers: int, events: Path | None = None
    ) -> None:
        self.folder, self.workers, self.events = folder, workers, events
        self.data = {source: load(source) for source in sources}
        self.cells = [
            Cell(source, name_of(data), part, technique)
            for part in plan.parts
            for source, data in self.data.items()
            for technique in part.techniques
        ]

    def run(self, progress: Progress) -> None:
        """Whatever is not there yet. Ctrl-C ends the workers; what they had finished is kept."""
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, context, initializer=start_worker)
        try:
            self._run_in(pool, progress)
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _run_in(self, pool: ProcessPoolExecutor, progress: Progress) -> None:
        """All tasks, no more of them at once than workers. Full runs come before further trials."""
        ready = deque(Task(cell, n) for cell in self.cells for n in range(cell.part.trials))
        running: dict[Future[dict[str, Any]], Task] = {}
        parts = [cell.part for cell in self.cells]
        total = sum(part.trials * part.trial_updates + part.seeds * part.updates for part in parts)
        done = 0
        while ready or running:
            while ready and len(running) < self.workers:
                task = ready.popleft()
                running[pool.submit(work, task.job, task.cell.source, self.folder, self.events)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                ready.extendleft(task.keep(future.result()))
                done += task.job.updates
                progress(done / total, f"{task.cell.data}, {task.cell.part.model} {task.cell.technique}")

    def results(self) -> list[dict[str, Any]]:
        """The entries of the results file, as far as they have come."""
        return [cell.entry() for cell in self.cells]


def name_of(data: rolls.Rolls) -> str:
    """The set's name with a digest of what is in it."""
    digest = hashlib.sha256()
    for split in (data.train, data.valid, data.test):
        digest.update(np.array([len(roll) for roll in split]).tobytes())
        digest.update(np.concatenate(split).tobytes())
    return f"{data.name.replace(' ', '_')}-{digest.hexdigest()[:8]}"
