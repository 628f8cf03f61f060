"""Data files that state more than they hold: each is refused in one line, in little time and memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polyphonic_music import __main__ as command
from polyphonic_music import chorales, limits, rolls
from polyphonic_music.files import UnusableError

GOOD = [[[60], [61]]]
SPLITS = dict.fromkeys(rolls.SPLITS, GOOD)
PEAK = 60 << 20  # bytes of memory that a refusal may take


def refused(path: Path, read: Callable[[Path], object] = rolls.load) -> str:
    """The message, which must be one line that names the file, after little time and memory."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(UnusableError) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < PEAK
        assert time.process_time() - begin < 5
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 400
    return message


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------------------- .mat


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(
    kind: int, shape: tuple[int, ...], name: str, *parts: bytes, flags: int = 0, order: str = "<"
) -> bytes:
    head = element(6, struct.pack(f"{order}II", kind | flags, 0), order)
    head += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    return element(14, head + element(1, name.encode(), order) + b"".join(parts), order)


def mat(*elements: bytes, order: str = "<", version: int = 0x0100) -> bytes:
    mark = b"IM" if order == "<" else b"MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", version) + mark + b"".join(elements)


def cells(*shape: int, order: str = "<") -> list[bytes]:
    """The three cell arrays, each with a cell of two steps, the first of which has the lowest key."""
    values = np.zeros((2, 88), np.uint8)
    values[0, 0] = 1
    cell = matrix(9, shape or (2, 88), "", element(2, values.tobytes("F"), order), order=order)
    return [matrix(1, (1, 1), f"{split}data", cell, order=order) for split in rolls.SPLITS]


def compressed(data: bytes) -> bytes:
    packed = zlib.compress(data)
    return struct.pack("<II", 15, len(packed)) + packed  # without padding, as in the format


def test_mat_files_of_both_byte_orders_packed_and_with_other_variables(tmp_path: Path) -> None:
    other = [matrix(4, (1, 2), "text", element(16, b"ab")), matrix(2, (1, 1), "struct"), element(99, b"?")]
    for content in (
        mat(*cells()),
        mat(*cells(order=">"), order=">"),
        mat(*other, *map(compressed, [*other, *cells()])),
    ):
        data = rolls.load(written(tmp_path, "a.mat", content))
        for roll in (*data.train, *data.valid, *data.test):
            assert np.argwhere(roll).tolist() == [[0, 0]]
            assert roll.shape == (2, 88)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (mat(*cells(1 << 30, 88)), "not a readable .mat file (ValueError: cannot reshape"),
        (mat(*cells(2, 88, 1 << 20)), "not a readable .mat file (ValueError: cannot reshape"),
        (mat(matrix(1, (1, 1 << 30), "traindata")), "traindata must have [1, 1073741824] cells, has 0"),
        (mat(matrix(4, (1, 1 << 29), "traindata")), "has no cell array named traindata"),
        (
            mat(matrix(1, (1, 1), "traindata", matrix(4, (1, 1 << 29), "", element(16, b"")))),
            "traindata[0] must be a matrix [T, 88] of real numbers, got MATLAB class 4",
        ),
        (mat(matrix(1, (1, 1), "traindata", matrix(1, (1, 1), ""))), "got MATLAB class 1"),
        (mat(matrix(1, (1, 1), "traindata", matrix(5, (2, 88), ""))), "got MATLAB class 5"),
        (mat(matrix(1, (1, 1), "traindata", matrix(6, (2, 88), "", flags=0x800))), "of real numbers"),
        (mat(matrix(1, (1, 1), "traindata", element(14, b""))), "must be a matrix [T, 88], got [0, 0]"),
        (mat(matrix(1, (1, 1), "traindata", element(2, b"1"))), "traindata[0] is not a matrix"),
        (mat(*cells(), version=0x0200), "format 5; MATLAB writes it with save -v7"),
        (mat(struct.pack("<II", 14, 1 << 31)), "does not fit into the file"),
        (mat(struct.pack("<I", 200 << 16 | 14)), "not a readable .mat file"),
        (mat(struct.pack("<II", 15, 5) + b"12345"), "not a readable .mat file (error"),
        (mat(compressed(b"")), "not a readable .mat file"),
        (mat(struct.pack("<II", 15, 12) + zlib.compress(bytes(1000))[:12]), "ends early"),
    ],
)
def test_mat_files_that_state_sizes(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refused(written(tmp_path, "a.mat", content))


def test_cells_in_cells_do_not_overflow_the_stack(tmp_path: Path) -> None:
    """scipy ends the process here: each level begins an array of one cell, which is the next level."""
    level = matrix(1, (1, 1), "traindata")[8:] + struct.pack("<II", 14, 64)
    whole = level * 200_000
    path = written(tmp_path, "a.mat", mat(struct.pack("<II", 14, len(whole)) + whole))
    assert "traindata[0] must be a matrix [T, 88] of real numbers, got MATLAB class 1" in refused(path)


def test_compressed_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_MAT_BYTES", 1 << 20)
    bomb = compressed(bytes(64 << 20))
    assert len(bomb) < 1 << 17
    path = written(tmp_path, "a.mat", mat(bomb))
    assert "has more than 1,048,576 bytes when decompressed" in refused(path)
    half = compressed(element(99, bytes(600 << 10)))  # two of them are more than the limit
    assert "when decompressed" in refused(written(tmp_path, "a.mat", mat(half, half, *cells())))
    rolls.load(written(tmp_path, "a.mat", mat(half, *cells())))


# ---------------------------------------------------------------------------------- .pickle, .json


def shared(sequences: int, steps: int, pitches: int) -> dict[str, Any]:
    """One list at each level, stated many times: a small pickle of a huge data set."""
    return {split: [[[60] * pitches] * steps] * sequences for split in rolls.SPLITS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (shared(2, 2, 1000), "train[0][0] must have at most 128 pitches, got 1000"),
        (shared(1, 2, 129), "train[0][0] must have at most 128 pitches, got 129"),
        (shared(1, 1000, 128), "has more than 20000 notes"),
        (shared(10, 1000, 0), "has more than 5000 steps"),
        (shared(1000, 0, 0), "has more than 500 sequences"),
    ],
)
def test_lists_that_are_stated_many_times(
    tmp_path: Path, content: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("MAX_NOTES", 20_000), ("MAX_STEPS", 5000), ("MAX_SEQUENCES", 500)):
        monkeypatch.setattr(limits, name, most)
    path = written(tmp_path, "a.pickle", pickle.dumps(content))
    assert path.stat().st_size < 20_000
    assert message in refused(path)


