"""Piano rolls for the music experiments: read them, check them, split them, batch them.

A roll is a uint8 array [T, 88] of 0 and 1: row t says which keys sound at step t, and column k is
MIDI pitch 21 + k, the keys of a piano. Rolls come from files (`load`) or from the Bach chorales
that the package music21 carries (`load_chorales`). Everything wrong with a file is a `RollsError`
whose text is one sentence that names the file. Only numpy is needed; .mat files need scipy too.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import pickle
import tempfile
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

KEYS = 88
LOWEST_PITCH = 21
MAX_STEPS = 2_000_000  # a small file can describe a huge one; stop before the memory does
CACHE_FORMAT = 1  # raise it whenever the reading of the scores changes
VOICES = ("soprano", "alto", "tenor", "bass")
SPLITS = ("train", "valid", "test")

Roll: TypeAlias = NDArray[np.uint8]
Ticker: TypeAlias = Callable[[int, int], object]  # told (done, total) while something lasts
Note: TypeAlias = tuple[Fraction, Fraction, int]  # begin and end in quarters, MIDI pitch


class RollsError(ValueError):
    """What is wrong with the data, in one sentence."""


@dataclass(frozen=True)
class Rolls:
    """A data set: three lists of rolls [T, 88], every one at least two steps long."""

    name: str
    note: str  # where it came from and what was left out, one line
    train: list[Roll]
    valid: list[Roll]
    test: list[Roll]


def load(path: str | Path) -> Rolls:
    """Read a data set from a .mat, .pickle, .pkl or .json file.

    .mat: MATLAB v5 cells `traindata`, `validdata`, `testdata`, each roll [T, 88] of 0 and 1.
    The others: a dict with `train`, `valid`, `test`, each a list of sequences, a sequence a list of
    steps, a step a list of the MIDI pitches (21..108) that sound; -1 stands for a rest. A pickle
    may hold nothing but lists, tuples, dicts and numbers: nothing in it is looked up or run.
    Sequences of fewer than two steps have nothing to predict and are left out.

    Raises RollsError if the file cannot be read or does not hold such a data set.
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
    return Rolls(path.stem, f"{_counts(kept)} sequences{left_out}", *kept)


def _counts(parts: list[list[Roll]]) -> str:
    return "/".join(str(len(part)) for part in parts) + " train/valid/test"


def _read_mat(path: Path) -> list[list[Roll]]:
    try:  # by name: scipy comes without types, and only this needs it
        scipy_io: Any = importlib.import_module("scipy.io")
    except ImportError:
        raise RollsError("reading a .mat file needs scipy (pip install scipy)") from None
    file = io.BytesIO(path.read_bytes())
    try:
        content: dict[str, Any] = scipy_io.loadmat(file)
    except Exception as error:  # a damaged file makes scipy raise almost anything
        raise RollsError(f"not a readable MATLAB v5 file ({_brief(error)})") from None
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
    """Admits what needs no class: a pickle that may look up names may run any code."""

    # of Python, as the one in C takes whatever memory a damaged file asks for

    def find_class(self, module: str, name: str) -> NoReturn:
        asked = f"{module}.{name}"[:60]
        raise RollsError(f"asks for {asked!r}; only plain lists, tuples and numbers are read")


def _read_pickle(path: Path) -> list[list[Roll]]:
    file = io.BytesIO(path.read_bytes())
    try:  # latin1: the strings of a pickle from Python 2
        content = _PlainUnpickler(file, encoding="latin1").load()
    except RollsError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise RollsError(f"not a readable pickle ({_brief(error)})") from None
    return _splits_from_steps(content)


def _read_json(path: Path) -> list[list[Roll]]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RollsError(f"not readable JSON ({_brief(error)})") from None
    return _splits_from_steps(content)


def _brief(error: Exception) -> str:
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


