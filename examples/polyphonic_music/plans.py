"""The plans of studies: the rungs of each model, the numbers of trials, and the lengths of runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from polyphonic_music.recipes import TECHNIQUES, Range, Ranges, Settings
from polyphonic_music.scores import Sampling, Scale


@dataclass(frozen=True)
class Part:
    """The search and the full runs of some rungs of one model.

    Each rung has ``trials`` short runs with drawn settings. The ``finalists``, the best trials on the
    validation split, are run for each number of updates in ``updates``. The best full run on the validation
    split is repeated with the other seeds. With ``short_runs`` the best trial competes with the full runs.
    """

    model: str
    techniques: tuple[str, ...] = TECHNIQUES
    trials: int = 8
    trial_updates: int = 1500
    finalists: int = 1
    seeds: int = 3
    updates: tuple[int, ...] = (4000,)
    base: Settings = field(default_factory=Settings)
    changes: Ranges = field(default_factory=dict)  # replace or extend the ranges of the ladder
    scale: Scale = field(default_factory=Scale)
    only: tuple[str, ...] = ()  # names of data sets; empty: all
    short_runs: bool = False
    row: str = ""  # name of the row in the tables; empty: the technique

    @property
    def most_updates(self) -> int:
        """Upper bound of the updates of one rung on one data set."""
        full = self.finalists * sum(self.updates) + (self.seeds - 1) * max(self.updates)
        return self.trials * self.trial_updates + full


@dataclass(frozen=True)
class StudyPlan:
    """The parts of a study. A part with ``only`` replaces an earlier part for the same rows there."""

    name: str
    parts: tuple[Part, ...]

    def parts_on(self, data: str) -> list[Part]:
        """The parts that are run on a data set."""
        parts = [part for part in self.parts if data in (part.only or (data,))]
        return list({(part.model, part.techniques, part.row): part for part in parts}.values())


_SMALL = Settings(hidden=100, output_hidden=60, batch=16, steps=100, transpose=5)
_QUICK_SCALE = Scale(Sampling(200, 5, 50), Sampling(500, 10, 300), samples=10, gibbs_steps=15)

_STRONGER: Ranges = {  # for output models, which overfit more and allow larger steps
    "lr": Range(1.0, 10.0, log=True),
    "clip": Range(0.5, 2.0, log=True),
    "dropout": Range(choices=(0.1, 0.2, 0.3, 0.4)),
    "momentum": Range(choices=(0.9, 0.95)),
}

QUICK = StudyPlan(
    "quick",
    (
        Part("RNN", trials=5, trial_updates=500, finalists=2, updates=(1200,), base=_SMALL),
        Part("RNN-NADE", ("SGD",), trials=5, trial_updates=500, updates=(1200,), base=_SMALL),
        Part("RNN-NADE", ("+CLRM",), 5, 500, updates=(1200,), base=_SMALL, changes=_STRONGER),
        Part(
            "RNN-RBM", ("+CLRM",), 3, 300, updates=(600,), base=_SMALL, changes=_STRONGER, scale=_QUICK_SCALE
        ),
    ),
)

_MEDIUM = Settings(hidden=200, output_hidden=150, batch=8, steps=100)  # the sets are in one key
_LARGE = replace(_MEDIUM, hidden=300)
_LADDER = Part("RNN", trials=8, trial_updates=1500, finalists=2, base=_MEDIUM)
_NADE = Part(
    "RNN-NADE",
    ("+CLRM",),
    trials=14,
    trial_updates=1500,
    finalists=2,
    updates=(10000,),
    short_runs=True,
    base=_LARGE,
    changes=_STRONGER,
)
_RBM = Part(  # on the smallest set only, because an update takes four times as long as an update of RNN-NADE
    "RNN-RBM",
    ("+CLRM",),
    trials=4,
    trial_updates=1000,
    updates=(3000,),
    short_runs=True,
    base=_MEDIUM,
    changes=_STRONGER,
    scale=Scale(watched=Sampling(200, 5, 400)),  # with fewer temperatures log p is overestimated
    only=("JSB_Chorales",),
)
CONTROL = StudyPlan(
    "control",
    (
        replace(_NADE, updates=(2500, 4000, 6500, 10000), only=("Piano_midi",)),
        replace(
            _LADDER,
            techniques=("SGD",),
            trials=len(TECHNIQUES) * _LADDER.trials,
            finalists=len(TECHNIQUES) * _LADDER.finalists,
            row="SGD, 40 trials",
        ),
    ),
)
FULL = StudyPlan("full", (_LADDER, _NADE, _RBM, *CONTROL.parts))

PLANS = {plan.name: plan for plan in (QUICK, FULL, CONTROL)}
