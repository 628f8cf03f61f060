"""The loader of files of rolls: formats, and damaged or wrong content."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polyphonic_music import limits, rolls
from polyphonic_music.files import UnusableError
from scipy.io import savemat

SPLITS: dict[str, list[list[list[int]]]] = {
    "train": [[[60, 64], [], [21, 108]], [[60], [61]]],
    "valid": [[[70], [71, 72]]],
    "test": [[[30], [31], [32], [33]]],
}


def as_rolls(sequences: list[list[list[int]]]) -> list[np.ndarray[Any, Any]]:
    columns = np.arange(21, 109)
    return [np.array([np.isin(columns, step) for step in seq], np.uint8) for seq in sequences]


def check_splits(data: rolls.Rolls) -> None:
    for name, sequences in SPLITS.items():
        for got, expected in zip(getattr(data, name), as_rolls(sequences), strict=True):
            assert got.dtype == np.uint8
            np.testing.assert_array_equal(got, expected)


def written(folder: Path, content: Any, ending: str, protocol: int | None = None) -> Path:
    path = folder / f"a{ending}"
    as_json = ending == ".json"
    path.write_bytes(json.dumps(content).encode() if as_json else pickle.dumps(content, protocol))
    return path


def refused(path: Path) -> str:
    """The message of the error, which must be one line that names the file."""
    with pytest.raises(UnusableError) as caught:
        rolls.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 600
    return message[len(str(path)) :]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    tuples = {k: [[tuple(step) for step in seq] for seq in v] for k, v in SPLITS.items()}
    for ending in (".pickle", ".pkl"):
        check_splits(rolls.load(written(tmp_path, tuples, ending, protocol)))


def test_pickle_of_python_2(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"  # protocol 0, its keys byte strings
    split = b"(l(l(I60\nI64\nta(I61\ntaas"
    path.write_bytes(b"(dp0\nS'train'\n" + split + b"S'valid'\n" + split + b"S'test'\n" + split + b".")
    np.testing.assert_array_equal(rolls.load(path).test, as_rolls([[[60, 64], [61]]]))


def test_json_with_rests_and_floats(tmp_path: Path) -> None:
    changed = {**SPLITS, "valid": [[[70.0, -1], [71, 72.0, -1, -1]]]}
    check_splits(rolls.load(written(tmp_path, changed, ".json")))


def cells(rolls_of_splits: dict[str, list[Any]]) -> dict[str, Any]:
    """The content of a file with one cell array per split."""
    content = {}
    for name, sequences in rolls_of_splits.items():
        content[name + "data"] = np.empty((1, len(sequences)), object)
        for i, roll in enumerate(sequences):
            content[name + "data"][0, i] = roll
    return content


def test_short_sequences_are_left_out_and_counted(tmp_path: Path) -> None:
    longer = {**SPLITS, "train": [[], [[60]], *SPLITS["train"]]}
    check_splits(data := rolls.load(written(tmp_path, longer, ".json")))
    assert data.note == "2/1/1 train/valid/test sequences, 2 shorter than two steps left out"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1], "must be a dict of train, valid and test, got list"),
        ({**SPLITS, "train": []}, "train has no sequence"),
        ({**SPLITS, "test": [[[60]]]}, "test has no sequence of two steps or more"),
        ({k: SPLITS[k] for k in ("train", "test")}, "the split 'valid' is missing"),
        ({**SPLITS, "valid": 3}, "valid must be a list of sequences, got int"),
        ({**SPLITS, "valid": [3]}, "valid[0] must be a list of steps, got int"),
        ({**SPLITS, "valid": [[60, 61]]}, "valid[0][0] must be a list of pitches, got int"),
        (
            {**SPLITS, "train": [[[60], [109]]]},
            "train[0][1] holds 109, not a MIDI pitch in 21..108",
        ),
        ({**SPLITS, "train": [[["60"]]]}, "train[0][0] holds a str, not a MIDI pitch in 21..108"),
        *(
            ({**SPLITS, "test": [[[60, pitch]]]}, "test[0][0] holds ")
            for pitch in (20, 60.5, True, [60], None, math.nan, math.inf)
        ),
    ],
)
@pytest.mark.parametrize("ending", [".json", ".pickle"])
def test_wrong_content(tmp_path: Path, content: Any, expected: str, ending: str) -> None:
    assert expected in refused(written(tmp_path, content, ending))


def test_huge_numbers_in_a_pickle(tmp_path: Path) -> None:
    path = written(tmp_path, {**SPLITS, "test": [[[10**6000]]]}, ".pickle")
    assert "test[0][0] holds a int, not a MIDI pitch" in refused(path)


def test_more_steps_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, SPLITS, ".json")
    monkeypatch.setattr(limits, "MAX_STEPS", 11)
    check_splits(rolls.load(path))
    monkeypatch.setattr(limits, "MAX_STEPS", 10)
    assert "more than 10 steps" in refused(path)


@dataclass
class _Trap:
    """Unpickling it creates a folder, unless the lookup of the function is refused."""

    folder: str

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    folder = tmp_path / "made"
    path = written(tmp_path, {**SPLITS, "more": _Trap(str(folder))}, ".pickle", protocol)
    message = refused(path)
    assert "asks for '" in message
    assert "only plain lists" in message
    assert not folder.exists()
    pickle.loads(path.read_bytes())  # the trap is real
    assert folder.exists()


def test_a_pickle_of_numpy_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, {**SPLITS, "test": as_rolls(SPLITS["test"])}, ".pickle")
    assert "asks for 'numpy" in refused(path)


@pytest.mark.parametrize("name", ["a.mat", "a.json", "a.pickle", "a.pkl"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"\x00" * 300, b"{" * 90000, b"(" * 200])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "readable" in refused(tmp_path / name)


def test_missing_file_folder_and_unknown_ending(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "no.json")
    (tmp_path / "folder.pickle").mkdir()
    assert "must be a regular file, got a directory" in refused(tmp_path / "folder.pickle")
    assert "the ending '.txt' is not one of .mat, .json" in refused(tmp_path / "a.txt")


def test_mat(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    good = {name: list(as_rolls(sequences)) for name, sequences in SPLITS.items()}
    savemat(path, cells(good))
    check_splits(rolls.load(path))
    whole = path.read_bytes()
    for end in range(0, len(whole) - 100, 97):
        path.write_bytes(whole[:end])
        refused(path)
    for cell, expected in (
        (np.zeros((5, 87), np.uint8), "validdata[0] must be a matrix [T, 88], got [5, 87]"),
        (np.full((5, 88), 2.0), "validdata[0] must hold only 0 and 1"),
        (np.full((5, 88), np.nan), "validdata[0] must hold only 0 and 1"),
        ("text", "validdata[0] must be a matrix [T, 88]"),
    ):
        savemat(path, cells({**good, "valid": [cell]}))
        assert expected in refused(path)
    savemat(path, {**cells(good), "testdata": np.zeros((3, 88))})
    assert "no cell array named testdata" in refused(path)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_a_changed_file_loads_or_is_refused(data: st.DataObject) -> None:
    """Changed bytes give a data set or an UnusableError, never another error."""
    ending = data.draw(st.sampled_from([".json", ".pickle"]))
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), SPLITS, ending, 2)
        changed = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(changed) - 1))
            changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        path.write_bytes(changed)
        with contextlib.suppress(UnusableError):
            assert len(rolls.load(path).train) > 0
