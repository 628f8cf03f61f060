"""Scores of a network on a split: log-likelihood in nats per step, and frame-level accuracy.

All steps of all sequences have the same weight, from the second step on. The probability of an RBM is
estimated by annealed importance sampling, on at most ``rows`` frames of the split, always the same ones.
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
    """The effort of an estimate of an RBM's probability."""

    rows: int
    chains: int
    temperatures: int


@dataclass(frozen=True)
class Scale:
    """The effort of all estimates."""

    watched: Sampling = Sampling(400, 10, 100)  # on the validation split, during training
    tested: Sampling = Sampling(5000, 10, 1000)
    samples: int = 20  # sampled frames per step for the accuracy of NADE and RBM
    gibbs_steps: int = 25  # per sampled frame of an RBM


class LogLikelihood(NamedTuple):
    """In nats per step, with the 95 % interval of an estimate."""

    mean: float
    interval: tuple[float, float] | None


@torch.no_grad()
def log_likelihood(model: Predictor, batches: Sequence[Batch], sampling: Sampling) -> LogLikelihood:
    """The mean over all rows; for an RBM an estimate of it."""
    if isinstance(model.output, RBM):
        return _estimated(model, model.output, batches, sampling)
    total = rows = 0.0
    for batch in batches:
        log_prob = model.output.log_prob(batch.targets, model(batch.inputs).data)
        total += float(log_prob.sum(dtype=torch.float64))
        rows += len(log_prob)
    return LogLikelihood(total / rows, None)


def _estimated(model: Predictor, rbm: RBM, batches: Sequence[Batch], sampling: Sampling) -> LogLikelihood:
    targets, states = rows_of(model, batches, sampling.rows)
    generator = torch.Generator().manual_seed(0)
    estimate = rbm.estimate_log_prob(
        targets, states, chains=sampling.chains, temperatures=sampling.temperatures, generator=generator
    )
    mean, low, high = (float(x) for x in mean_with_interval(*estimate))
    return LogLikelihood(mean, (low, high))


def rows_of(model: Predictor, batches: Sequence[Batch], most: int) -> tuple[Tensor, Tensor]:
    """Frames and the states that predict them: all, or a fixed random choice of ``most`` of them."""
    targets = torch.cat([batch.targets for batch in batches])
    states = torch.cat([model(batch.inputs).data for batch in batches])
    if len(targets) <= most:
        return targets, states
    chosen = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[:most]
    return targets[chosen], states[chosen]


@torch.no_grad()
def score_test(model: Predictor, rolls: Sequence[Roll], scale: Scale) -> dict[str, Any]:
    """Return ``test``, ``interval`` and ``accuracy`` of the results file."""
    batches = whole_batches(rolls)
    mean, interval = log_likelihood(model, batches, scale.tested)
    targets, states = rows_of(model, batches, scale.tested.rows if isinstance(model.output, RBM) else 1 << 62)
    steps = {"steps": scale.gibbs_steps} if isinstance(model.output, RBM) else {}
    generator = torch.Generator().manual_seed(0)
    marginals = model.output.marginals(states, samples=scale.samples, generator=generator, **steps)
    accuracy = float(expected_accuracy(targets, marginals))
    return {
        "test": mean,
        "interval": None if interval is None else list(interval),
        "accuracy": None if math.isnan(accuracy) else accuracy,
    }
