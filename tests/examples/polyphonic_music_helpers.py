"""Synthetic results of a study, for the tests of its report; a small study of synthetic rolls."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from polyphonic_music.plans import Part, StudyPlan
from polyphonic_music.recipes import Range, Settings
from polyphonic_music.scores import Sampling, Scale
from polyphonic_music.study import Study
from polyphonic_music.training import Job

RISE = {"SGD": 0.0, "+C": 0.3, "+CL": 0.5, "+CLR": 0.4, "+CLRM": 1.0}  # of the log-likelihood
SETS = {"JSB_Chorales": -9.0, "Nottingham": -5.0}


def made_run(seed: int, test: float, interval: bool = False) -> dict[str, Any]:
    epochs = list(range(1, 9))
    climb = [test - 2 * 0.6**epoch for epoch in epochs]
    return {
        "seed": seed,
        "valid": max(climb),
        "test": test,
        "interval": [test - 0.1, test + 0.2] if interval else None,
        "accuracy": 0.25 + 0.01 * seed,
        "seconds": 10.0 + seed,
        "epochs": 8,
        "best_epoch": 8,
        "updates": 80,
        "active": 0.4,
        "gradient": 0.3,
        "curve": {"epoch": epochs, "train": climb, "valid": climb},
    }


def made_results(seeds: int = 3, models: tuple[str, ...] = ("RNN",)) -> dict[str, Any]:
    """The values of the seeds are 0.1 apart, so that the deviation of three of them is 0.1."""
    entries = []
    for model in models:
        for name, base in SETS.items():
            for technique, rise in RISE.items():
                tests = [base + rise + 0.1 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
                runs = [made_run(seed, test, model == "RNN-RBM") for seed, test in enumerate(tests)]
                trials = [{"settings": {"lr": 0.1}, "valid": base, "seconds": 1.0}]
                entry = {"data": name, "model": model, "technique": technique, "settings": {"lr": 0.1}}
                entries.append(entry | {"trials": trials, "runs": runs})
    baselines = {"keys_alone": -11.0, "repeat_accuracy": 0.2}
    return {
        "format": 1,
        "command": "python -m polyphonic_music quick",
        "environment": {"rnnkernels": "0.1", "torch": "2.13", "cores": 2},
        "plan": {"name": "quick"},
        "seconds": 1234.5,
        "data": {name: {"note": "3/2/1 sequences", "baselines": dict(baselines)} for name in SETS},
        "results": entries,
    }


def entry_of(results: dict[str, Any], data: str, technique: str) -> dict[str, Any]:
    return next(e for e in results["results"] if (e["data"], e["technique"]) == (data, technique))


SCALE = Scale(Sampling(20, 3, 10), Sampling(20, 3, 10), samples=2, gibbs_steps=2)
SMALL = Settings(hidden=8, output_hidden=6, batch=4, steps=10, gibbs_steps=2)
CALM = {"lr": Range(0.1, 0.5)}
PLAN = StudyPlan(
    "tiny",
    (
        Part("RNN", ("SGD", "+CLRM"), 3, 4, 2, 2, (6,), SMALL, CALM, SCALE),
        Part("RNN-RBM", ("+CLRM",), 1, 3, 1, 1, (4,), SMALL, CALM, SCALE),
    ),
)


def write_made(folder: Path) -> Path:
    """Write a file of synthetic rolls."""
    splits = {
        "train": made_steps(0, [20, 9, 14]),
        "valid": made_steps(1, [12]),
        "test": made_steps(2, [13, 5]),
    }
    path = folder / "made.json"
    path.write_text(json.dumps(splits))
    return path


def made_steps(seed: int, lengths: list[int]) -> list[list[list[int]]]:
    rng = np.random.default_rng(seed)
    return [[[int(pitch)] for pitch in rng.integers(50, 70, length)] for length in lengths]


def first_job(study: Study) -> Job:
    rung = study.rungs[0]
    return rung.job(rung.trials()[0])


class Here:
    """Replaces the pool of processes: calls the submitted function at once, in this process."""

    _processes = None

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **_: object) -> None:
        pass
