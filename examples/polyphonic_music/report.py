"""The report of a study: results.json, table.txt, table.md and curves-<model>.png in its folder."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from polyphonic_music.files import write_json, write_text
from polyphonic_music.pictures import learning_curves
from polyphonic_music.table import Results, models, table
from rnnkernels import build_config


def write_report(results: Results, folder: str | Path) -> list[str]:
    """Write results, tables and pictures of a finished or unfinished study.

    Args:
        results: ``results``, ``data``, ``environment``, ``plan``, ``command`` and ``seconds`` of the study.
            NaN and infinities become null.
        folder: The output folder, which is created if necessary. Each file is replaced as a whole, so an
            interruption leaves the old file.

    Returns:
        One line per picture that says where it is, or why there is none.

    Raises:
        OSError: The folder or a text file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    write_text(folder / "table.txt", table(results))
    write_text(folder / "table.md", table(results, markdown=True))
    return [learning_curves(results, model, folder / f"curves-{model}.png") for model in models(results)]


def environment(workers: int) -> dict[str, Any]:
    """The hardware and software, without paths and host names."""
    build = build_config()
    return {
        "rnnkernels": build["version"],
        "torch": build["torch"],
        "python": platform.python_version(),
        "system": " ".join((platform.system(), platform.machine())),
        "processor": _processor(),
        "instruction_set": build["active_instruction_set"],
        "cores": cores(),
        "workers": workers,  # processes of one thread each
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def cores() -> int:
    """The number of CPUs that this process may use, which may be fewer than the host has."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
