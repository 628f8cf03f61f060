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
from typing import Any, NamedTuple, TypeVar

import numpy as np

from polyphonic_music import rolls
from polyphonic_music.plans import Part, Plan
from polyphonic_music.recipes import Settings, draw, ranges_above, ranges_of
from polyphonic_music.training import Job
from polyphonic_music.worker import load, result_of, start_worker, work

Progress = Callable[[float, str], object]
Key = TypeVar("Key", bound=Any)


class Run(NamedTuple):
    """A run whose test score counts: with the settings of a trial, and for so many updates."""

    trial: int
    updates: int
    seed: int


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
    runs: dict[Run, dict[str, Any]] = field(default_factory=dict)

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

    def job(self, run: Run) -> Job:
        """What a worker is given for it."""
        part, settings = self.part, self.trial(run.trial).settings
        return Job(self.data, part.model, self.technique, settings, run.seed, run.updates, True, part.scale)

    def finalists(self) -> list[int]:
        """The trials that are run in full: the best, once all are there; none where all diverged."""
        if len(self.trials) < self.part.trials:
            return []
        return best_of(self.trials)[: self.part.finalists]

    def in_full(self) -> list[Run]:
        """The finalists' first full runs."""
        return [Run(number, self.part.updates, 0) for number in self.finalists()]

    def decided(self) -> bool:
        """Whether all trials are there, and all finalists have run in full."""
        return len(self.trials) == self.part.trials and all(run in self.runs for run in self.in_full())

    def chosen(self) -> list[Run]:
        """The runs of the table, a seed each, with the settings and the number of updates that have the best
        validation: of a finalist's full run or, where the part admits short runs, of the best trial, which
        may have learned less by heart. None yet, or none that is sound.
        """
        if not self.decided():
            return []
        valid = {(run.trial, run.updates): self.runs[run] for run in self.in_full()}
        if self.part.short_runs:
            valid |= {
                (number, self.part.trial_updates): self.trials[number] for number in self.finalists()[:1]
            }
        return [Run(*best, seed) for best in best_of(valid)[:1] for seed in range(self.part.seeds)]

    def settings(self) -> Settings | None:
        """Those of the chosen runs."""
        return next((self.trial(run.trial).settings for run in self.chosen()), None)

    def seeds(self) -> dict[int, dict[str, Any]]:
        """The chosen runs that are there, by their seeds."""
        return {run.seed: self.runs[run] for run in self.chosen() if run in self.runs}

    def updates(self) -> int:
        """Of all runs that are there."""
        return len(self.trials) * self.part.trial_updates + sum(run.updates for run in self.runs)

    def entry(self) -> dict[str, Any]:
        """Of the results file."""
        settings = self.settings()
        trials = []
        for number, trial in sorted(self.trials.items()):
            full = self.runs.get(Run(number, self.part.updates, 0))
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


def best_of(results: dict[Key, dict[str, Any]]) -> list[Key]:
    """Those that did not diverge, the highest validation log-likelihood first, whichever ended first."""
    sound = [number for number, result in sorted(results.items()) if result["valid"] is not None]
    return sorted(sound, key=lambda number: -results[number]["valid"])


@dataclass(frozen=True)
class Task:
    """A run of a cell: a trial by its number, or one that counts."""

    cell: Cell
    run: int | Run

    @property
    def job(self) -> Job:
        """What the worker is given."""
        return self.cell.trial(self.run) if isinstance(self.run, int) else self.cell.job(self.run)

    def keep(self, result: dict[str, Any]) -> Iterator[Task]:
        """Note the result. Yields what can be run now: the finalists; then the chosen runs that are not there
        yet, and the trials of the rung above.
        """
        cell, decided = self.cell, self.cell.decided()
        if isinstance(self.run, int):
            cell.trials[self.run] = result
            yield from (Task(cell, run) for run in cell.in_full())
        else:
            cell.runs[self.run] = result
        if cell.decided() and not decided:
            yield from (Task(cell, run) for run in cell.chosen() if run not in cell.runs)
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
