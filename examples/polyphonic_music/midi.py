"""A piano roll as a Standard MIDI File of format 0, which has one track."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mido import Message, MetaMessage, MidiFile, MidiTrack, bpm2tempo
from numpy.typing import ArrayLike

from polyphonic_music.files import write_file
from polyphonic_music.rolls import KEYS, LOWEST_PITCH

TICKS_PER_STEP = 120
MAX_STEPS_PER_QUARTER = 0x7FFF // TICKS_PER_STEP  # the file has 15 bits for the ticks per quarter note
VELOCITY = 80


def write_midi(
    roll: ArrayLike, path: str | Path, *, steps_per_quarter: int = 1, tempo: float = 100.0
) -> None:
    """Write a roll as a MIDI file. A key that sounds in consecutive steps is one held note.

    Args:
        roll: ``[T, 88]`` of 0 and 1, of any dtype; column k is MIDI pitch 21 + k.
        path: The file, usually ``.mid``. An existing file is replaced.
        steps_per_quarter: Steps per quarter note, from 1 to 273.
        tempo: Quarter notes per minute, from 4 to 60000.

    Raises:
        ValueError: An argument does not have the shape or a value given above.
        OSError: The file cannot be written.
    """
    frames = np.asarray(roll)
    if frames.ndim != 2 or frames.shape[1] != KEYS:
        raise ValueError(f"roll must have shape [T, {KEYS}], got {list(frames.shape)}")
    if not np.isin(frames, (0, 1)).all():
        raise ValueError(f"roll must hold only 0 and 1, got {frames[~np.isin(frames, (0, 1))][0]}")
    if not isinstance(steps_per_quarter, int) or not 1 <= steps_per_quarter <= MAX_STEPS_PER_QUARTER:
        raise ValueError(
            f"steps_per_quarter must be an int from 1 to {MAX_STEPS_PER_QUARTER}, got {steps_per_quarter!r}"
        )
    if not 4 <= tempo <= 60000:
        raise ValueError(f"tempo must be a number from 4 to 60000, got {tempo!r}")
    track = MidiTrack([MetaMessage("set_tempo", tempo=bpm2tempo(tempo))])
    silence = np.zeros((1, KEYS), np.int8)
    changes = np.diff(np.concatenate([silence, frames.astype(np.int8), silence]), axis=0)  # [T + 1, 88]
    last = 0
    for step, change in enumerate(changes):
        # Ends come before begins, so that a player with few voices has them free.
        for wanted, kind, velocity in ((-1, "note_off", 0), (1, "note_on", VELOCITY)):
            for key in np.flatnonzero(change == wanted).tolist():
                delay = TICKS_PER_STEP * (step - last)
                track.append(Message(kind, note=LOWEST_PITCH + key, velocity=velocity, time=delay))
                last = step
    track.append(MetaMessage("end_of_track", time=TICKS_PER_STEP * (len(frames) - last)))
    file = MidiFile(type=0, ticks_per_beat=TICKS_PER_STEP * steps_per_quarter, tracks=[track])
    write_file(Path(path), file.save)