def load_chorales(cache_dir: Path | None = None, progress: Ticker | None = None) -> Rolls:
    """The four-voice Bach chorales of the installed music21, a step a quarter note.

    Used are the scores with exactly one soprano, alto, tenor and bass part (instruments are left
    out), without those that rest for a tenth of their steps (instrumental interludes) and those
    that repeat another, in whatever key (more than half of their four-step progressions). Three
    fifths are for training, a fifth each for validation and test, by a hash of the file name.

    The scores are read by this module itself (importing music21 takes longer than all of it), and
    once: the rolls are kept in `cache_dir`, by default $XDG_CACHE_HOME/rnnkernels or
    ~/.cache/rnnkernels. A damaged cache is made again; one that cannot be written is done without.
    `progress(done, total)` is called while they are read.

    Raises RollsError if music21 or its scores are missing.
    """
    spec = importlib.util.find_spec("music21")
    if spec is None or spec.origin is None:
        raise RollsError("the chorales need the package music21 (pip install music21)")
    version = importlib.metadata.version("music21")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = cache_dir or Path(base, "rnnkernels")
    cache = cache / f"chorales-music21-{version}-format{CACHE_FORMAT}.npz"
    cached = _read_cache(cache)
    if cached is None:
        cached = _read_scores(Path(spec.origin).parent / "corpus" / "bach", progress)
        _write_cache(cache, *cached)
    rolls, scores = cached
    order = sorted(rolls, key=lambda name: hashlib.sha256(name.encode()).digest())
    a, b = len(order) * 3 // 5, len(order) * 4 // 5
    parts = [[rolls[name] for name in names] for names in (order[:a], order[a:b], order[b:])]
    note = f"{len(rolls)} of {scores} scores of music21 {version}, {_counts(parts)}"
    return Rolls("Bach chorales", note, *parts)


def _read_scores(folder: Path, progress: Ticker | None) -> tuple[dict[str, Roll], int]:
    paths = sorted(p for p in folder.glob("*") if p.suffix in (".mxl", ".xml"))
    rolls: dict[str, Roll] = {}
    seen: list[set[bytes]] = []
    for done, path in enumerate(paths):
        if progress:
            progress(done, len(paths))
        try:
            roll = roll_from_musicxml(_score_text(path), VOICES)
        except (OSError, KeyError, zipfile.BadZipFile, RollsError) as error:
            raise RollsError(f"{path}: {_brief(error)}") from None
        if len(roll) < 2 or np.mean(roll.any(axis=1)) < 0.9:
            continue
        grams = _progressions(roll)
        if all(len(grams & other) <= 0.5 * min(len(grams), len(other)) for other in seen):
            seen.append(grams)
            rolls[path.name] = roll
    if len(rolls) < 5:
        raise RollsError(f"{folder}: {len(rolls)} chorales found, too few to split")
    return rolls, len(paths)


def _score_text(path: Path) -> bytes:
    if path.suffix == ".xml":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        scores = [name for name in archive.namelist() if name.endswith("xml")]
        scores = [name for name in scores if not name.startswith("META-INF")]
        return archive.read(scores[0] if scores else "score.xml")  # KeyError if there is none


def _progressions(roll: Roll) -> set[bytes]:
    """All runs of four steps, without the columns around, so that the key does not matter."""
    found = set()
    for t in range(len(roll) - 3):
        window = roll[t : t + 4]
        used = np.flatnonzero(window.any(axis=0))
        found.add(window[:, used[0] : used[-1] + 1].tobytes() if len(used) else b"")
    return found


def roll_from_musicxml(text: bytes, voices: Sequence[str] = ()) -> Roll:
    """The roll [T, 88] of a MusicXML score (score-partwise), sampled at every quarter note.

    Row t holds the pitches that sound at that instant, whether they begin there or last, so ties
    need no care. The grid is that of the first full bar, not of an upbeat. Repeats are played
    once; grace notes, unpitched notes and pitches outside of 21..108 are skipped; transposing
    instruments give what sounds. Silence before the first and after the last note is cut off.
    With `voices`, only the parts whose names begin with these words (lower case here, any case in
    the score) are read, and the roll is empty, [0, 88], unless there is exactly one of each.

    Raises RollsError if the text is not such a score.
    """
    try:
        score = ET.fromstring(text)
        if score.tag != "score-partwise":
            raise ValueError(f"must be a score-partwise, got {score.tag!r}")
        parts = list(score.iterfind("part"))
        if voices:
            names = {p.get("id"): p.findtext("part-name") for p in score.iter("score-part")}
            words = [f"{names.get(part.get('id'))} -".lower().split()[0] for part in parts]
            parts = [part for part, word in zip(parts, words, strict=True) if word in voices]
            if sorted(word for word in words if word in voices) != sorted(voices):
                parts = []
        return _sampled([_notes(part) for part in parts])
    except (ET.ParseError, ValueError, ZeroDivisionError, LookupError) as error:
        raise RollsError(f"not a readable MusicXML score ({_brief(error)})") from None


