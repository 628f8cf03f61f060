"""Synthetic results of a study, for the tests of its report."""

from __future__ import annotations

from typing import Any

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
