"""Files that are either complete or absent: each is written under another name and then renamed."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


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


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Save with torch by way of memory, because torch's own error does not tell that a disk is full."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with null for every number that is not finite."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file or no object in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
