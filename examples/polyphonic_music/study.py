"""A study: all runs of a plan on all data sets.

The result of a run is a file, named by a hash of everything that the run depends on. Which runs are left
follows from these files alone, so the same command continues a study that was stopped, and any number of
processes, also on several hosts that share the folder, work on one study. A process locks a file while it
does a run. The operating system releases the lock when the process ends, so a run of a killed process is free
at once.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyphonic_music import rolls
from polyphonic_music.chorales import load_chorales
from polyphonic_music.files import UnusableError
from polyphonic_music.plans import Part, StudyPlan
from polyphonic_music.recipes import Settings, draw, ranges_above, ranges_of
from polyphonic_music.training import Job
from polyphonic_music.worker import do_unless_locked, result_of, start_worker

CHORALES = ""  # in place of a file name: the chorales of music21
POLL_SECONDS = 1.0

Show = Callable[[float, str], object]  # arguments: the fraction of the work that is done, and the last rung


class Run(NamedTuple):
    """A run of a rung: with the settings of a trial, for a number of updates."""

    trial: int
    updates: int
    seed: int = 0
    test: bool = True  # whether the test split is scored; not in the search


@dataclass(eq=False)
class Rung:
    """A rung of the ladder of one model on one data set, with its runs: a cell of the tables."""

    source: str
    data: str  # the name of the data set and a digest of its content
    part: Part
    technique: str
    below: Rung | None = None  # the rung below in the same part
    results: dict[Run, dict[str, Any]] = field(default_factory=dict)

    def job(self, run: Run) -> Job:
        """Everything that the run depends on."""
        part, settings = self.part, self.drawn(run.trial)
        return Job(
            self.data, part.model, self.technique, settings, run.seed, run.updates, run.test, part.scale
        )

    def drawn(self, trial: int) -> Settings:
        """The settings of a trial. Two of three trials start from the settings chosen on the rung below."""
        part = self.part
        below = None if self.below is None or trial % 3 == 2 else self.below.settings()
        if self.below is None or below is None:
            return draw(ranges_of(self.technique, part.changes), trial, part.base)
        return draw(ranges_above(self.below.technique, below, self.technique, part.changes), trial, below)

    def trials(self) -> list[Run]:
        """The short runs of the search."""
        return [Run(trial, self.part.trial_updates, test=False) for trial in range(self.part.trials)]

    def full_runs(self) -> list[Run]:
        """The first full runs of the best trials; empty until all trials have results."""
        if any(run not in self.results for run in self.trials()):
            return []
        best = self.best_of(self.trials())[: self.part.finalists]
        return [Run(run.trial, updates) for run in best for updates in self.part.updates]

    def decided(self) -> bool:
        """Whether all trials and all first full runs have results."""
        return all(run in self.results for run in [*self.trials(), *self.full_runs()])

    def chosen(self) -> list[Run]:
        """The runs in the table, one per seed; empty until the rung is decided, or if all runs diverged.

        They have the settings and the number of updates of the first full run, or with ``short_runs`` of the
        best trial, that is best on the validation split.
        """
        if not self.decided():
            return []
        candidates = self.full_runs() + self.best_of(self.trials())[: int(self.part.short_runs)]
        return [
            Run(best.trial, best.updates, seed)
            for best in self.best_of(candidates)[:1]
            for seed in range(self.part.seeds)
        ]

    def best_of(self, runs: Iterable[Run]) -> list[Run]:
        """The runs that did not diverge, sorted by validation log-likelihood, the highest first."""
        sound = [run for run in sorted(runs) if self.results[run]["valid"] is not None]
        return sorted(sound, key=lambda run: -self.results[run]["valid"])

    def left(self) -> list[Run]:
        """The runs that can be done now and have no result. A rung waits for the rung below it."""
        if self.below is not None and not self.below.decided():
            return []
        wanted = [*self.trials(), *self.full_runs(), *self.chosen()]
        return [run for run in wanted if run not in self.results]

    def settings(self) -> Settings | None:
        """The settings of the chosen runs."""
        return next((self.drawn(run.trial) for run in self.chosen()), None)

    def seeds(self) -> list[dict[str, Any]]:
        """The results of the chosen runs, by seed."""
        return [self.results[run] for run in self.chosen() if run in self.results]

    def entry(self) -> dict[str, Any]:
        """The entry in the results file."""
        settings, trials = self.settings(), []
        for run in self.trials():
            if run in self.results:
                lengths = [self.results.get(Run(run.trial, updates)) for updates in self.part.updates]
                valid = [full["valid"] for full in lengths if full and full["valid"] is not None]
                trials.append(
                    {
                        "settings": asdict(self.drawn(run.trial)),
                        "valid": self.results[run]["valid"],
                        "full_valid": max(valid, default=None),
                        "seconds": self.results[run]["seconds"],
                    }
                )
        return {
            "data": self.data.rpartition("-")[0],
            "model": self.part.model,
            "technique": self.part.row or self.technique,
            "settings": None if settings is None else asdict(settings),
            "trials": trials,
            "runs": self.seeds(),
        }


def ladder(source: str, data: str, part: Part) -> list[Rung]:
    """The rungs of a part on a data set, from the lowest rung up."""
    rungs = [Rung(source, data, part, technique) for technique in part.techniques]
    for below, above in pairwise(rungs):
        above.below = below
    return rungs


class Study:
    """A plan on data sets, with its files in a folder."""

    def __init__(self, plan: StudyPlan, sources: Sequence[str], folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.data: dict[str, rolls.Rolls] = {}
        for source in sources:
            data = load_chorales() if source == CHORALES else rolls.load(source)
            same = [other for other, known in self.data.items() if plain_name(known) == plain_name(data)]
            if same:
                raise UnusableError(f"{source}: the data set has the same name as {same[0]}")
            self.data[source] = data
        self.rungs = [
            rung
            for source, data in self.data.items()
            for part in plan.parts_on(plain_name(data))
            for rung in ladder(source, name_of(data), part)
        ]

    def left(self) -> list[tuple[Rung, Run]]:
        """Read the results that are new in the folder. Return the runs that can be done now."""
        for rung in self.rungs:
            while new := {
                run: found for run in rung.left() if (found := result_of(rung.job(run), self.folder))
            }:
                rung.results |= new
        return [(rung, run) for rung in self.rungs for run in rung.left()]

    def updates(self) -> int:
        """The number of updates of all runs that have results."""
        return sum(run.updates for rung in self.rungs for run in rung.results)

    def run(self, workers: int, show: Show, events: Path | None = None) -> None:
        """Do the runs that are left, in processes of one thread each. An error or Ctrl-C ends them."""
        if not self.left():
            return
        before, total = self.updates(), sum(rung.part.most_updates for rung in self.rungs)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=start_worker)
        try:
            running = {pool.submit(work_on, self, events) for _ in range(workers)}
            while running:
                done, running = wait(running, POLL_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                known = [len(rung.results) for rung in self.rungs]
                self.left()
                for rung, count in zip(self.rungs, known, strict=True):
                    if len(rung.results) > count:
                        text = f"{plain_name(self.data[rung.source])}, {rung.part.model} {rung.technique}"
                        show((self.updates() - before) / (total - before), text)
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def work_on(study: Study, events: Path | None) -> None:
    """Do runs until none is left; wait while other processes do runs that others depend on."""
    while left := study.left():
        if not any(
            do_unless_locked(rung.job(run), study.data[rung.source], study.folder, events)
            for rung, run in left
        ):
            time.sleep(POLL_SECONDS)


def plain_name(data: rolls.Rolls) -> str:
    """The name of a data set in tables and file names."""
    return data.name.replace(" ", "_")


def name_of(data: rolls.Rolls) -> str:
    """The name of a data set with a digest of its content."""
    digest = hashlib.sha256()
    for split in (data.train, data.valid, data.test):
        digest.update(np.array([len(roll) for roll in split]).tobytes())
        digest.update(np.concatenate(split).tobytes())
    return f"{plain_name(data)}-{digest.hexdigest()[:8]}"
