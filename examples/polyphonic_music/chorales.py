"""The Bach chorales of the package music21 as piano rolls.

This module reads the MusicXML scores itself, because importing music21 takes longer than reading all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import NoReturn, TypeAlias
from xml.parsers import expat

import numpy as np

from polyphonic_music import limits
from polyphonic_music.files import UnusableError, brief, check_archive, read_file, read_if_usable, write_file
from polyphonic_music.rolls import KEYS, LOWEST_PITCH, Roll, Rolls, counts

CACHE_FORMAT = 1  # increase it when the reading of the scores changes
FEWEST = 5  # chorales that can be split
VOICES = ("soprano", "alto", "tenor", "bass")
DURATION = re.compile(r"\d{1,9}(\.\d{1,9})?")  # unlike Fraction, without an exponent of any size
LOG = logging.getLogger(__name__)

Ticker: TypeAlias = Callable[[int, int], object]  # called with the number of scores read and their total
Note: TypeAlias = tuple[Fraction, Fraction, int]  # begin and end in quarter notes, MIDI pitch


def load_chorales(cache_dir: Path | None = None, progress: Ticker | None = None) -> Rolls:
    """The four-voice Bach chorales of the installed music21, one step per quarter note.

    The data set has the scores with exactly one soprano, alto, tenor and bass part; instruments are left out.
    It leaves out scores that rest for a tenth of their steps (instrumental interludes), and scores that share
    more than half of their four-step progressions with another score, in any key. Three fifths are for
    training, one fifth each for validation and test, chosen by a hash of the file name.

    The rolls are cached in `cache_dir`, by default $XDG_CACHE_HOME/rnnkernels or ~/.cache/rnnkernels. A
    damaged cache is reported in the log and replaced; a folder that is not writable is ignored.
    `progress(done, total)` is called while the scores are read.

    Raises UnusableError if music21 or its scores are missing.
    """
    spec = importlib.util.find_spec("music21")
    if spec is None or spec.origin is None:
        raise UnusableError("the chorales need the package music21 (pip install music21)")
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
    note = f"{len(rolls)} of {scores} scores of music21 {version}, {counts(parts)}"
    return Rolls("Bach chorales", note, *parts)


def _read_scores(folder: Path, progress: Ticker | None) -> tuple[dict[str, Roll], int]:
    paths = sorted(p for p in folder.glob("*") if p.suffix in (".mxl", ".xml"))
    rolls: dict[str, Roll] = {}
    seen: list[set[bytes]] = []
    for done, path in enumerate(paths):
        if progress:
            progress(done, len(paths))
        roll = read_score(path)
        if len(roll) < 2 or np.mean(roll.any(axis=1)) < 0.9:
            continue
        grams = _progressions(roll)
        if all(len(grams & other) <= 0.5 * min(len(grams), len(other)) for other in seen):
            seen.append(grams)
            rolls[path.name] = roll
    if len(rolls) < FEWEST:
        raise UnusableError(f"{folder}: {len(rolls)} chorales found, too few to split")
    return rolls, len(paths)


def read_score(path: Path) -> Roll:
    """The roll [T, 88] of the four voices of a .mxl or .xml file, see `roll_from_musicxml`."""
    parse = _roll_from_mxl if path.suffix == ".mxl" else _roll_from_xml
    return read_file(path, limits.MAX_SCORE_BYTES, parse)


def _roll_from_xml(text: bytes) -> Roll:
    return roll_from_musicxml(text, VOICES)


def _roll_from_mxl(data: bytes) -> Roll:
    check_archive(data, limits.MAX_SCORE_BYTES)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        scores = [name for name in archive.namelist() if name.endswith("xml")]
        scores = [name for name in scores if not name.startswith("META-INF")]
        return _roll_from_xml(archive.read(scores[0] if scores else "score.xml"))  # KeyError if there is none


def _progressions(roll: Roll) -> set[bytes]:
    """All sequences of four steps, cut to the range of their notes, so that the key does not matter."""
    found = set()
    for t in range(len(roll) - 3):
        window = roll[t : t + 4]
        used = np.flatnonzero(window.any(axis=0))
        found.add(window[:, used[0] : used[-1] + 1].tobytes() if len(used) else b"")
    return found


def roll_from_musicxml(text: bytes, voices: Sequence[str] = ()) -> Roll:
    """The roll [T, 88] of a MusicXML score (score-partwise), sampled at every quarter note.

    Row t holds the pitches that sound at that instant, including notes that began before, so ties need no
    treatment. The grid starts at the first full bar, not at an upbeat. Repeats are played once; grace notes,
    unpitched notes and pitches outside of 21..108 are skipped; transposing instruments have their sounding
    pitch. Silence before the first and after the last note is removed. With `voices`, only the parts whose
    names begin with these words (in lower case here, in any case in the score) are read, and the roll is
    empty, [0, 88], unless there is exactly one part for each word.

    Raises UnusableError if the text is not such a score, declares entities, or exceeds a limit of limits.py.
    """
    try:
        score = _tree(text)
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
    except Exception as error:  # numbers that are none, missing elements, results that are too large, ...
        raise UnusableError(f"not a readable MusicXML score ({brief(error)})") from None


def _tree(text: bytes) -> ET.Element:
    """The root of an XML document without declarations of entities, which can stand for very long text."""

    def refuse(name: str, *_: object) -> NoReturn:
        raise ValueError(f"must not declare the entity {name!r}")

    tree, parser = ET.TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.data
    parser.EntityDeclHandler = refuse
    parser.Parse(text, True)
    return tree.close()


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
            length = _duration(item) / divisions
            if item.find("chord") is None:  # further notes of a chord begin with the first one
                chord_begin = here
                here += -length if item.tag == "backup" else length
                furthest = max(furthest, here)
            if here.denominator > limits.MAX_DENOMINATOR:
                raise ValueError(f"divides a quarter note into {here.denominator:.3e} parts")
            pitch = item.find("pitch")
            if pitch is not None:
                notes.append((chord_begin, chord_begin + length, _midi(pitch) + transpose))
        bar = furthest
    return notes, second_bar


def _duration(item: ET.Element) -> Fraction:
    text = (item.findtext("duration") or "").strip()
    if not DURATION.fullmatch(text):
        raise ValueError(f"duration must be a decimal number, got {text!r}")
    return Fraction(text)


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
    if last - first > limits.MAX_SCORE_STEPS:
        raise ValueError(f"more than {limits.MAX_SCORE_STEPS} steps")
    roll = np.zeros((last - first, KEYS), np.uint8)
    for begin, end, key in spans:
        roll[begin - first : end - first, key] = 1
    return roll


def _read_cache(path: Path) -> tuple[dict[str, Roll], int] | None:
    """The rolls and the number of scores; None if there is no cache or a damaged one."""
    return read_if_usable(
        path, limits.MAX_CACHE_BYTES, _parse_cache, lambda why: LOG.warning("%s; it is made again", why)
    )


def _parse_cache(data: bytes) -> tuple[dict[str, Roll], int]:
    check_archive(data, limits.MAX_CACHE_BYTES)
    with np.load(io.BytesIO(data), allow_pickle=False) as kept:
        frames, lengths, names = kept["frames"], kept["lengths"], kept["names"]
        scores = int(kept["scores"])
    if frames.dtype != np.uint8 or frames.shape != (lengths.sum(), KEYS) or frames.max() > 1:
        raise UnusableError(f"the frames must be {int(lengths.sum())} steps of 0 and 1 for {KEYS} keys")
    if len(set(names.tolist())) != len(lengths) or len(lengths) < FEWEST or lengths.min() < 2:
        raise UnusableError(f"must have {FEWEST} or more chorales of different names")
    rolls = np.split(frames, np.cumsum(lengths)[:-1])
    return {str(name): roll for name, roll in zip(names, rolls, strict=True)}, scores


def _write_cache(path: Path, rolls: dict[str, Roll], scores: int) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, numpy would append .npz
            np.savez_compressed(
                file,
                frames=np.concatenate(list(rolls.values())),
                lengths=np.array([len(roll) for roll in rolls.values()]),
                names=np.array(list(rolls)),
                scores=np.array(scores),
            )

    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, write)
