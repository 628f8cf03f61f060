"""Piano rolls: reading and checking files.

A roll is a uint8 array [T, 88] of 0 and 1: row t says which keys sound at step t, and column k is MIDI pitch
21 + k, the keys of a piano.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyphonic_music import limits
from polyphonic_music.files import UnusableError, printable, read_file
from polyphonic_music.mat_file import cell_arrays
from polyphonic_music.plain_pickle import load_plain

KEYS = 88
LOWEST_PITCH = 21
SPLITS = ("train", "valid", "test")

Roll: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Rolls:
    """A data set: three lists of rolls [T, 88], every one at least two steps long."""

    name: str
    note: str  # the source and the sequences left out, in one line
    train: list[Roll]
    valid: list[Roll]
    test: list[Roll]


def load(path: str | Path) -> Rolls:
    """Read a data set from a .mat, .pickle, .pkl or .json file.

    .mat: MATLAB v5 cells `traindata`, `validdata`, `testdata`, each roll [T, 88] of 0 and 1. The others: a
    dict with `train`, `valid` and `test`. Each is a list of sequences, a sequence is a list of steps, and a
    step is a list of the MIDI pitches (21..108) that sound; -1 stands for a rest. A pickle may hold only
    lists, tuples, dicts, strings and numbers; no code in it is run. Sequences of fewer than two steps are
    left out, because they have nothing to predict.

    Raises UnusableError if the file cannot be read, has other content or exceeds a limit of limits.py. The
    message is one line and begins with the path.
    """
    path = Path(path)
    formats = {
        ".mat": (limits.MAX_MAT_BYTES, _from_mat),
        ".json": (limits.MAX_LIST_BYTES, _from_json),
        ".pickle": (limits.MAX_LIST_BYTES, _from_pickle),
        ".pkl": (limits.MAX_LIST_BYTES, _from_pickle),
    }
    if path.suffix.lower() not in formats:
        raise UnusableError(f"{path}: the ending {path.suffix!r} is not one of {', '.join(formats)}")
    splits = read_file(path, *formats[path.suffix.lower()])
    kept = [[roll for roll in rolls if len(roll) >= 2] for rolls in splits]
    for split, rolls in zip(SPLITS, kept, strict=True):
        if not rolls:
            raise UnusableError(f"{path}: {split} has no sequence of two steps or more")
    short = sum(map(len, splits)) - sum(map(len, kept))
    left_out = f", {short} shorter than two steps left out" if short else ""
    return Rolls(printable(path.stem), f"{counts(kept)} sequences{left_out}", *kept)


def counts(parts: list[list[Roll]]) -> str:
    return "/".join(str(len(part)) for part in parts) + " train/valid/test"


class _Counted:
    """Counts what a data set has, and raises UnusableError when it is more than a limit."""

    def __init__(self) -> None:
        self.sequences = self.steps = self.notes = 0

    def add(self, *, sequences: int = 0, steps: int = 0, notes: int = 0) -> None:
        self.sequences += sequences
        self.steps += steps
        self.notes += notes
        for found, most, what in (
            (self.sequences, limits.MAX_SEQUENCES, "sequences"),
            (self.steps, limits.MAX_STEPS, "steps"),
            (self.notes, limits.MAX_NOTES, "notes"),
        ):
            if found > most:
                raise UnusableError(f"has more than {most} {what}")


def _from_mat(data: bytes) -> list[list[Roll]]:
    names = [f"{split}data" for split in SPLITS]
    splits: dict[str, list[Roll]] = {}
    counted = _Counted()
    for name, cells in cell_arrays(data):
        if name in names:
            splits[name] = [_checked(cell, f"{name}[{i}]", counted) for i, cell in enumerate(cells)]
    for name in names:
        if name not in splits:
            raise UnusableError(f"has no cell array named {name}")
    return [splits[name] for name in names]


def _checked(cell: NDArray[Any], where: str, counted: _Counted) -> Roll:
    if cell.ndim != 2 or cell.shape[1] != KEYS:
        raise UnusableError(f"{where} must be a matrix [T, {KEYS}], got {list(cell.shape)}")
    counted.add(sequences=1, steps=len(cell))
    if not ((cell == 0) | (cell == 1)).all():
        raise UnusableError(f"{where} must hold only 0 and 1")
    return np.ascontiguousarray(cell, np.uint8)


def _from_pickle(data: bytes) -> list[list[Roll]]:
    return _splits_from_steps(load_plain(data))


def _from_json(data: bytes) -> list[list[Roll]]:
    if data.count(b"[") + data.count(b"{") > limits.MAX_LISTS:
        raise UnusableError(f"has more than {limits.MAX_LISTS} lists")
    return _splits_from_steps(json.loads(data))


def _splits_from_steps(content: object) -> list[list[Roll]]:
    if not isinstance(content, dict):
        raise UnusableError(f"must be a dict of train, valid and test, got {type(content).__name__}")
    splits: list[list[Roll]] = [[], [], []]
    counted = _Counted()
    for split, rolls in zip(SPLITS, splits, strict=True):
        if split not in content:
            raise UnusableError(f"the split {split!r} is missing")
        for i, steps in enumerate(_listed(content[split], split, "sequences")):
            where = f"{split}[{i}]"
            counted.add(sequences=1, steps=len(_listed(steps, where, "steps")))
            rolls.append(_roll_from_steps(steps, where, counted))
    return splits


def _listed(value: Any, where: str, of: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise UnusableError(f"{where} must be a list of {of}, got {type(value).__name__}")
    return value


def _roll_from_steps(steps: Sequence[Any], where: str, counted: _Counted) -> Roll:
    roll = np.zeros((len(steps), KEYS), np.uint8)
    for t, step in enumerate(steps):
        pitches = _listed(step, f"{where}[{t}]", "pitches")
        if len(pitches) > limits.MAX_PITCHES:
            raise UnusableError(
                f"{where}[{t}] must have at most {limits.MAX_PITCHES} pitches, got {len(pitches)}"
            )
        counted.add(notes=len(pitches))
        for pitch in pitches:
            number = isinstance(pitch, (int, float)) and not isinstance(pitch, bool)
            if number and 0 <= pitch - LOWEST_PITCH < KEYS and pitch == int(pitch):
                roll[t, int(pitch) - LOWEST_PITCH] = 1
            elif not number or pitch != -1:
                shown = pitch if number and abs(pitch) < 1e6 else f"a {type(pitch).__name__}"
                raise UnusableError(f"{where}[{t}] holds {shown}, not a MIDI pitch in 21..108")
    return roll


def key_frequency(rolls: Sequence[Roll]) -> NDArray[np.float64]:
    """How often each key sounds, [88], clipped to [1e-4, 1 - 1e-4]."""
    frequency: NDArray[np.float64] = np.concatenate(list(rolls)).mean(axis=0).clip(1e-4, 1 - 1e-4)
    return frequency


def transposed(roll: Roll, shift: int) -> Roll:
    """The roll [T, 88] moved by `shift` keys, or unchanged if a note would leave the keyboard."""
    used = np.flatnonzero(roll.any(axis=0))
    if len(used) == 0 or used[0] + shift < 0 or used[-1] + shift >= KEYS:
        return roll
    return np.roll(roll, shift, axis=1)
