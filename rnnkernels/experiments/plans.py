"""What a study runs: which rungs of which models, how many trials, and how long."""

from __future__ import annotations

from dataclasses import dataclass, field

from rnnkernels.experiments.recipes import TECHNIQUES, Range, Ranges, Settings
from rnnkernels.experiments.scores import Sampling, Scale


@dataclass(frozen=True)
class Part:
    """Rungs of one model. Each is searched by ``trials`` short runs; the settings with the best validation
    log-likelihood are then run in full, once for each seed.
    """

    model: str
    techniques: tuple[str, ...] = TECHNIQUES
    trials: int = 8
    trial_updates: int = 1500
    seeds: int = 3
    updates: int = 4000
    base: Settings = field(default_factory=Settings)
    changes: Ranges = field(default_factory=dict)  # other ranges than the ladder's
    scale: Scale = field(default_factory=Scale)


@dataclass(frozen=True)
class Plan:
    """All of a study, but for the data."""

    name: str
    parts: tuple[Part, ...]


_SMALL = Settings(hidden=100, output_hidden=60, batch=16, steps=100)
_QUICK_SCALE = Scale(Sampling(200, 5, 50), Sampling(500, 10, 300), samples=10, gibbs_steps=15)

QUICK = Plan(
    "quick",
    (
        Part("RNN", trials=5, trial_updates=500, updates=1200, base=_SMALL),
        Part("RNN-NADE", ("SGD", "+CLRM"), 5, 500, 3, 1200, _SMALL),
        Part("RNN-RBM", ("+CLRM",), 3, 300, 3, 600, _SMALL, scale=_QUICK_SCALE),
    ),
)

_MEDIUM = Settings(hidden=200, output_hidden=150, batch=8, steps=100)
_LARGE = Settings(hidden=300, output_hidden=150, batch=8, steps=100)
_IN_ONE_KEY: Ranges = {"transpose": Range(choices=(0,))}  # as the four sets are
_FINER: Ranges = {  # where the best of wide searches were
    **_IN_ONE_KEY,
    "lr": Range(1.0, 10.0, log=True),
    "clip": Range(0.3, 2.0, log=True),
    "slowest": Range(0.1, 0.6, log=True),
    "dropout": Range(choices=(0.1, 0.2, 0.3, 0.4)),
    "l1": Range(1e-4, 1e-1, log=True),
}

FULL = Plan(
    "full",
    (
        Part("RNN", TECHNIQUES, 6, 1200, 3, 4000, _MEDIUM, _IN_ONE_KEY),
        Part("RNN-NADE", ("+CLRM",), 8, 2000, 3, 10000, _LARGE, _FINER),
        Part("RNN-RBM", ("+CLRM",), 4, 1000, 3, 3000, _MEDIUM, _FINER),
        Part("RNN-NADE", ("SGD",), 6, 2000, 3, 10000, _LARGE, _IN_ONE_KEY),
    ),
)

PLANS = {plan.name: plan for plan in (QUICK, FULL)}
