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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rnnkernels.experiments import rolls
from rnnkernels.experiments.plans import Part, Plan
from rnnkernels.experiments.recipes import Settings, draw, ranges_above, ranges_of
from rnnkernels.experiments.training import Job
from rnnkernels.experiments.worker import load, result_of, start_worker, work

Progress = Callable[[float, str], object]


@dataclass(eq=False)
class Cell:
    """One row of a table in one column: a rung of a model on a data set."""

    source: str
    data: str  # the set's name and a digest of what is in it
    part: Part
    technique: str
    below: Cell | None = None  # the rung below, if it is run at all
    above: Cell | None = None
    trials: dict[int, dict[str, Any]] = field(default_factory=dict)
    runs: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)  # by trial and seed

    def trial(self, number: int) -> Job:
        """A short run with drawn settings. On a rung above another only when that is decided."""
        part = self.part
        below = None if self.below is None or number % 3 == 2 else self.below.settings()
        if self.below is None or below is None:
            settings = draw(ranges_of(self.technique, part.changes), number, part.base)
        else:
            found = ranges_above(self.below.technique, below, self.technique, part.changes)
            settings = draw(found, number, below)
        return Job(self.data, part.model, self.technique, settings, 0, part.trial_updates, False, part.scale)

    def run(self, number: int, seed: int) -> Job:
        """A full run with the settings of a trial."""
        part, settings = self.part, self.trial(number).settings
        return Job(self.data, part.model, self.technique, settings, seed, part.updates, True, part.scale)

    def finalists(self) -> list[int]:
        """The trials that are run in full: the best, once all are there; none where all diverged."""
        if len(self.trials) < self.part.trials:
            return []
        return best_of(self.trials)[: self.part.finalists]

    def decided(self) -> bool:
        """Whether all trials are there, and all finalists have run in full."""
        return len(self.trials) == self.part.trials and all((n, 0) in self.runs for n in self.finalists())

    def chosen(self) -> int | None:
        """The finalist whose first full run has the best validation; none yet, or none that is sound."""
        if not self.decided():
            return None
        return next(iter(best_of({number: self.runs[number, 0] for number in self.finalists()})), None)

    def settings(self) -> Settings | None:
        """Those of the chosen trial."""
        chosen = self.chosen()
        return None if chosen is None else self.trial(chosen).settings

    def seeds(self) -> dict[int, dict[str, Any]]:
        """The full runs with the chosen settings, by their seeds."""
        return {seed: run for (number, seed), run in sorted(self.runs.items()) if number == self.chosen()}

    def updates(self) -> int:
        """Of all runs that are there."""
        return len(self.trials) * self.part.trial_updates + len(self.runs) * self.part.updates

    def entry(self) -> dict[str, Any]:
        """Of the results file."""
        settings = self.settings()
        trials = []
        for number, trial in sorted(self.trials.items()):
            full = self.runs.get((number, 0))
            found = {
                "valid": trial["valid"],
                "full_valid": full and full["valid"],
                "seconds": trial["seconds"],
            }
            trials.append({"settings": asdict(self.trial(number).settings), **found})
        return {
            "data": self.data.rpartition("-")[0],
            "model": self.part.model,
            "technique": self.technique,
            "settings": None if settings is None else asdict(settings),
            "trials": trials,
            "runs": list(self.seeds().values()),
        }


def ladder(source: str, data: str, part: Part) -> list[Cell]:
    """The rungs of a part on a data set."""
    cells = [Cell(source, data, part, technique) for technique in part.techniques]
    for below, above in pairwise(cells):
        below.above, above.below = above, below
    return cells


