"""How well a network tells a split: nats a step, and the frame-level accuracy.

All steps of all sequences count alike, from the second on. An RBM's probabilities are estimated by annealed
importance sampling, on as many rows, drawn once, as the scale allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyphonic_music.batches import Batch, whole_batches
from polyphonic_music.model import Predictor
from polyphonic_music.rolls import Roll
from rnnkernels import RBM, expected_accuracy, mean_with_interval


@dataclass(frozen=True)
class Sampling:
    """How an RBM's probability is estimated: on so many rows of the split, and what each row gets."""

    rows: int
    chains: int
    temperatures: int


@dataclass(frozen=True)
class Scale:
    """What is spent on estimates."""

    watched: Sampling = Sampling(400, 10, 100)  # while training
    tested: Sampling = Sampling(5000, 10, 1000)
    samples: int = 20  # frames a step behind the accuracy of NADE and RBM
    gibbs_steps: int = 25  # of each of them, RBM


class LogLikelihood(NamedTuple):
    """In nats a step, with its 95 % interval where it is estimated."""

    mean: float
    interval: tuple[float, float] | None


@torch.no_grad()
def log_likelihood(model: Predictor, batches: Sequence[Batch], sampling: Sampling) -> LogLikelihood:
    """The mean over all rows; of an RBM an estimate."""
    if isinstance(model.output, RBM):
        return _estimated(model, model.output, batches, sampling)
    total = rows = 0.0
    for batch in batches:
        log_prob = model.output.log_prob(batch.told, model(batch.heard).data)
        total += float(log_prob.sum(dtype=torch.float64))
        rows += len(log_prob)
    return LogLikelihood(total / rows, None)


def _estimated(model: Predictor, rbm: RBM, batches: Sequence[Batch], sampling: Sampling) -> LogLikelihood:
    told, states = rows_of(model, batches, sampling.rows)
    generator = torch.Generator().manual_seed(0)
    estimate = rbm.estimate_log_prob(
        told, states, chains=sampling.chains, temperatures=sampling.temperatures, generator=generator
    )
    mean, low, high = (float(x) for x in mean_with_interval(*estimate))
    return LogLikelihood(mean, (low, high))


def rows_of(model: Predictor, batches: Sequence[Batch], most: int) -> tuple[Tensor, Tensor]:
    """Frames and the states that tell them: all, or ``most`` of them, always the same."""
    told = torch.cat([batch.told for batch in batches])
    states = torch.cat([model(batch.heard).data for batch in batches])
    if len(told) <= most:
        return told, states
    chosen = torch.randperm(len(told), generator=torch.Generator().manual_seed(0))[:most]
    return told[chosen], states[chosen]


@torch.no_grad()
def score_test(model: Predictor, rolls: Sequence[Roll], scale: Scale) -> dict[str, Any]:
    """``test``, ``interval`` and ``accuracy`` of the results file."""
    batches = whole_batches(rolls)
    mean, interval = log_likelihood(model, batches, scale.tested)
    told, states = rows_of(model, batches, scale.tested.rows if isinstance(model.output, RBM) else 1 << 62)
    steps = {"steps": scale.gibbs_steps} if isinstance(model.output, RBM) else {}
    generator = torch.Generator().manual_seed(0)
    marginals = model.output.marginals(states, samples=scale.samples, generator=generator, **steps)
    accuracy = float(expected_accuracy(told, marginals))
    return {
        "test": mean,
        "interval": None if interval is None else list(interval),
        "accuracy": None if math.isnan(accuracy) else accuracy,
    }
