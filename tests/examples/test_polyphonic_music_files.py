"""Reading a file of any kind, and the forms of what was read."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from polyphonic_music.files import (
    MissingError,
    UnusableError,
    json_text,
    parse_json,
    parse_tensors,
    printable,
    read_file,
    read_if_usable,
    sealed,
    tensor_bytes,
    unsealed,
)
from polyphonic_music.forms import FLOAT_OR_NULL, Each, Either, check_finite, check_form


def reason(path: Path, parse: Any = bytes, most: int = 100) -> str:
    """Why the file cannot be used, which must be one line that begins with the path."""
    with pytest.raises(UnusableError) as caught:
        read_file(path, most, parse)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message[len(f"{path}: ") :]


def test_files_that_are_no_regular_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, kind in (("pipe", "a named pipe"), ("link", "a named pipe"), ("socket", "a socket")):
            assert reason(tmp_path / name) == f"must be a regular file, got {kind}"
    for path, kind in ((tmp_path, "a directory"), (Path("/dev/zero"), "a device")):
        assert reason(path) == f"must be a regular file, got {kind}"
    assert reason(tmp_path / "loop") == "cannot be read: Too many levels of symbolic links"


def test_a_pipe_that_takes_the_place_of_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe")
    regular = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: regular)
    assert reason(tmp_path / "pipe") == "must be a regular file, got a named pipe"


def test_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    assert read_file(path, 100, len) == 100
    assert reason(path, most=99) == "has more than 99 bytes"
    os.truncate(path, 1 << 40)  # a file with a hole
    assert reason(path, most=5000) == "has more than 5,000 bytes"


def test_errors_of_the_system_and_of_parsers_are_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(MissingError, match="cannot be read: No such file or directory"):
        read_file(path, 100, bytes)
    path.write_bytes(b"\xff")
    assert reason(path, lambda data: data.decode()).startswith(
        "not a readable .json file (UnicodeDecodeError"
    )
    for deep in (b"[" * 90_000, b'{"a":' * 90_000):
        path.write_bytes(deep)
        assert "RecursionError" in reason(path, parse_json, len(deep))

    def refuse(data: bytes) -> None:
        raise UnusableError("is\nnot mine")

    assert reason(path, refuse, 1 << 20) == r"is\nnot mine"

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)  # the rights of files do not bind root
    assert reason(path, bytes) == "cannot be read: Permission denied"


def test_a_name_with_a_line_break_stays_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[1m\udcff"
    path.mkdir()
    with pytest.raises(UnusableError) as caught:
        read_file(path, 10, bytes)
    assert str(caught.value).endswith(r"a\nb\x1b[1m\udcff: must be a regular file, got a directory")
    assert printable("é ± ü") == "é ± ü"


def test_missing_is_silent_and_unusable_is_reported_once(tmp_path: Path) -> None:
    said: list[str] = []
    assert read_if_usable(tmp_path / "no", 10, bytes, said.append) is None
    assert said == []
    assert read_if_usable(tmp_path, 10, bytes, said.append) is None
    assert said == [f"{tmp_path}: must be a regular file, got a directory"]


def test_a_seal_is_broken_by_any_change() -> None:
    whole = sealed(b"\ncontent\n")
    assert unsealed(whole) == b"\ncontent\n"
    changed = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    for wrong in (*changed, whole[:-1], whole + b" ", b"", b"\n", b"content"):
        with pytest.raises(UnusableError, match="does not begin with the digest"):
            unsealed(wrong)


def test_json_has_finite_numbers_only() -> None:
    text = json_text({"a": [1.5, float("nan"), (float("inf"), None)]})
    assert parse_json(text.encode()) == {"a": [1.5, None, [None, None]]}
    for wrong in (b"[NaN]", b"[-Infinity]", b"[1e999]", b"[-1e999]"):
        with pytest.raises(UnusableError, match="has a number that is not finite"):
            parse_json(wrong)


def test_tensors_with_code_or_compressed_tensors_are_refused() -> None:
    tensors = {"a": torch.arange(3.0)}
    assert torch.equal(parse_tensors(tensor_bytes(tensors))["a"], tensors["a"])
    with pytest.raises(Exception, match="Weights only load failed"):
        parse_tensors(tensor_bytes({"a": Each(int)}))
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(tensor_bytes({"a": torch.zeros(1 << 16)}))) as plain,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(UnusableError, match="when decompressed"):
        parse_tensors(packed.getvalue())
    for wrong in (b"", b"\x80\x02}.", b"PK\x05\x06"):
        with pytest.raises(Exception, match="zip"):
            parse_tensors(wrong)


FORM = {
    "count": int,
    "ended": bool,
    "score": FLOAT_OR_NULL,
    "curve": Each(int),
    "interval": Either((type(None), [float, float])),
    "lr": 0.1,
    "weight": torch.zeros(2, 3),
}
GOOD: dict[str, Any] = {
    "count": 3,
    "ended": True,
    "score": None,
    "curve": [1, 2, 3],
    "interval": [0.5, 1.5],
    "lr": 0.2,
    "weight": torch.ones(2, 3),
}


def test_content_of_the_form_passes() -> None:
    check_form(GOOD, FORM, "it")
    check_form(GOOD | {"score": 1.0, "curve": [], "interval": None}, FORM, "it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 3.0}, r"it\['count'\] must be of type int, got float"),
        ({"count": True}, r"it\['count'\] must be of type int, got bool"),
        ({"ended": 1}, r"it\['ended'\] must be of type bool, got int"),
        ({"score": "1"}, r"it\['score'\] has a wrong form, got str"),
        ({"curve": [1, None]}, r"it\['curve'\]\[1\] must be of type int, got NoneType"),
        ({"curve": {}}, r"it\['curve'\] must be of type list, got dict"),
        ({"interval": [0.5]}, r"it\['interval'\] has a wrong form, got list"),
        ({"lr": None}, r"it\['lr'\] must be of type float, got NoneType"),
        ({"more": 1}, "it has 'more'"),
        ({"weight": [1.0]}, r"it\['weight'\] must be a tensor, got list"),
        ({"weight": torch.ones(3, 2)}, r"must be torch.float32 \[2, 3\], got torch.float32 \[3, 2\]"),
        ({"weight": torch.ones(2, 3, dtype=torch.float64)}, r"got torch.float64 \[2, 3\]"),
        ({"weight": torch.ones(2, 3).to_sparse()}, "weight"),
    ],
)
def test_content_of_another_form_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableError, match=message):
        check_form(GOOD | change, FORM, "it")


def test_missing_keys_lengths_and_values_that_are_not_finite() -> None:
    with pytest.raises(UnusableError, match="it lacks 'lr'"):
        check_form({name: GOOD[name] for name in GOOD if name != "lr"}, FORM, "it")
    with pytest.raises(UnusableError, match="it must be of type Mapping, got list"):
        check_form([], FORM, "it")
    with pytest.raises(UnusableError, match="it must have 2 entries, got 3"):
        check_form([1, 2, 3], [0, 0], "it")
    check_finite({"w": torch.ones(2)}, "it")
    for value in (float("nan"), float("-inf")):
        with pytest.raises(UnusableError, match=r"it\['w'\] has entries that are not finite"):
            check_finite({"w": torch.tensor([1.0, value])}, "it")
