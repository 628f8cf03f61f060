"""Reading and writing of files.

A file that is read may be anything: `read_file` returns its checked content, or raises `UnusableError` with
one line about the reason. A file that is written is either complete or absent: it is written under another
name and then renamed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

Content = TypeVar("Content")

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnusableError(ValueError):
    """A file or a data set cannot be used; the message is one line that names it and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class MissingError(UnusableError):
    """There is no such file."""


def printable(text: str) -> str:
    """The text with escapes for line breaks and other characters that cannot be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def brief(error: Exception) -> str:
    """The type of an error and the beginning of its message, in one line."""
    return printable(" ".join(f"{type(error).__name__}: {error}".split())[:120])


# ---------------------------------------------------------------------------------------- reading


def read_file(path: Path, most: int, parse: Callable[[bytes], Content]) -> Content:
    """Read a regular file of at most ``most`` bytes and return what ``parse`` makes of it.

    ``parse`` checks the content, too, and may raise any exception; the message of an UnusableError is the
    reason as it stands.

    Raises:
        MissingError: There is no such file.
        UnusableError: The file is not a regular file, too large, not readable, or refused by ``parse``. The
            message begins with the path.
    """
    try:
        return parse(_read_bytes(path, most))
    except FileNotFoundError as error:
        raise MissingError(f"{path}: cannot be read: {error.strerror}") from None
    except UnusableError as error:
        reason = str(error)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except Exception as error:  # parsers raise exceptions of many types for damaged content
        reason = f"not a readable {path.suffix} file ({brief(error)})"
    raise UnusableError(f"{path}: {reason}") from None


def read_if_usable(
    path: Path, most: int, parse: Callable[[bytes], Content], report: Callable[[str], object]
) -> Content | None:
    """Call `read_file`. Return None if there is no such file, or after reporting why it cannot be used."""
    try:
        return read_file(path, most, parse)
    except MissingError:
        return None
    except UnusableError as error:
        report(str(error))
        return None


def _read_bytes(path: Path, most: int) -> bytes:
    _check_regular(os.stat(path))  # before it is opened, because opening a device can act on it
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        _check_regular(status)
        if status.st_size > most:
            raise UnusableError(f"has more than {most:,} bytes")
        return file.read(status.st_size)


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that has taken its place is opened without waiting for the other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UnusableError(f"must be a regular file, got {kind}")


def parse_json(data: bytes) -> Any:
    """Parse standard JSON, which has no number that is not finite."""

    def refuse(text: str) -> NoReturn:
        raise UnusableError(f"has a number that is not finite, {text[:20]}")

    def finite(text: str) -> float:
        return value if math.isfinite(value := float(text)) else refuse(text)

    return json.loads(data, parse_constant=refuse, parse_float=finite)


def parse_tensors(data: bytes) -> Any:
    """Parse what torch.save has written. No code in it is run, and nothing in it is compressed.

    Parsing therefore takes no more memory than the data.
    """
    check_archive(data, len(data))
    return torch.load(io.BytesIO(data), weights_only=True)


def check_archive(data: bytes, most: int) -> None:
    """Raise an exception unless the data is a zip archive with at most ``most`` bytes when decompressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > most:
            raise UnusableError(f"has more than {most:,} bytes when decompressed")


# ---------------------------------------------------------------------------------------- digests


def digest(data: bytes) -> str:
    """The SHA-256 of the data in hexadecimal notation."""
    return hashlib.sha256(data).hexdigest()


def sealed(data: bytes) -> bytes:
    """The data after a line with its digest."""
    return digest(data).encode() + b"\n" + data


def unsealed(data: bytes) -> bytes:
    """The data after its digest, which must fit."""
    stated, _, rest = data.partition(b"\n")
    if stated != digest(rest).encode():
        raise UnusableError("does not begin with the digest of its content")
    return rest


# ---------------------------------------------------------------------------------------- writing


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file, then rename it to ``path``. Until then an existing file stays."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes."""
    write_file(path, lambda temporary: temporary.write_bytes(data))


def tensor_bytes(content: dict[str, Any]) -> bytes:
    """What torch.save writes; to memory, because its own error does not tell that a disk is full."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def json_text(content: dict[str, Any]) -> str:
    """JSON with null for every number that is not finite."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with null for every number that is not finite."""
    write_text(path, json_text(content))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
