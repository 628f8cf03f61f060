"""Piano rolls as packed sequences: frames 1 to T-1 are heard, frames 2 to T are to be told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from polyphonic_music.recipes import Settings
from polyphonic_music.rolls import Roll, bucket, pad, transposed

# Rows of one batch where nothing is learned: bounds its memory.
MOST_ROWS = 1 << 14


class Batch(NamedTuple):
    """Sequences side by side, without padding."""

    heard: PackedSequence  # of [N, 88]
    told: Tensor  # [N, 88], row for row what follows the frame that was heard


def make_batch(rolls: Sequence[Roll]) -> Batch:
    """Of rolls [T_i, 88], each of two steps at least."""
    padded, lengths = pad(rolls)
    frames = torch.from_numpy(padded)
    order = torch.from_numpy(lengths - 1)
    heard = pack_padded_sequence(frames[:-1], order, enforce_sorted=False)
    told = pack_padded_sequence(frames[1:], order, enforce_sorted=False)
    return Batch(heard, told.data)


def pieces(roll: Roll, steps: int, rng: np.random.Generator) -> list[Roll]:
    """The roll cut where chance puts it into pieces that hear at most this many frames. What ends a piece is
    told in it and heard in the next. All are of two steps at least.
    """
    transitions = len(roll) - 1
    if transitions <= steps:
        return [roll]
    cuts = range(int(rng.integers(steps)), transitions, steps)
    bounds = [0, *(cut for cut in cuts if cut > 0), transitions]
    return [roll[a : b + 1] for a, b in pairwise(bounds)]


def training_batches(rolls: Sequence[Roll], settings: Settings, rng: np.random.Generator) -> Iterator[Batch]:
    """All rolls once over, moved and cut as ``rng`` has it, sequences of like length together."""
    shifts = rng.integers(-settings.transpose, settings.transpose + 1, len(rolls)).tolist()
    cut = [
        piece
        for roll, shift in zip(rolls, shifts, strict=True)
        for piece in pieces(transposed(roll, shift), settings.steps, rng)
    ]
    for chosen in bucket([len(piece) for piece in cut], settings.batch, rng):
        yield make_batch([cut[i] for i in chosen])


def whole_batches(rolls: Sequence[Roll]) -> list[Batch]:
    """All rolls whole, in batches of bounded size."""
    order = sorted(range(len(rolls)), key=lambda i: -len(rolls[i]))
    groups: list[list[Roll]] = []
    for i in order:
        fits = groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= MOST_ROWS
        groups[-1].append(rolls[i]) if fits else groups.append([rolls[i]])
    return [make_batch(group) for group in groups]
