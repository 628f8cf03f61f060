"""The NVIDIA GPU of a measurement: whether there is one, how to compile for it, and its description."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# The fields of nvidia-smi, and their names in the JSON file.
_FIELDS = {
    "driver_version": "driver",
    "clocks.sm": "sm_clock",
    "clocks.max.sm": "sm_clock_most",
    "clocks.mem": "memory_clock",
    "power.limit": "power_limit",
    "temperature.gpu": "temperature",
    "persistence_mode": "persistence_mode",
    "mig.mode.current": "mig",
}


def no_gpu() -> str | None:
    """Why nothing can be measured on a GPU here; None if it can."""
    if torch.cuda.is_available():
        return None
    why = "finds none that works" if torch.version.cuda else "was built without CUDA"
    return f"this needs an NVIDIA GPU and a torch that uses it; torch {torch.__version__} {why}"


def arch_list(capability: tuple[int, int]) -> str:
    """TORCH_CUDA_ARCH_LIST for this GPU alone. Hopper's own instructions need the target 9.0a."""
    return "9.0a" if capability == (9, 0) else "{}.{}".format(*capability)


def nvcc_arch(capability: tuple[int, int]) -> str:
    return "sm_" + arch_list(capability).replace(".", "")


def find_tool(name: str) -> str | None:
    """A program on PATH, beside the interpreter, or in the CUDA toolkit."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    folders = [os.environ.get("PATH", ""), str(Path(sys.executable).parent)]
    return shutil.which(
        name, path=os.pathsep.join(folders + [str(Path(home, "bin")) for home in homes if home])
    )


def first_line(program: str, *arguments: str, holding: str = "") -> str:
    """The first line of a program's output that holds a word; empty if the program cannot be run."""
    path = find_tool(program)
    try:
        done = subprocess.run([path or program, *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line.strip() for line in done.stdout.splitlines() if holding in line and line.strip()]
    return lines[0] if lines and done.returncode == 0 else ""


def describe() -> dict[str, Any]:
    """The properties of the GPU that figures depend on, besides host.environment."""
    properties = torch.cuda.get_device_properties(0)
    uuid = getattr(properties, "uuid", "")  # torch and nvidia-smi may count devices in different orders
    which = [f"--id=GPU-{uuid}"] if uuid else []
    query = [f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": first_line("nvcc", "--version", holding="release") or None,
        **parse_nvidia_smi(first_line("nvidia-smi", *which, *query)),
    }


def parse_nvidia_smi(line: str) -> dict[str, str]:
    values = [value.strip() for value in line.split(",")]
    return dict(zip(_FIELDS.values(), values, strict=True)) if len(values) == len(_FIELDS) else {}


def line(gpu: dict[str, Any]) -> str:
    """The short form, for the head of a report."""
    return (
        f"{gpu['name']}, {gpu['multiprocessors']} multiprocessors, driver {gpu.get('driver', 'unknown')}, "
        f"CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}"
    )


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Allow TF32 to torch's matrix products and to cuDNN alike, or to neither.

    By default torch allows it to cuDNN alone, so that a comparison would be unfair.
    """
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, was_allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = was_allowed
