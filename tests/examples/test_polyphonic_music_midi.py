"""Piano rolls as MIDI files: the bytes, and the notes that mido and music21 read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mido import Message, MetaMessage, MidiFile
from polyphonic_music.midi import write_midi

HEADER = bytes.fromhex("4d546864 00000006 0000 0001 0078")
Note = tuple[int, int, int]  # first step, step after the last, pitch


def random_roll(seed: int, steps: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A roll with held notes, repeated notes, and the lowest and the highest key."""
    return (np.random.default_rng(seed).random((steps, 88)) < 0.3).astype(np.uint8)


def notes_of(roll: np.ndarray[Any, Any]) -> set[Note]:
    notes = set()
    for key in range(88):
        begin = None
        for step in range(len(roll) + 1):
            sounds = step < len(roll) and roll[step, key] == 1
            if sounds and begin is None:
                begin = step
            if not sounds and begin is not None:
                notes.add((begin, step, 21 + key))
                begin = None
    return notes


def read(path: Path) -> tuple[int, list[tuple[int, Message]]]:
    """Ticks per quarter note, and the messages with their times in ticks."""
    file = MidiFile(path)
    assert file.type == 0
    assert len(file.tracks) == 1
    times = np.cumsum([message.time for message in file.tracks[0]]).tolist()
    return file.ticks_per_beat, list(zip(times, file.tracks[0], strict=True))


def test_the_bytes_of_two_notes(tmp_path: Path) -> None:
    """Middle C for two steps, a rest, the highest key: bytes written by hand from the specification."""
    roll = np.zeros((5, 88))
    roll[0:2, 60 - 21] = roll[3, 87] = 1
    write_midi(roll, tmp_path / "a.mid", tempo=120)
    events = "00 ff5103 07a120  00 903c50  8170 803c00  78 906c50  78 806c00  78 ff2f00"
    track = bytes.fromhex(events)
    expected = HEADER + b"MTrk" + len(track).to_bytes(4, "big") + track
    assert (tmp_path / "a.mid").read_bytes() == expected


@pytest.mark.parametrize("steps_per_quarter", [1, 4])
def test_every_note_has_its_begin_and_end(tmp_path: Path, steps_per_quarter: int) -> None:
    roll = random_roll(1, 60)
    write_midi(torch.from_numpy(roll), tmp_path / "a.mid", steps_per_quarter=steps_per_quarter)
    quarter, events = read(tmp_path / "a.mid")
    step = quarter / steps_per_quarter
    begun: dict[int, int] = {}
    notes = set()
    for now, event in events:
        if event.type == "note_on":
            assert event.note not in begun
            assert event.velocity > 0
            begun[event.note] = now
        elif event.type == "note_off":
            notes.add((begun.pop(event.note) / step, now / step, event.note))
    assert notes == notes_of(roll)
    assert not begun
    assert events[-1] == (60 * step, MetaMessage("end_of_track", time=events[-1][1].time))


def test_music21_reads_the_roll(tmp_path: Path) -> None:
    midi = pytest.importorskip("music21.midi")
    roll = random_roll(2, 24)
    roll[:, 40] = 0
    roll[2:22, 40] = 1  # held
    write_midi(roll, tmp_path / "a.mid", steps_per_quarter=2, tempo=90)
    file = midi.MidiFile()
    file.open(str(tmp_path / "a.mid"))
    file.read()
    file.close()
    assert file.format == 0
    assert len(file.tracks) == 1
    step, now, begun, notes = file.ticksPerQuarterNote / 2, 0, {}, set()
    for event in file.tracks[0].events:
        if event.isDeltaTime():
            now += event.time
        elif event.isNoteOn():
            begun[event.pitch] = now
        elif event.isNoteOff():
            notes.add((begun.pop(event.pitch) / step, now / step, event.pitch))
    assert notes == notes_of(roll)
    [tempo] = [e.data for e in file.tracks[0].events if e.type is midi.MetaEvents.SET_TEMPO]
    assert int.from_bytes(tempo, "big") == round(60e6 / 90)


def test_long_rests_and_empty_rolls(tmp_path: Path) -> None:
    roll = np.zeros((20_000, 88), bool)  # a delay of four bytes
    roll[-1, 0] = True
    write_midi(roll, tmp_path / "a.mid")
    _, events = read(tmp_path / "a.mid")
    assert [now for now, _ in events] == [0, 120 * 19_999, 120 * 20_000, 120 * 20_000]
    write_midi(roll[:0], tmp_path / "a.mid")
    assert read(tmp_path / "a.mid")[1][-1] == (0, MetaMessage("end_of_track"))


@pytest.mark.parametrize(
    ("roll", "more", "message"),
    [
        (np.zeros((5, 87)), {}, r"roll must have shape \[T, 88\], got \[5, 87\]"),
        (np.zeros(88), {}, r"roll must have shape \[T, 88\], got \[88\]"),
        (np.full((2, 88), 0.5), {}, "roll must hold only 0 and 1, got 0.5"),
        (
            np.zeros((2, 88)),
            {"steps_per_quarter": 0},
            "steps_per_quarter must be an int from 1 to 273, got 0",
        ),
        (np.zeros((2, 88)), {"steps_per_quarter": 274}, "steps_per_quarter .* got 274"),
        (np.zeros((2, 88)), {"tempo": 1.0}, "tempo must be a number from 4 to 60000, got 1.0"),
        (np.zeros((2, 88)), {"tempo": float("nan")}, "tempo must be .* got nan"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, roll: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_midi(roll, tmp_path / "a.mid", **more)
    assert not (tmp_path / "a.mid").exists()
