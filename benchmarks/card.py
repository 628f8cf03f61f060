"""The NVIDIA card that a measurement runs on: whether there is one, how to build for it, what it says."""

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

# What nvidia-smi is asked, and the names under which it stands in the JSON.
_ASKED = {
    "driver_version": "driver",
    "clocks.sm": "sm_clock",
    "clocks.max.sm": "sm_clock_most",
    "clocks.mem": "memory_clock",
    "power.limit": "power_limit",
    "temperature.gpu": "temperature",
    "persistence_mode": "persistence_mode",
    "mig.mode.current": "mig",
}


def no_card() -> str | None:
    """Why nothing can be measured on a GPU here; None where it can."""
    if torch.cuda.is_available():
        return None
    why = "which finds none that works" if torch.version.cuda else "which was built without CUDA"
    return f"this needs an NVIDIA GPU and a torch that uses it; here is torch {torch.__version__}, {why}"


def arch_list(capability: tuple[int, int]) -> str:
    """TORCH_CUDA_ARCH_LIST for this card alone. Hopper's own instructions have a target of their own."""
    return "9.0a" if capability == (9, 0) else "{}.{}".format(*capability)


def nvcc_arch(capability: tuple[int, int]) -> str:
    return "sm_" + arch_list(capability).replace(".", "")


def find_tool(name: str) -> str | None:
    """A program on PATH, beside the interpreter, or in the CUDA toolkit."""
    folders = [os.environ.get("PATH", ""), str(Path(sys.executable).parent)]
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        folders += [str(Path(home, "bin"))] if home else []
    return shutil.which(name, path=os.pathsep.join(folders))


def first_line(command: list[str], holding: str = "") -> str | None:
    """The first line of a program's output that holds a word; None where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if holding in line and line.strip()]
    return lines[0] if lines and done.returncode == 0 else None


def card() -> dict[str, Any]:
    """What the figures depend on beside machine.environment."""
    properties = torch.cuda.get_device_properties(0)
    nvcc = find_tool("nvcc")
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": first_line([nvcc, "--version"], "release") if nvcc else None,
        **_nvidia_smi(str(getattr(properties, "uuid", ""))),
    }


def _nvidia_smi(uuid: str) -> dict[str, str]:
    program = find_tool("nvidia-smi")
    if program is None:
        return {}
    # The order in which torch counts cards is not nvidia-smi's.
    which = [f"--id=GPU-{uuid}"] if uuid else []
    command = [program, *which, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    return parse_nvidia_smi(first_line(command) or "")


def parse_nvidia_smi(line: str) -> dict[str, str]:
    values = [value.strip() for value in line.split(",")]
    return dict(zip(_ASKED.values(), values, strict=True)) if len(values) == len(_ASKED) else {}


def card_line(card: dict[str, Any]) -> str:
    """The short form, for the head of a table."""
    return (
        f"{card['name']}, {card['multiprocessors']} multiprocessors, driver {card.get('driver', 'unknown')}, "
        f"CUDA {card['cuda']}, cuDNN {card['cudnn']}"
    )


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """TF32 for what multiplies float32, in torch's products and in cuDNN alike, or for nobody.

    torch allows it to cuDNN and not to products unless told otherwise, which compares unlike things.
    """
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32
    products.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, cudnn.allow_tf32 = before
