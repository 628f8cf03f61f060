"""Limits of what is read: a file beyond one of them is refused, because a small file can state huge sizes.

For comparison: MuseData, the largest of the four sets of the literature, has 783 sequences, 392,296 steps and
1.4 million notes. It takes 1 MB as a compressed .mat file, 6 MB as JSON and 4 to 11 MB as a pickle.
"""

from __future__ import annotations

# --- A data set
MAX_SEQUENCES = 100_000
MAX_STEPS = 2_000_000  # 176 MB of rolls
MAX_NOTES = 8 * MAX_STEPS  # in lists: a pickle can state one step many times, and a note takes 0.3 us
MAX_PITCHES = 128  # of a step: MIDI has no more

# --- A file of a data set
MAX_MAT_BYTES = 512 << 20  # of a .mat file, also when decompressed: MuseData in float64 has 276 MB
MAX_LIST_BYTES = 64 << 20  # of JSON or a pickle, whose values take up to 25 times as much in memory
MAX_LISTS = 2 * MAX_STEPS  # in JSON: "[]," takes 3 bytes in the file and 64 bytes in memory
MAX_OPCODES = 4 * MAX_STEPS  # of a pickle: one takes up to 100 bytes in memory; MuseData has 3 to 4 million

# --- A MusicXML score
MAX_SCORE_BYTES = 16 << 20  # also when decompressed; the largest chorale of music21 has 1.4 MB
MAX_SCORE_STEPS = 20_000  # quarter notes, more than two hours
MAX_DENOMINATOR = 1 << 20  # of an instant in quarter notes: fractions of larger numbers take time to add

# --- The study's own files
MAX_RUN_BYTES = 16 << 20  # of a run's result: 1 MB if each of 10,000 updates were validated
MAX_TENSOR_BYTES = 256 << 20  # of weights or a checkpoint: those of the full plan have up to 3 MB
MAX_CACHE_BYTES = MAX_STEPS * 88  # of the chorales, decompressed: 2 MB