def _notes(part: ET.Element) -> tuple[list[Note], Fraction]:
    """The notes of a part, and the instant at which its second bar begins."""
    notes = []
    bar = second_bar = Fraction(0)
    divisions, transpose = 1, 0
    for number, measure in enumerate(part.iterfind("measure")):
        if number == 1:
            second_bar = bar
        here = furthest = chord_begin = bar
        for item in measure:
            if item.tag == "attributes":
                divisions = int(item.findtext("divisions") or divisions)
                if item.find("transpose") is not None:
                    octaves = int(item.findtext("transpose/octave-change") or 0)
                    transpose = int(item.findtext("transpose/chromatic") or 0) + 12 * octaves
            if item.tag not in ("note", "backup", "forward") or item.find("grace") is not None:
                continue
            length = Fraction(item.findtext("duration") or "") / divisions
            if item.find("chord") is None:  # a chord's further notes begin where its first does
                chord_begin = here
                here += -length if item.tag == "backup" else length
                furthest = max(furthest, here)
            pitch = item.find("pitch")
            if pitch is not None:
                notes.append((chord_begin, chord_begin + length, _midi(pitch) + transpose))
        bar = furthest
    return notes, second_bar


def _midi(pitch: ET.Element) -> int:
    step = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}[pitch.findtext("step") or ""]
    alter = round(float(pitch.findtext("alter") or 0))
    return 12 * (int(pitch.findtext("octave") or "") + 1) + step + alter


def _sampled(parts: list[tuple[list[Note], Fraction]]) -> Roll:
    grid = max((second_bar for _, second_bar in parts), default=Fraction(0)) % 1
    spans = [
        (max(0, ceil(begin - grid)), ceil(end - grid), pitch - LOWEST_PITCH)
        for notes, _ in parts
        for begin, end, pitch in notes
    ]
    spans = [span for span in spans if span[0] < span[1] and 0 <= span[2] < KEYS]
    first = min((begin for begin, _, _ in spans), default=0)
    last = max((end for _, end, _ in spans), default=0)
    if last - first > MAX_STEPS:
        raise ValueError(f"more than {MAX_STEPS} steps")
    roll = np.zeros((last - first, KEYS), np.uint8)
    for begin, end, key in spans:
        roll[begin - first : end - first, key] = 1
    return roll


def _read_cache(path: Path) -> tuple[dict[str, Roll], int] | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            frames, lengths, names = kept["frames"], kept["lengths"], kept["names"]
            scores = int(kept["scores"])
        if frames.dtype != np.uint8 or frames.shape != (lengths.sum(), KEYS):
            return None
        rolls = np.split(frames, np.cumsum(lengths)[:-1])
        return {str(name): roll for name, roll in zip(names, rolls, strict=True)}, scores
    except Exception:  # missing, cut short or damaged in any way: made again
        return None


def _write_cache(path: Path, rolls: dict[str, Roll], scores: int) -> None:
    temporary = ""
    try:  # written beside, then renamed: nobody reads half a file
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez_compressed(
                file,
                frames=np.concatenate(list(rolls.values())),
                lengths=np.array([len(roll) for roll in rolls.values()]),
                names=np.array(list(rolls)),
                scores=np.array(scores),
            )
        Path(temporary).replace(path)
    except OSError:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def bucket(lengths: Sequence[int], size: int, rng: np.random.Generator) -> list[list[int]]:
    """Cut range(len(lengths)) into batches of at most `size` of like length, drawn from `rng`."""
    order = sorted(rng.permutation(len(lengths)).tolist(), key=lambda i: lengths[i] // 8)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches)).tolist()]


def pad(rolls: Sequence[Roll]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rolls [T_i, 88] side by side: frames [max T_i, B, 88], zero past the end; lengths [B]."""
    lengths = np.array([len(roll) for roll in rolls], np.int64)
    frames = np.zeros((int(lengths.max()), len(rolls), KEYS), np.float32)
    for i, roll in enumerate(rolls):
        frames[: len(roll), i] = roll
    return frames, lengths


def key_frequency(rolls: Sequence[Roll]) -> NDArray[np.float64]:
    """How often each key sounds, [88]; nothing is impossible and nothing certain."""
    frequency: NDArray[np.float64] = np.concatenate(list(rolls)).mean(axis=0).clip(1e-4, 1 - 1e-4)
    return frequency


def transposed(roll: Roll, shift: int) -> Roll:
    """The roll [T, 88] moved by `shift` keys, or as it is if a note would fall off the keyboard."""
    used = np.flatnonzero(roll.any(axis=0))
    if len(used) == 0 or used[0] + shift < 0 or used[-1] + shift >= KEYS:
        return roll
    return np.roll(roll, shift, axis=1)