def test_a_list_in_itself(tmp_path: Path) -> None:
    inner: list[Any] = []
    inner.append(inner)
    path = written(tmp_path, "a.pickle", pickle.dumps(dict.fromkeys(rolls.SPLITS, inner)))
    assert "train[0][0] holds a list, not a MIDI pitch" in refused(path)


def doubled(levels: int) -> bytes:
    """A tuple of twice the tuple before; its hash takes 2^levels steps."""
    return b")" + b"".join(b"q%ch%c\x86" % (i % 250, i % 250) for i in range(levels))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04}" + doubled(100) + b"K\x01s.", "has a dict whose keys are not strings"),
        (b"\x80\x04}(" + doubled(100) + b"K\x01u.", "has a dict whose keys are not strings"),
        (b"(" + doubled(100) + b"K\x01d.", "has a dict whose keys are not strings"),
        (b"\x80\x04}" + b")" + b"\x85" * 300_000 + b"K\x01s.", "has a dict whose keys are not strings"),
        (b"\x80\x04\x8f(" + doubled(100) + b"\x90.", r"it has the opcode '\x8f'"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", r"it has the opcode '\x96'"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".", "not a readable .pickle file (EOFError"),
        (b"\x80\x04K\x01" + b"2" * 1_000_000 + b".", "it has the opcode '2'"),
        (b"\x80\x02\x82\x01.", r"it has the opcode '\x82'"),
        (b"I" + b"9" * 100_000 + b"\n.", "not a readable .pickle file"),
    ],
)
def test_pickles_of_other_than_plain_values(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refused(written(tmp_path, "a.pickle", content))


@pytest.mark.parametrize("opcode", [b"]", b"}", b"(", b")\x94"])
def test_pickles_whose_values_take_more_memory_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opcode: bytes
) -> None:
    monkeypatch.setattr(limits, "MAX_OPCODES", 100_000)
    path = written(tmp_path, "a.pickle", b"\x80\x04" + opcode * 1_000_000 + b".")
    assert "has more than 100000 opcodes" in refused(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 1_000_000, "not a readable .json file (RecursionError"),
        (b'{"a":' * 1_000_000, "not a readable .json file (RecursionError"),
        (b"[" + b"[]," * 4_000_001, "has more than 4000000 lists"),
        (b"[" + b"{}," * 4_000_001, "has more than 4000000 lists"),
        (b'{"train": [[[' + b"9" * 100_000 + b"]]]}", "not a readable .json file (ValueError"),
        (b'{"train": [[[1e999]]], "valid": [], "test": []}', "train[0][0] holds a float, not a MIDI pitch"),
        (b'{"train": "\xff"}', "not a readable .json file (UnicodeDecodeError"),
        (json.dumps({**SPLITS, "test": []}).encode(), "test has no sequence of two steps or more"),
        (json.dumps({**SPLITS, "test": [[], [[]]]}).encode(), "test has no sequence of two steps or more"),
    ],
)
def test_json(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refused(written(tmp_path, "a.json", content))


def test_large_files(tmp_path: Path) -> None:
    for name, most in (("a.mat", "536,870,912"), ("a.pkl", "67,108,864"), ("a.json", "67,108,864")):
        os.truncate(written(tmp_path, name, b""), 1 << 40)  # a hole
        with pytest.raises(UnusableError, match=f"{name}: has more than {most} bytes"):
            rolls.load(tmp_path / name)


# -------------------------------------------------------------------------------------- MusicXML


def score(notes: str, head: str = "") -> bytes:
    part = f'<part id="A"><measure><attributes><divisions>1</divisions></attributes>{notes}</measure></part>'
    return f"{head}<score-partwise><part-list/>{part}</score-partwise>".encode()


def note(duration: str, octave: str = "4") -> str:
    pitch = f"<pitch><step>C</step><octave>{octave}</octave></pitch>"
    return f"<note>{pitch}<duration>{duration}</duration></note>"


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "lol"}">' for i in range(10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (score("&l9;", f"<!DOCTYPE s [{LAUGHS}]>"), "must not declare the entity 'l0'"),
        (score("&l9;", f"<!DOCTYPE s [{LAUGHS}]>").decode().encode("utf-16"), "must not declare the entity"),
        (
            score("&l;", '<!DOCTYPE s [<!ENTITY l SYSTEM "file:///etc/passwd">]>'),
            "must not declare the entity 'l'",
        ),
        (score(note("1e999999999")), "duration must be a decimal number, got '1e999999999'"),
        (score(note("1/3")), "duration must be a decimal number"),
        (score(note("-1")), "duration must be a decimal number"),
        (score(note("")), "duration must be a decimal number"),
        (score(note("999999999")), "more than 20000 steps"),
        (score(note("1", "9" * 5000)), "not a readable MusicXML score (ValueError"),
        (score(note("1").replace("<octave>", "<alter>inf</alter><octave>")), "OverflowError"),
        (
            score(note("1") + "<attributes><divisions>16000057</divisions></attributes>" + note("1")),
            "divides a quarter note into",
        ),
        (b"<a>" * 100_000, "not a readable MusicXML score"),
    ],
)
def test_scores(text: bytes, message: str) -> None:
    begin = time.process_time()
    with pytest.raises(UnusableError) as caught:
        chorales.roll_from_musicxml(text)
    assert time.process_time() - begin < 2
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_document_type_without_entities_is_read() -> None:
    head = '<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 1.0//EN" "http://x/partwise.dtd">'
    assert chorales.roll_from_musicxml(score(note("2"), head)).sum() == 2


