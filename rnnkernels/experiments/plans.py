"""What a study runs: which rungs of which models, how many trials, and how long."""

from __future__ import annotations

from dataclasses import dataclass, field

from rnnkernels.experiments.recipes import TECHNIQUES, Ranges, Settings
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

_LARGE = Settings(hidden=300, output_hidden=150)

FULL = Plan(
    "full",
    (
        Part("RNN", trials=8, trial_updates=1000, updates=3000),
        Part("RNN-NADE", ("SGD", "+CLRM"), 8, 1500, 3, 6000, _LARGE),
        Part("RNN-RBM", ("+CLRM",), 4, 800, 3, 3000, _LARGE),
    ),
)

PLANS = {plan.name: plan for plan in (QUICK, FULL)}
