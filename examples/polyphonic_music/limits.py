"""Limits of what is read: a file beyond one of them is refused, because a small file can state huge sizes.

For comparison: MuseData, the largest of the four sets of the literature, has 783 sequences, 392,296 steps and
1.4 million notes. It takes 1 MB as a .mat file, 7 MB as JSON and 5 to 11 MB as a pickle.
"""

from __future__ import annotations

# --- A data set
MAX_SEQUENCES = 100_000
MAX_STEPS = 2_000_000  # 176 MB of rolls
MAX_NOTES = 8 * MAX_STEPS  # from lists, in which the same step can be stated many times: seconds of reading
MAX_PITCHES = 128  # of a step: MIDI has no more

# --- A file of a data set
MAX_DATA_BYTES = 64 << 20
MAX_MAT_BYTES = 512 << 20  # of a .mat file, decompressed: MuseData has 276 MB if it is stored as float64
MAX_LISTS = 2 * MAX_STEPS  # in JSON: "[]," takes 3 bytes in the file and 64 bytes in memory
MAX_OPCODES = 4 * MAX_STEPS  # of a pickle: one takes up to 100 bytes in memory; MuseData has 3 to 4 million

# --- A MusicXML score
MAX_SCORE_BYTES = 16 << 20  # decompressed; the largest chorale of music21 has 0.9 MB
MAX_SCORE_STEPS = 20_000  # quarter notes, more than two hours
MAX_DENOMINATOR = 1 << 20  # of an instant in quarter notes: fractions of larger numbers take time to add

# --- The study's own files
MAX_RUN_BYTES = 16 << 20  # of a run's result: 1 MB if each of 10,000 updates were validated
MAX_TENSOR_BYTES = 256 << 20  # of weights or a checkpoint: those of the full plan have up to 3 MB
MAX_CACHE_BYTES = MAX_STEPS * 88  # of the chorales, decompressed: 2 MB
