"""What a study runs: which rungs of which models, how many trials, and how long."""

from __future__ import annotations

from dataclasses import dataclass, field

from polyphonic_music.recipes import TECHNIQUES, Range, Ranges, Settings
from polyphonic_music.scores import Sampling, Scale


@dataclass(frozen=True)
class Part:
    """Rungs of one model. Each is searched by ``trials`` short runs. The ``finalists``, the best of them by
    the validation split, are run in full; the best of those once for each further seed. With ``short_runs``
    the best trial competes with them, and if it wins, all seeds are run for ``trial_updates``.
    """

    model: str
    techniques: tuple[str, ...] = TECHNIQUES
    trials: int = 8
    trial_updates: int = 1500
    finalists: int = 1
    seeds: int = 3
    updates: int = 4000
    base: Settings = field(default_factory=Settings)
    changes: Ranges = field(default_factory=dict)  # other ranges than the ladder's
    scale: Scale = field(default_factory=Scale)
    only: tuple[str, ...] = ()  # names of data sets; none: all
    short_runs: bool = False

    @property
    def all_updates(self) -> int:
        """Of a rung on a data set, at most."""
        return self.trials * self.trial_updates + (self.finalists + self.seeds - 1) * self.updates


@dataclass(frozen=True)
class Plan:
    """All of a study, but for the data."""

    name: str
    parts: tuple[Part, ...]


_SMALL = Settings(hidden=100, output_hidden=60, batch=16, steps=100, transpose=5)
_QUICK_SCALE = Scale(Sampling(200, 5, 50), Sampling(500, 10, 300), samples=10, gibbs_steps=15)

_STRONGER: Ranges = {  # for output models that learn more by heart, and larger steps
    "lr": Range(1.0, 10.0, log=True),
    "clip": Range(0.5, 2.0, log=True),
    "dropout": Range(choices=(0.1, 0.2, 0.3, 0.4)),
    "momentum": Range(choices=(0.9, 0.95)),
}

QUICK = Plan(
    "quick",
    (
        Part("RNN", trials=5, trial_updates=500, finalists=2, updates=1200, base=_SMALL),
        Part("RNN-NADE", ("SGD",), trials=5, trial_updates=500, updates=1200, base=_SMALL),
        Part("RNN-NADE", ("+CLRM",), 5, 500, updates=1200, base=_SMALL, changes=_STRONGER),
        Part("RNN-RBM", ("+CLRM",), 3, 300, updates=600, base=_SMALL, changes=_STRONGER, scale=_QUICK_SCALE),
    ),
)

_MEDIUM = Settings(hidden=200, output_hidden=150, batch=8, steps=100)  # the sets are all in one key
_LARGE = Settings(hidden=300, output_hidden=150, batch=8, steps=100)
FULL = Plan(
    "full",
    (
        Part("RNN", trials=8, trial_updates=1500, finalists=2, updates=4000, base=_MEDIUM),
        Part(
            "RNN-NADE",
            ("+CLRM",),
            trials=14,
            trial_updates=1500,
            finalists=2,
            updates=10000,
            short_runs=True,
            base=_LARGE,
            changes=_STRONGER,
        ),
        Part(  # on the smallest set: an update takes four times as long as NADE's
            "RNN-RBM",
            ("+CLRM",),
            trials=4,
            trial_updates=1000,
            updates=3000,
            short_runs=True,
            base=_MEDIUM,
            changes=_STRONGER,
            scale=Scale(watched=Sampling(200, 5, 400)),  # with fewer temperatures log p comes out too high
            only=("JSB_Chorales",),
        ),
    ),
)

PLANS = {plan.name: plan for plan in (QUICK, FULL)}
