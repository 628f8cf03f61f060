"""The baselines, against other computations of their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from polyphonic_music.baselines import keys_alone, repeat_accuracy
from polyphonic_music.rolls import Rolls

from rnnkernels import IndependentBernoulli, expected_accuracy


def made_data() -> Rolls:
    """Pieces of different lengths; keys 0 and 1 are silent in the training split, and key 2 always sounds."""
    rng = np.random.default_rng(0)

    def pieces(*lengths: int) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
        return [(rng.random((n, 88)) < 0.2).astype(np.uint8) for n in lengths]

    train, test = pieces(30, 11, 2), pieces(2, 25, 9)
    for roll in train:
        roll[:, :3] = (0, 0, 1)
    return Rolls("made", "", train, pieces(5), test)


def test_keys_alone_is_an_independent_bernoulli_at_the_training_frequencies() -> None:
    data = made_data()
    p = torch.from_numpy(np.concatenate(data.train)).double().mean(0).clamp(1e-4, 1 - 1e-4)
    output = IndependentBernoulli(88, 1).double()
    with torch.no_grad():
        output.visible_bias.weight.zero_()
        output.visible_bias.bias.copy_(torch.logit(p))
        targets = torch.from_numpy(np.concatenate([roll[1:] for roll in data.test])).double()
        expected = output.log_prob(targets, torch.zeros(len(targets), 1, dtype=torch.float64)).mean().item()
    assert keys_alone(data) == pytest.approx(expected, rel=1e-12)


def test_repeat_accuracy_counts_notes_over_all_sequences() -> None:
    data = made_data()
    before, after = (np.concatenate([roll[cut] for roll in data.test]) for cut in (slice(-1), slice(1, None)))
    expected = expected_accuracy(torch.from_numpy(after).double(), torch.from_numpy(before).double())
    assert repeat_accuracy(data) == pytest.approx(float(expected), rel=1e-12)
    roll = np.zeros((3, 88), np.uint8)
    roll[0, :4] = roll[1, 2:4] = roll[2, 3:6] = 1  # hits 2, 1; in either 4, 4
    assert repeat_accuracy(Rolls("made", "", [roll], [roll], [roll])) == 3 / 8
    silence = np.zeros((3, 88), np.uint8)
    assert math.isnan(repeat_accuracy(Rolls("made", "", [roll], [roll], [silence])))
