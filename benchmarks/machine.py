"""What a measurement ran on, and what that machine can do at best."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .card import card, card_line

# The instruction sets that decide how fast a matrix product can be.
_INSTRUCTION_SETS = (
    "fma",
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
)


class Gemm:
    """A large square product by the library PyTorch uses: the machine's own rate."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        chance = torch.Generator().manual_seed(0)
        self.size = size
        self.flops = 2.0 * size**3
        self._a, self._b = (torch.randn(size, size, generator=chance, dtype=dtype) for _ in "ab")
        self._out = torch.empty(size, size, dtype=dtype)

    def __call__(self) -> Tensor:
        return torch.mm(self._a, self._b, out=self._out)


class CacheRead:
    """One thread reads what a recurrence of H units multiplies with, at every step: its cache's own rate."""

    def __init__(self, hidden: int, steps: int, element_size: int) -> None:
        import rnnkernels._C

        self.bytes, self.steps = matrix_bytes(hidden, element_size), steps
        self._read = rnnkernels._C.read_memory

    def __call__(self) -> float:
        return self._read(self.bytes, self.steps)


def matrix_bytes(hidden: int, element_size: int) -> int:
    """The recurrent matrix as the walk has it, in columns by the 16."""
    return element_size * hidden * (-(-hidden // 16) * 16)


class OtherLoad:
    """How many cores other processes kept busy, on average, since this was made.

    A second busy process makes an OpenMP barrier wait for the scheduler, which can cost a factor
    of a hundred, so a reader of the figures must know.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._start = _busy_seconds(), _own_seconds(), time.monotonic()

    def cores(self) -> float | None:
        """None where the system does not say."""
        busy, own, spent = _busy_seconds(), _own_seconds(), time.monotonic() - self._start
        if busy is None or self._busy is None or spent <= 0:
            return None
        return max(0.0, ((busy - self._busy) - (own - self._own)) / spent)


def environment(threads: int, device: str = "cpu", package: bool = True) -> dict[str, Any]:
    """All that a reader needs to judge, or repeat, the figures. No paths, no names of hosts."""
    jax = _version("jax")
    return {
        **({"card": card()} if device == "cuda" else {}),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "cpu": _cpu_model(),
        "instruction_sets": _cpu_flags(),
        "cores": _cores(),
        "threads": threads,
        "os": " ".join((platform.system(), platform.machine(), *platform.libc_ver())).strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_parallel": _parallel_info(),
        "jax": None if jax is None else {"version": jax, "jaxlib": _version("jaxlib")},
        "rnnkernels": _build_config() if package else {},
    }


def environment_line(environment: dict[str, Any]) -> str:
    """The short form, for the head of a table."""
    package = environment["rnnkernels"]
    parts = [card_line(environment["card"])] if "card" in environment else []
    parts += [
        f"{environment['cpu']}, {environment['threads']} threads on {environment['cores']} cores",
        f"rnnkernels {package.get('version', '')}".strip(),
        f"torch {environment['torch']} {environment['torch_cpu_capability']}",
    ]
    if environment["jax"]:
        parts.append(f"jax {environment['jax']['version']}")
    parts.append(f"Python {environment['python']}")
    return "; ".join(parts)


def git_commit() -> str | None:
    """The commit of this checkout, with `+` where tracked files were changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _build_config() -> dict[str, Any]:
    import rnnkernels

    return dict(rnnkernels.build_config())


def _busy_seconds() -> float | None:
    """Of all cores and processes since boot, time stolen by other guests of the host included."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    """Those this process may use, which in a container are fewer than the machine has."""
    count: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(count(0)) if count else os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """The first value of each field; empty where the system is not Linux."""
    fields: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _cpu_model() -> str:
    name = _cpuinfo().get("model name") or ""
    if not name and sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return name or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return [name for name in _INSTRUCTION_SETS if name in flags]


def _parallel_info() -> list[str]:
    lines = torch.__config__.parallel_info().splitlines()
    return [line.strip() for line in lines if line.strip()]
