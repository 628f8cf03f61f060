"""Baselines without a network.

Keys alone: each key k sounds with its frequency in the training split, independently of the past:

    p_k = clip(mean of v_tk over all training steps, 1e-4, 1 - 1e-4)
    log-likelihood = mean over steps 2..T of all test sequences of
                     sum_k v_tk log p_k + (1 - v_tk) log(1 - p_k)

Last frame again: v_{t-1} is the prediction of v_t, with counts over the same steps:

    accuracy = TP / (TP + FP + FN)
"""

from __future__ import annotations

import numpy as np

from polyphonic_music.rolls import Rolls, key_frequency


def keys_alone(data: Rolls) -> float:
    """Log-likelihood of the test split in nats per step, from the second step of each sequence on."""
    p = key_frequency(data.train)
    targets = np.concatenate([roll[1:] for roll in data.test])
    sounds = targets.mean(axis=0)  # the mean over steps is linear in the frames
    return float(np.sum(sounds * np.log(p) + (1 - sounds) * np.log1p(-p)))


def repeat_accuracy(data: Rolls) -> float:
    """Accuracy, from 0 to 1, of each test frame as the prediction of the next; NaN if all are silent."""
    hits = either = 0
    for roll in data.test:
        hits += int(np.sum(roll[1:] & roll[:-1]))
        either += int(np.sum(roll[1:] | roll[:-1]))
    return hits / either if either else float("nan")
