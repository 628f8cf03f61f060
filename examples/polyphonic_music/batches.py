"""Batches of piano rolls: of similar length, padded or packed.

In a packed batch, frames 1 to T-1 are the input and frames 2 to T the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from polyphonic_music.recipes import Settings
from polyphonic_music.rolls import KEYS, Roll, transposed

# Bounds the memory of a batch for validation or test.
MOST_ROWS = 1 << 14


def bucket(lengths: Sequence[int], size: int, rng: np.random.Generator) -> list[list[int]]:
    """Divide range(len(lengths)) into random batches of at most `size` sequences of similar length."""
    order = sorted(rng.permutation(len(lengths)).tolist(), key=lambda i: lengths[i] // 8)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches)).tolist()]


def pad(rolls: Sequence[Roll]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return frames [max T_i, B, 88], zero after the end of a roll [T_i, 88], and lengths [B]."""
    lengths = np.array([len(roll) for roll in rolls], np.int64)
    frames = np.zeros((int(lengths.max()), len(rolls), KEYS), np.float32)
    for i, roll in enumerate(rolls):
        frames[: len(roll), i] = roll
    return frames, lengths


class Batch(NamedTuple):
    """Sequences side by side, without padding."""

    inputs: PackedSequence  # of [N, 88]
    targets: Tensor  # [N, 88]; row i is the frame after row i of the input


def make_batch(rolls: Sequence[Roll]) -> Batch:
    """Make a batch of rolls [T_i, 88], each with at least two steps."""
    padded, lengths = pad(rolls)
    frames = torch.from_numpy(padded)
    order = torch.from_numpy(lengths - 1)
    inputs = pack_padded_sequence(frames[:-1], order, enforce_sorted=False)
    targets = pack_padded_sequence(frames[1:], order, enforce_sorted=False)
    return Batch(inputs, targets.data)


def pieces(roll: Roll, steps: int, rng: np.random.Generator) -> list[Roll]:
    """Cut the roll at a random offset into pieces of at least two frames, with at most ``steps`` inputs.

    The last frame of a piece is a target in that piece and an input in the next one.
    """
    transitions = len(roll) - 1
    if transitions <= steps:
        return [roll]
    cuts = range(int(rng.integers(steps)), transitions, steps)
    bounds = [0, *(cut for cut in cuts if cut > 0), transitions]
    return [roll[a : b + 1] for a, b in pairwise(bounds)]


def training_batches(rolls: Sequence[Roll], settings: Settings, rng: np.random.Generator) -> Iterator[Batch]:
    """One epoch: all rolls, randomly transposed and cut, in batches of similar length."""
    shifts = rng.integers(-settings.transpose, settings.transpose + 1, len(rolls)).tolist()
    cut = [
        piece
        for roll, shift in zip(rolls, shifts, strict=True)
        for piece in pieces(transposed(roll, shift), settings.steps, rng)
    ]
    for chosen in bucket([len(piece) for piece in cut], settings.batch, rng):
        yield make_batch([cut[i] for i in chosen])


def whole_batches(rolls: Sequence[Roll]) -> list[Batch]:
    """All rolls, not cut, in batches of bounded size."""
    order = sorted(range(len(rolls)), key=lambda i: -len(rolls[i]))
    groups: list[list[Roll]] = []
    for i in order:
        fits = groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= MOST_ROWS
        groups[-1].append(rolls[i]) if fits else groups.append([rolls[i]])
    return [make_batch(group) for group in groups]
