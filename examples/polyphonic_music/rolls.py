"""Piano rolls: reading and checking files, batching.

A roll is a uint8 array [T, 88] of 0 and 1: row t says which keys sound at step t, and column k is MIDI pitch
21 + k, the keys of a piano. Each error in a file is a `RollsError` with a message of one sentence that names
the file.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

KEYS = 88
LOWEST_PITCH = 21
MAX_STEPS = 2_000_000  # a small file can describe a roll that does not fit into memory
SPLITS = ("train", "valid", "test")

Roll: TypeAlias = NDArray[np.uint8]


class RollsError(ValueError):
    """The data cannot be used; the message is one sentence."""


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

    Raises RollsError if the file cannot be read or has other content.
    """
    path = Path(path)
    readers = {".mat": _read_mat, ".json": _read_json, ".pickle": _read_pickle}
    readers[".pkl"] = _read_pickle
    try:
        if path.suffix.lower() not in readers:
            raise RollsError(f"the ending {path.suffix!r} is not one of {', '.join(readers)}")
        splits = readers[path.suffix.lower()](path)
        kept = [[roll for roll in rolls if len(roll) >= 2] for rolls in splits]
        for split, rolls in zip(SPLITS, kept, strict=True):
            if not rolls:
                raise RollsError(f"{split} has no sequence of two steps or more")
    except OSError as error:
        raise RollsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except RollsError as error:
        raise RollsError(f"{path}: {error}") from None
    short = sum(map(len, splits)) - sum(map(len, kept))
    left_out = f", {short} shorter than two steps left out" if short else ""
    return Rolls(path.stem, f"{counts(kept)} sequences{left_out}", *kept)


def counts(parts: list[list[Roll]]) -> str:
    return "/".join(str(len(part)) for part in parts) + " train/valid/test"


def _read_mat(path: Path) -> list[list[Roll]]:
    file = io.BytesIO(path.read_bytes())
    try:
        content: dict[str, Any] = loadmat(file)
    except Exception as error:  # scipy raises exceptions of many types for damaged files
        raise RollsError(f"not a readable MATLAB v5 file ({brief(error)})") from None
    splits = []
    for split in SPLITS:
        cells = content.get(split + "data")
        if not isinstance(cells, np.ndarray) or cells.dtype != np.dtype(object):
            raise RollsError(f"no cell array named {split}data")
        splits.append([_checked(cell, f"{split}data[{i}]") for i, cell in enumerate(cells.ravel())])
    return splits


def _checked(cell: object, where: str) -> Roll:
    if not isinstance(cell, np.ndarray) or cell.ndim != 2 or cell.shape[1] != KEYS:
        shape = list(getattr(cell, "shape", [])) or type(cell).__name__
        raise RollsError(f"{where} must be a matrix [T, {KEYS}], got {shape}")
    if cell.dtype.kind not in "buif" or not np.isin(cell, (0, 1)).all():
        raise RollsError(f"{where} must hold only 0 and 1")
    return cell.astype(np.uint8)


class _PlainUnpickler(pickle._Unpickler):
    """Refuse to look up names, because that lets a pickle run any code.

    The base is the unpickler in Python: the one in C allocates the sizes that a damaged file states.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        asked = f"{module}.{name}"[:60]
        raise RollsError(f"asks for {asked!r}; only plain lists, tuples and numbers are read")


def _read_pickle(path: Path) -> list[list[Roll]]:
    file = io.BytesIO(path.read_bytes())
    try:  # latin1 decodes the strings in a pickle of Python 2
        content = _PlainUnpickler(file, encoding="latin1").load()
    except RollsError:
        raise
    except Exception as error:  # pickle raises exceptions of many types for damaged files
        raise RollsError(f"not a readable pickle ({brief(error)})") from None
    return _splits_from_steps(content)


def _read_json(path: Path) -> list[list[Roll]]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RollsError(f"not readable JSON ({brief(error)})") from None
    return _splits_from_steps(content)


def brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _splits_from_steps(content: object) -> list[list[Roll]]:
    if not isinstance(content, dict):
        raise RollsError(f"must be a dict of train, valid and test, got {type(content).__name__}")
    splits: list[list[Roll]] = [[], [], []]
    room = MAX_STEPS
    for split, rolls in zip(SPLITS, splits, strict=True):
        if split not in content:
            raise RollsError(f"the split {split!r} is missing")
        for i, steps in enumerate(_listed(content[split], split, "sequences")):
            room -= len(_listed(steps, f"{split}[{i}]", "steps"))
            if room < 0:
                raise RollsError(f"more than {MAX_STEPS} steps")
            rolls.append(_roll_from_steps(steps, f"{split}[{i}]"))
    return splits


def _listed(value: Any, where: str, of: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise RollsError(f"{where} must be a list of {of}, got {type(value).__name__}")
    return value


def _roll_from_steps(steps: Sequence[Any], where: str) -> Roll:
    roll = np.zeros((len(steps), KEYS), np.uint8)
    for t, step in enumerate(steps):
        for pitch in _listed(step, f"{where}[{t}]", "pitches"):
            number = isinstance(pitch, (int, float)) and not isinstance(pitch, bool)
            if number and 0 <= pitch - LOWEST_PITCH < KEYS and pitch == int(pitch):
                roll[t, int(pitch) - LOWEST_PITCH] = 1
            elif not number or pitch != -1:
                shown = pitch if number and abs(pitch) < 1e6 else f"a {type(pitch).__name__}"
                raise RollsError(f"{where}[{t}] holds {shown}, not a MIDI pitch in 21..108")
    return roll


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
