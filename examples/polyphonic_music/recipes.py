"""The ladder of techniques, the models, and the ranges of the search.

A rung of the ladder adds one technique to the rung below (arXiv 1212.0901, section 3):

    SGD     a tanh network, stochastic gradient descent
    +C      clipping of the gradient's norm
    +CL     leaky units with different time constants
    +CLR    rectified units instead of tanh, with an L1 penalty on their outputs
    +CLRM   Nesterov's momentum by ClippedNesterov

The search goes up the ladder. On the first rung each trial draws all settings. On a higher rung two of three
trials start from the settings chosen on the rung below and draw the settings that the rung adds and the
learning rate. The other trials draw all settings. Trial k draws the same numbers on all rungs for the
settings that they have in common, so the rungs differ in their techniques and in little else.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

TECHNIQUES = ("SGD", "+C", "+CL", "+CLR", "+CLRM")
MODELS = ("RNN", "RNN-NADE", "RNN-RBM")


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on except data, seed and number of updates."""

    # The optimizer gets lr (1 - momentum), so that momentum does not lengthen steps in the long run.
    lr: float = 0.1
    clip: float | None = None  # largest norm of the gradient of the loss per step; None: no clipping
    slowest: float | None = None  # update fraction 1 - d of the slowest unit; None: no leak
    nonlinearity: str = "tanh"
    l1: float = 0.0  # weight of the mean output in the loss
    momentum: float = 0.0
    radius: float = 1.0  # largest modulus of the initial recurrent weights' eigenvalues
    dropout: float = 0.1  # of the input frames and of the states
    transpose: int = 0  # largest random transposition of a sequence, in keys
    hidden: int = 200
    output_hidden: int = 150  # hidden units of NADE and RBM
    batch: int = 16  # sequences per update
    steps: int = 200  # longest piece of a sequence in training
    gibbs_steps: int = 15  # of the Markov chain for the gradient of an RBM


@dataclass(frozen=True)
class Range:
    """The range of a setting: choices, or an interval, uniform in the logarithm if ``log``."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1) of the range."""
        if self.choices:
            return self.choices[int(place * len(self.choices))]
        if self.log:
            return float(f"{self.low * (self.high / self.low) ** place:.4g}")
        return float(f"{self.low + (self.high - self.low) * place:.4g}")


Ranges = dict[str, Range]

SHARED: Ranges = {"lr": Range(0.05, 10.0, log=True)}
NEAR = (0.5, 5.0)  # factors of the learning rate of the rung below; most techniques allow larger steps
ADDED: dict[str, Ranges] = {
    "SGD": {},
    "+C": {"clip": Range(0.1, 2.0, log=True)},
    "+CL": {"slowest": Range(0.04, 0.96, log=True)},
    "+CLR": {"nonlinearity": Range(choices=("relu",)), "l1": Range(1e-4, 1e-1, log=True)},
    "+CLRM": {"momentum": Range(choices=(0.5, 0.7, 0.9, 0.95))},
}


def ranges_of(technique: str, changes: Ranges | None = None) -> Ranges:
    """The ranges of a rung: the shared settings and the techniques up to this one.

    ``changes`` replaces ranges and adds further settings; settings of higher rungs are ignored.
    """
    higher = added(technique, TECHNIQUES[-1])
    own = {name: given for name, given in (changes or {}).items() if name not in higher}
    return SHARED | added(None, technique) | own


def ranges_above(rung: str, settings: Settings, technique: str, changes: Ranges | None = None) -> Ranges:
    """The ranges of the techniques above ``rung`` up to ``technique``, and a learning rate near its own."""
    own = added(rung, technique)
    near = Range(settings.lr * NEAR[0], settings.lr * NEAR[1], log=True)
    return {name: (changes or {}).get(name, given) for name, given in own.items()} | {"lr": near}


def added(rung: str | None, technique: str) -> Ranges:
    """The ranges of the techniques above ``rung``, or of all if it is None, up to ``technique``."""
    begin = 0 if rung is None else TECHNIQUES.index(rung) + 1
    found: Ranges = {}
    for name in TECHNIQUES[begin : TECHNIQUES.index(technique) + 1]:
        found |= ADDED[name]
    return found


def draw(ranges: Ranges, trial: int, base: Settings) -> Settings:
    """The settings of a trial. The draw of a setting depends only on its name and the number of the trial."""
    return replace(base, **{name: given.at(place(name, trial)) for name, given in ranges.items()})


def place(name: str, trial: int) -> float:
    """The place of a setting in its range, ``(u + k sqrt(p)) mod 1``, in trial k.

    u is random and p a prime, both fixed for each setting. The trials cover the ranges more evenly than
    independent draws (the additive recurrence of Richtmyer 1951), and further trials do not change the first
    ones.
    """
    start = np.random.default_rng(zlib.crc32(name.encode())).random()
    return float((start + trial * math.sqrt(PRIMES[NAMES.index(name)])) % 1)


NAMES = tuple(given.name for given in fields(Settings))
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