def test_packed_scores(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", bytes(limits.MAX_SCORE_BYTES + 1))
    bomb = packed.getvalue()
    assert len(bomb) < 1 << 17
    assert "has more than 16,777,216 bytes when decompressed" in refused(
        written(tmp_path, "a.mxl", bomb), chorales.read_score
    )
    at = bomb.index(b"PK\x01\x02") + 24  # the size that the archive states
    lying = bomb[:at] + struct.pack("<I", 100) + bomb[at + 4 :]
    assert "not a readable .mxl file (BadZipFile" in refused(
        written(tmp_path, "a.mxl", lying), chorales.read_score
    )
    os.mkfifo(tmp_path / "b.mxl")
    assert "got a named pipe" in refused(tmp_path / "b.mxl", chorales.read_score)


# ------------------------------------------------------------------------------------ the command


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.mat").symlink_to("loop.mat")
    (tmp_path / "zero.pkl").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "deep.json").write_bytes(b"[" * 100_000)
    (tmp_path / "line\nbreak.json").write_bytes(b"[]")
    for path in sorted(tmp_path.iterdir()):
        if path.is_dir():
            continue
        assert command.main(["--data", str(path), "--out", str(tmp_path / "out")]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert path.name.replace("\n", r"\n") in printed.err
    for name in ("line\nbreak.json", "deep.json", "loop.mat", "zero.pkl"):
        (tmp_path / name).unlink()
    assert command.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "folder.json: must be a regular file, got a directory" in capsys.readouterr().err


def test_a_name_that_cannot_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "a\n\udcff.json"
    path.write_text(json.dumps(SPLITS))
    assert rolls.load(path).name == r"a\n\udcff"
