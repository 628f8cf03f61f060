"""Describes the host of a measurement, and its load by other processes."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import ROOT, gpu

# The instruction sets that decide how fast a matrix product can be.
_INSTRUCTION_SETS = (
    "fma", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "sve",
)  # fmt: skip


def environment(threads: int, device: str = "cpu", package: bool = True) -> dict[str, Any]:
    """Everything needed to judge or repeat the figures, without paths or host names."""
    cpu, jax = _cpu(), _version("jax")
    flags = (cpu.get("flags") or cpu.get("Features", "")).split()  # on x86 and on ARM
    return {
        **({"card": gpu.describe()} if device == "cuda" else {}),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "cpu": cpu.get("model name", platform.machine()),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "cores": _cores(),
        "threads": threads,
        "os": " ".join((platform.system(), platform.machine(), *platform.libc_ver())).strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_parallel": [
            line.strip() for line in torch.__config__.parallel_info().splitlines() if line.strip()
        ],
        "jax": jax and {"version": jax, "jaxlib": _version("jaxlib")},
        "rnnkernels": _build_config() if package else {},
    }


def environment_line(environment: dict[str, Any]) -> str:
    """The short form, for the head of a report."""
    package = environment["rnnkernels"]
    parts = [gpu.line(environment["card"])] if "card" in environment else []
    parts += [
        f"{environment['cpu']}, {environment['threads']} threads on {environment['cores']} cores",
        f"rnnkernels {package.get('version', '')}".strip(),
        f"torch {environment['torch']} {environment['torch_cpu_capability']}",
    ]
    if environment["jax"]:
        parts.append(f"jax {environment['jax']['version']}")
    return "; ".join([*parts, f"Python {environment['python']}", environment["date"][:10]])


def git_commit() -> str | None:
    """The commit of this checkout, followed by `+` if tracked files were changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _build_config() -> dict[str, Any]:
    import rnnkernels  # not at the top, because a GPU report describes the host before it builds the package

    return dict(rnnkernels.build_config())


def _cpu() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo, which other systems than Linux do not have."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def _cores() -> int:
    """The cores that this process may use; a container may grant fewer than the host has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class OtherLoad:
    """Measures how many cores other processes have kept busy, on average, since this object was made.

    A second busy process makes an OpenMP barrier wait for the scheduler, which can slow it a hundredfold.
    """

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> float | None:
        """None if the system does not say."""
        (others, seconds), (others_before, seconds_before) = self._now(), self._start
        if others is None or others_before is None or seconds <= seconds_before:
            return None
        return max(0.0, (others - others_before) / (seconds - seconds_before))

    @staticmethod
    def _now() -> tuple[float | None, float]:
        """Core seconds that other processes have used since boot, stolen time included; and the clock."""
        own, clock = sum(os.times()[:4]), time.monotonic()
        try:
            first = Path("/proc/stat").read_text().splitlines()[0].split()
        except (OSError, IndexError):
            return None, clock
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own, clock
