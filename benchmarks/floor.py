"""The floor: how fast a step could be at best on this GPU. Measured times are compared with it.

The same run measures the rate of a large copy, the rates of large matrix products in each precision, and the
latencies of latencies.cu. From these follows, for a step of B rows and H units and any implementation,

    scan  = min over teams of (exchange + latency of one product + the team's part of the multiply-adds)
    floor = max(scan, bytes to be read and written / rate of the copy)

where a team of 1, 2, 4, 8, 16 or all multiprocessors keeps W_hh, teams divide the rows, and the exchange goes
through a block's shared memory, a cluster's, or L2. Forward + backward is two scans and dW_hh.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from . import ROOT
from .gpu import find_tool, nvcc_arch, tf32_allowed
from .timing import Stopwatch

CLUSTERS = (2, 4, 8, 16)
HELD_BYTES = 300_000  # of W_hh in a multiprocessor's registers and shared memory: H 384 in bfloat16
ELEMENT = {"bfloat16": 2, "float32": 4, "tf32": 4}  # bytes
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    copy_bytes_per_s: float  # read and written
    flops_per_s: Mapping[str, float]  # by precision: bfloat16, float32, tf32
    multiprocessors: int
    launch_s: float | None = None  # between two small kernels launched from Python
    graph_node_s: float | None = None  # between two small kernels of a CUDA graph
    latencies: Mapping[str, float] | None = None  # from latencies.cu
    why_no_latencies: str | None = None

    def product_rate(self, precision: str) -> float:
        """Float32 is exact either by multiply-adds or by three TF32 products."""
        if precision == "float32":
            return max(self.flops_per_s["float32"], self.flops_per_s["tf32"] / 3)
        return self.flops_per_s[precision]


# ------------------------------------------------------------------------------------- the floor


def scan_seconds(rates: Rates, precision: str, rows: float, hidden: int) -> float:
    """The least time of one step in one direction; without latencies that of the multiply-adds alone."""
    everyone, rate = rates.multiprocessors, rates.product_rate(precision)
    if rates.latencies is None:
        return 2.0 * rows * hidden**2 / rate
    barrier, latencies = rates.latencies["barrier_s"], rates.latencies
    exchanges = {1: barrier + latencies["shared_read_s"]}
    if "cluster_read_s" in latencies:
        exchanges |= {size: barrier + latencies["cluster_read_s"] for size in CLUSTERS if size < everyone}
    exchanges[everyone] = barrier + latencies["flag_s"]
    seconds = []
    for size, exchange in exchanges.items():
        if ELEMENT[precision] * hidden**2 / size <= HELD_BYTES or size == everyone:
            team_rows = max(1.0, rows / (everyone // size))
            seconds.append(exchange + 2.0 * team_rows * hidden**2 / (rate * size / everyone))
    return latencies["product_s"] + min(seconds)


def step_floor(rates: Rates, precision: str, rows: float, hidden: int, backward: bool) -> dict[str, float]:
    """Seconds per step: the floor and its two parts."""
    scan = scan_seconds(rates, precision, rows, hidden)
    if backward:
        scan = 2 * scan + 2.0 * rows * hidden**2 / rates.product_rate(precision)
    # Forward reads p and writes h; backward reads h and its gradient, and writes the gradient of p.
    sequences = 5 if backward else 2
    moved = sequences * ELEMENT[precision] * rows * hidden / rates.copy_bytes_per_s
    return {"floor_s": max(scan, moved), "scan_s": scan, "memory_s": moved}


# ------------------------------------------------------------------------------------- the rates


def measure_rates(
    stopwatch: Stopwatch,
    device: str = "cuda",
    product_size: int = 8192,
    copy_bytes: int = 1 << 30,
    latencies: Callable[[], dict[str, float]] | None = None,
) -> Rates:
    """The GPU's rates, measured with torch, and its latencies, measured by latencies.cu."""
    on_gpu = device == "cuda"

    def best(task: Callable[[], object]) -> float:
        """The least of several readings, because a floor needs what the GPU can do."""
        stopwatch(task)
        return min(stopwatch(task) for _ in range(REPEATS))

    def product_rate(precision: str) -> float:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b = (torch.randn(product_size, product_size, dtype=dtype, device=device) for _ in "ab")
        out = torch.empty_like(a)
        with tf32_allowed(precision == "tf32"):
            return 2.0 * product_size**3 / best(lambda: torch.mm(a, b, out=out))

    def graph_node() -> float:
        from .loops import capture_on_cuda

        return best(capture_on_cuda(lambda: [one.add_(1) for _ in range(500)])) / 500

    found, why = None, None
    try:
        found = (latencies or measure_latencies)()
    except (OSError, RuntimeError) as error:
        why = str(error)
    source = torch.randint(0, 256, (copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    one = torch.zeros(1, device=device)
    return Rates(
        copy_bytes_per_s=2 * copy_bytes / best(lambda: target.copy_(source)),
        flops_per_s={name: product_rate(name) for name in ELEMENT},
        multiprocessors=torch.cuda.get_device_properties(0).multi_processor_count if on_gpu else 1,
        launch_s=best(lambda: [one.add_(1) for _ in range(100)]) / 100,
        graph_node_s=graph_node() if on_gpu else None,
        latencies=found,
        why_no_latencies=why,
    )


def measure_latencies() -> dict[str, float]:
    """Build latencies.cu for this GPU and run it. Raise RuntimeError, with the reason, if that fails."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise RuntimeError("latencies are not measured: there is no nvcc")
    program = ROOT / "build" / "latencies"
    program.parent.mkdir(exist_ok=True)
    arch = nvcc_arch(torch.cuda.get_device_capability(0))
    build = [nvcc, "-O3", "-std=c++20", f"-arch={arch}", "-I", str(ROOT / "csrc")]
    build += [str(ROOT / "benchmarks" / "latencies.cu"), "-o", str(program)]
    for command, limit in ((build, 60), ([str(program)], 30)):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            name = Path(command[0]).name
            raise RuntimeError(f"latencies are not measured: {name} took more than {limit} s") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(f"latencies are not measured: {said[-1] if said else 'no reason was given'}")
    return parse_latencies(done.stdout)


def parse_latencies(text: str) -> dict[str, float]:
    latencies: dict[str, float] = json.loads(text.strip().splitlines()[-1])
    if not all(seconds > 0 for seconds in latencies.values()):
        raise RuntimeError(f"latencies are not measured: the program printed {latencies}")
    return latencies