def best_of(results: dict[int, dict[str, Any]]) -> list[int]:
    """Those that did not diverge, the highest validation log-likelihood first, whichever ended first."""
    sound = [number for number, result in sorted(results.items()) if result["valid"] is not None]
    return sorted(sound, key=lambda number: -results[number]["valid"])


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
        """Note the result. Yields what can be run now: the finalists; then the other seeds of the best of
        them, and the trials of the rung above.
        """
        cell = self.cell
        if self.seed is None:
            cell.trials[self.trial] = result
            yield from (Task(cell, number, 0) for number in cell.finalists())
        else:
            cell.runs[self.trial, self.seed] = result
        if cell.decided() and not self.seed:  # by this very result
            chosen = cell.chosen()
            if chosen is not None:
                yield from (Task(cell, chosen, seed) for seed in range(1, cell.part.seeds))
            if cell.above is not None:
                yield from trials_of(cell.above)


def trials_of(cell: Cell) -> list[Task]:
    """All trials of a rung."""
    return [Task(cell, number) for number in range(cell.part.trials)]


class Study:
    """A plan on data sets, with its files in a folder."""

    def __init__(
        self, plan: Plan, sources: Sequence[str], folder: Path, workers: int, events: Path | None = None
    ) -> None:
        self.folder, self.workers, self.events = folder, workers, events
        self.data: dict[str, rolls.Rolls] = {}
        for source in sources:
            data = load(source)
            same = [other for other, known in self.data.items() if plain_name(known) == plain_name(data)]
            if same:
                raise rolls.RollsError(f"{source}: has the name of {same[0]}, so tables would mix the two")
            self.data[source] = data
        self.cells = [
            cell
            for part in plan.parts
            for source, data in self.data.items()
            if data.name in (part.only or (data.name,))
            for cell in ladder(source, name_of(data), part)
        ]

    def run(self, progress: Progress) -> None:
        """Whatever is not there yet. Ctrl-C ends the workers; what they had finished is kept."""
        ready = self._left()
        if not ready:
            return
        context = multiprocessing.get_context("spawn")
        tasks = sum(cell.part.trials + cell.part.finalists + cell.part.seeds for cell in self.cells)
        pool = ProcessPoolExecutor(min(self.workers, tasks), context, initializer=start_worker)
        try:
            self._run_in(pool, ready, progress)
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _left(self) -> deque[Task]:
        """The tasks that have no file yet. What is there is noted first of all, so that a study that goes on
        and is stopped at once reports no less than before.
        """
        ready = deque(task for cell in self.cells if cell.below is None for task in trials_of(cell))
        left: deque[Task] = deque()
        while ready:
            task = ready.popleft()
            result = result_of(task.job, self.folder)
            if result is None:
                left.append(task)
            else:
                ready.extendleft(reversed(list(task.keep(result))))
        return left

    def _run_in(self, pool: ProcessPoolExecutor, ready: deque[Task], progress: Progress) -> None:
        """All tasks, no more of them at once than workers. Full runs come before further trials."""
        running: dict[Future[dict[str, Any]], Task] = {}
        total = sum(cell.part.all_updates - cell.updates() for cell in self.cells)
        done = 0
        while ready or running:
            while ready and len(running) < self.workers:
                task = ready.popleft()
                running[pool.submit(work, task.job, task.cell.source, self.folder, self.events)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                ready.extendleft(reversed(list(task.keep(future.result()))))
                done += task.job.updates
                progress(done / total, f"{task.cell.data}, {task.cell.part.model} {task.cell.technique}")

    def results(self) -> list[dict[str, Any]]:
        """The entries of the results file, as far as they have come."""
        return [cell.entry() for cell in self.cells]


def plain_name(data: rolls.Rolls) -> str:
    """The set's name in tables and in names of files."""
    return data.name.replace(" ", "_")


def name_of(data: rolls.Rolls) -> str:
    """The set's name with a digest of what is in it."""
    digest = hashlib.sha256()
    for split in (data.train, data.valid, data.test):
        digest.update(np.array([len(roll) for roll in split]).tobytes())
        digest.update(np.concatenate(split).tobytes())
    return f"{plain_name(data)}-{digest.hexdigest()[:8]}"
