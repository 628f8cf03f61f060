"""What is compared: the ladder of techniques, the models, and the ranges that are searched.

A rung of the ladder is those below it and one technique more (arXiv 1212.0901, section 3):

    SGD     a tanh network, stochastic gradient descent
    +C      the gradient's norm is clipped
    +CL     units with leaks of different lengths
    +CLR    rectified units instead of tanh, with an L1 penalty on what they put out
    +CLRM   Nesterov's momentum by ClippedNesterov

The search goes up the ladder. On the first rung every trial draws all settings. Above it two of three trials
begin with the settings that were chosen for the rung below, and draw what the rung adds, with the learning
rate anew; the rest draw all settings, trial k the same numbers for what rungs have in common. So rungs differ
by their techniques and little else.
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
    """Everything about a run but its data, its seed and how long it lasts."""

    lr: float = 0.1  # with momentum the optimizer gets lr (1 - momentum): the same way in the long run
    clip: float | None = None  # largest norm of the gradient of the loss a step; None: not clipped
    slowest: float | None = None  # least share of the state that a step renews; None: no leak
    nonlinearity: str = "tanh"
    l1: float = 0.0  # weight of the mean output in the loss
    momentum: float = 0.0
    radius: float = 1.0  # of the recurrent weights' eigenvalues at the start
    dropout: float = 0.1  # of the frames that are heard, and of the states
    transpose: int = 0  # each sequence is moved by up to so many keys, anew in each epoch
    hidden: int = 200
    output_hidden: int = 150  # hidden units of NADE and RBM
    batch: int = 16  # sequences an update
    steps: int = 200  # longer sequences are cut into such pieces for training
    gibbs_steps: int = 15  # of the chain behind an RBM's gradient


@dataclass(frozen=True)
class Range:
    """Where a setting is searched: choices, or from low to high, each factor equally likely if log."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def at(self, share: float) -> Any:
        """The value at a share in [0, 1) of the range."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        if self.log:
            return float(f"{self.low * (self.high / self.low) ** share:.4g}")
        return float(f"{self.low + (self.high - self.low) * share:.4g}")


Ranges = dict[str, Range]

SHARED: Ranges = {"lr": Range(0.05, 10.0, log=True)}
NEAR = (0.5, 5.0)  # of the rung below's learning rate: a technique is there to bear larger steps
ADDED: dict[str, Ranges] = {
    "SGD": {},
    "+C": {"clip": Range(0.1, 2.0, log=True)},
    "+CL": {"slowest": Range(0.04, 0.96, log=True)},
    "+CLR": {"nonlinearity": Range(choices=("relu",)), "l1": Range(1e-4, 1e-1, log=True)},
    "+CLRM": {"momentum": Range(choices=(0.5, 0.7, 0.9, 0.95))},
}


def ranges_of(technique: str, changes: Ranges | None = None) -> Ranges:
    """All that a rung has: what the rungs share, and the techniques up to this one. Changes are other ranges
    for these, and ranges of what else is to be searched; those of higher rungs do not count.
    """
    higher = added(technique, TECHNIQUES[-1])
    own = {name: given for name, given in (changes or {}).items() if name not in higher}
    return SHARED | added(None, technique) | own


def ranges_above(rung: str, settings: Settings, technique: str, changes: Ranges | None = None) -> Ranges:
    """What is searched on top of a rung with these settings: the techniques above it, and a
    learning rate near theirs.
    """
    own = added(rung, technique)
    near = Range(settings.lr * NEAR[0], settings.lr * NEAR[1], log=True)
    return {name: (changes or {}).get(name, given) for name, given in own.items()} | {"lr": near}


def added(rung: str | None, technique: str) -> Ranges:
    """What the rungs above one, or all, up to another one add."""
    begin = 0 if rung is None else TECHNIQUES.index(rung) + 1
    found: Ranges = {}
    for name in TECHNIQUES[begin : TECHNIQUES.index(technique) + 1]:
        found |= ADDED[name]
    return found


def draw(ranges: Ranges, trial: int, base: Settings) -> Settings:
    """The settings of a trial. A setting's draw depends on its name and on the trial alone."""
    return replace(base, **{name: given.at(share(name, trial)) for name, given in ranges.items()})


def share(name: str, trial: int) -> float:
    """Where in its range a setting stands in trial 0, 1, ...: a random place, and from there on by steps of
    sqrt(prime), a prime for each setting. So few trials cover the ranges more evenly than independent draws
    would (the additive recurrence of Richtmyer 1951), and more of them change none of the first.
    """
    place = np.random.default_rng(zlib.crc32(name.encode())).random()
    return float((place + trial * math.sqrt(PRIMES[NAMES.index(name)])) % 1)


NAMES = tuple(given.name for given in fields(Settings))
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
