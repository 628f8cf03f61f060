"""Files that are whole or not there: each is written beside its place and then renamed."""

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
    """Have ``write`` make a file, then put it in its place. Until then what was there stays."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """In UTF-8."""
    write_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """By way of memory: what torch says itself of a full disk does not tell that it is full."""
    whole = io.BytesIO()
    torch.save(content, whole)
    write_file(path, lambda beside: beside.write_bytes(whole.getbuffer()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """What is not finite becomes null: JSON has no other word for it."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file, or no dict in it."""
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
