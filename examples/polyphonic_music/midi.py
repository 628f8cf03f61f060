"""A piano roll as a Standard MIDI file of format 0: one track, one piano.

A file is a header and a track; a track is events, each after a delay in ticks:

    header  MThd, length 6, format 0, 1 track, ticks of a quarter
    track   MTrk, length, (delay, event)*, an event being a note on (90 pitch velocity), a note off
            (80 pitch 0), the tempo (FF 51 03, microseconds of a quarter) or the end (FF 2F 00)

A delay has 7 bits a byte, the highest first, all bytes but the last with their top bit set. After the
Standard MIDI Files Specification 1.0, MIDI Manufacturers Association 1988.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from polyphonic_music.files import write_file
from polyphonic_music.rolls import KEYS, LOWEST_PITCH

TICKS_A_STEP = 120
MOST_STEPS = 0x7FFF // TICKS_A_STEP  # of a quarter, whose ticks have 15 bits
VELOCITY = 80


def write_midi(roll: ArrayLike, path: str | Path, *, steps_a_quarter: int = 1, tempo: float = 100.0) -> None:
    """Write a roll as a MIDI file. Equal notes in steps that follow each other are one held note.

    Args:
        roll: ``[T, 88]`` of 0 and 1, of any dtype: column k is MIDI pitch 21 + k.
        path: The file, usually ``.mid``. One that is there is replaced.
        steps_a_quarter: How many steps a quarter note lasts, at most 273.
        tempo: Quarter notes a minute, from 4 to 60000.

    Raises:
        ValueError: An argument is not as said above.
        OSError: The file cannot be written.
    """
    frames = np.asarray(roll)
    if frames.ndim != 2 or frames.shape[1] != KEYS:
        raise ValueError(f"roll must have shape [T, {KEYS}], got {list(frames.shape)}")
    if not np.isin(frames, (0, 1)).all():
        raise ValueError(f"roll must hold only 0 and 1, got {frames[~np.isin(frames, (0, 1))][0]}")
    if not isinstance(steps_a_quarter, int) or not 1 <= steps_a_quarter <= MOST_STEPS:
        raise ValueError(f"steps_a_quarter must be an int from 1 to {MOST_STEPS}, got {steps_a_quarter!r}")
    if not 4 <= tempo <= 60000:
        raise ValueError(f"tempo must be a number from 4 to 60000, got {tempo!r}")
    track = b"\x00\xff\x51\x03" + round(60e6 / tempo).to_bytes(3, "big") + _notes(frames.astype(np.int8))
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS_A_STEP * steps_a_quarter)
    content = header + struct.pack(">4sI", b"MTrk", len(track)) + track
    write_file(Path(path), lambda beside: beside.write_bytes(content))


def _notes(frames: np.ndarray[tuple[int, ...], np.dtype[np.int8]]) -> bytes:
    """Where keys go up or down, and the end of the track after the last step."""
    silence = np.zeros((1, KEYS), np.int8)
    changes = np.diff(np.concatenate([silence, frames, silence]), axis=0)  # [T + 1, 88]
    track, last = bytearray(), 0
    for step, change in enumerate(changes):
        # What ends goes first, so that a player with few voices has them free.
        for wanted, status, velocity in ((-1, 0x80, 0), (1, 0x90, VELOCITY)):
            for key in np.flatnonzero(change == wanted).tolist():
                track += _delay(step - last) + bytes((status, LOWEST_PITCH + key, velocity))
                last = step
    return bytes(track) + _delay(len(frames) - last) + b"\xff\x2f\x00"


def _delay(steps: int) -> bytes:
    ticks = TICKS_A_STEP * steps
    parts = [ticks & 0x7F]
    while ticks := ticks >> 7:
        parts.append(0x80 | ticks & 0x7F)
    return bytes(reversed(parts))
