"""How fast a step could be at best on this card: the floor that the measured times are compared with.

Measured in the same run: the rate of a large copy, of large matrix products in each precision (torch), and
the latencies of latencies.cu. From them, for a step of B rows and H units, whatever the implementation,

    walk  = min over teams of (exchange + one product's latency + the team's share of the multiply-adds)
    floor = max(walk, what has to be read and written / the copy's rate)

where a team of 1, 2, 4, 8, 16 or all multiprocessors keeps W_hh, teams share the rows, and the exchange
goes through a block's memory, a cluster's, or the L2 cache. Forward and backward are two walks and dW_hh.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .card import find_tool, nvcc_arch, tf32_allowed
from .timing import Stopwatch

# Microseconds a step, bfloat16, forward, for B 1, 32, 128, 256: a model made before there was a kernel, from
# published latencies of H100 and H800 (__syncthreads 23 to 85 cycles, a peer's shared memory 180 to 210, a
# flag through L2 160 ns). Good to a factor of two; the floor is from it where no latencies were measured.
MODELLED_BATCHES = (1, 32, 128, 256)
MODELLED = {
    128: (0.19, 0.19, 0.19, 0.19),
    256: (0.29, 0.29, 0.31, 0.33),
    512: (0.33, 0.33, 0.39, 0.50),
    1024: (0.50, 0.50, 0.86, 1.2),
    2048: (0.67, 1.0, 2.4, 4.1),
}
CLUSTERS = (2, 4, 8, 16)
# Of W_hh in one multiprocessor's registers and shared memory: H 384 in bfloat16, just.
HELD_BYTES = 300_000
# bfloat16 computes with itself; float32 exactly, by multiply-adds or by three products of TF32.
ELEMENT = {"bfloat16": 2, "float32": 4, "tf32": 4}
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    copy_bytes_per_s: float  # read and written
    flops_per_s: Mapping[str, float]  # by precision: bfloat16, float32, tf32
    multiprocessors: int
    launch_s: float | None = None  # one small kernel after another, from Python
    graph_node_s: float | None = None  # the same inside a CUDA graph
    latencies: Mapping[str, float] | None = None  # of latencies.cu
    why_no_latencies: str | None = None

    def product_rate(self, precision: str) -> float:
        if precision == "float32":
            return max(self.flops_per_s["float32"], self.flops_per_s["tf32"] / 3)
        return self.flops_per_s[precision]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def rates_from(document: Mapping[str, Any]) -> Rates:
    return Rates(**document)


# ------------------------------------------------------------------------------------ the floor


def walk_seconds(rates: Rates, precision: str, rows: float, hidden: int) -> float:
    """The least time of one step in one direction."""
    products = 2.0 * rows * hidden**2 / rates.product_rate(precision)
    if rates.latencies is None:
        return max(1e-6 * modelled_us(rows, hidden), products)
    return min(
        exchange + rates.latencies["product_s"] + share
        for exchange, share in _teams(rates, rates.latencies, precision, rows, hidden)
    )


def _teams(
    rates: Rates, latencies: Mapping[str, float], precision: str, rows: float, hidden: int
) -> list[tuple[float, float]]:
    """Of each size of team that can hold W_hh: its exchange, and the time of its multiply-adds."""
    everyone = rates.multiprocessors
    exchanges = {1: latencies["barrier_s"] + latencies["shared_read_s"]}
    if "cluster_read_s" in latencies:
        through_peer = latencies["barrier_s"] + latencies["cluster_read_s"]
        exchanges |= {size: through_peer for size in CLUSTERS if size < everyone}
    exchanges[everyone] = latencies["barrier_s"] + latencies["flag_s"]
    weights = ELEMENT[precision] * hidden**2
    found = []
    for size, exchange in exchanges.items():
        if weights / size <= HELD_BYTES or size == everyone:
            each = max(1.0, rows / (everyone // size))
            rate = rates.product_rate(precision) * size / everyone
            found.append((exchange, 2.0 * each * hidden**2 / rate))
    return found


def step_floor(rates: Rates, precision: str, rows: float, hidden: int, backward: bool) -> dict[str, float]:
    """Seconds of a step: the floor, its parts, and the model's number where it has one."""
    walk = walk_seconds(rates, precision, rows, hidden)
    if backward:
        walk = 2 * walk + 2.0 * rows * hidden**2 / rates.product_rate(precision)
    # Forward reads p and writes h; backward reads h and the gradient, and writes that of p.
    sequences = 5 if backward else 2
    moved = sequences * ELEMENT[precision] * rows * hidden / rates.copy_bytes_per_s
    floor = {"floor_s": max(walk, moved), "walk_s": walk, "memory_s": moved}
    if not backward:
        floor["modelled_bfloat16_s"] = 1e-6 * modelled_us(rows, hidden)
    return floor


def modelled_us(rows: float, hidden: float) -> float:
    """The table, linear between its entries in the logarithms of B and H, and level beyond its edges."""
    sizes = list(MODELLED)
    low, high, part = _between(sizes, hidden)
    below, above = (_interpolated(MODELLED_BATCHES, MODELLED[sizes[index]], rows) for index in (low, high))
    return math.exp((1 - part) * math.log(below) + part * math.log(above))


def _interpolated(places: tuple[int, ...], values: tuple[float, ...], at: float) -> float:
    low, high, part = _between(places, at)
    return math.exp((1 - part) * math.log(values[low]) + part * math.log(values[high]))


def _between(places: list[int] | tuple[int, ...], at: float) -> tuple[int, int, float]:
    """The two places around it, and how far between them it lies."""
    if at <= places[0]:
        return 0, 0, 0.0
    for index, (low, high) in enumerate(itertools.pairwise(places)):
        if at <= high:
            return index, index + 1, math.log(at / low) / math.log(high / low)
    return len(places) - 1, len(places) - 1, 0.0


# ---------------------------------------------------------------------------- what is measured


def measure_rates(
    stopwatch: Stopwatch,
    device: str = "cuda",
    product_size: int = 8192,
    copy_bytes: int = 1 << 30,
    latencies: Callable[[], dict[str, float]] | None = None,
) -> Rates:
    """The card's own rates, through torch; the latencies by a small program of their own."""
    on_card = device == "cuda"
    found: dict[str, float] | None = None
    why = None
    try:
        found = (latencies or measure_latencies)()
    except (OSError, RuntimeError) as error:
        why = str(error)
    count = torch.cuda.get_device_properties(0).multi_processor_count if on_card else 1
    return Rates(
        copy_bytes_per_s=_copy_rate(stopwatch, device, copy_bytes),
        flops_per_s={name: _product_rate(stopwatch, device, product_size, name) for name in ELEMENT},
        multiprocessors=count,
        launch_s=_launch(stopwatch, device),
        graph_node_s=_graph_node(stopwatch) if on_card else None,
        latencies=found,
        why_no_latencies=why,
    )


def best(stopwatch: Stopwatch, task: Callable[[], object]) -> float:
    """The least of some readings: what the card can do, not what it did on average."""
    stopwatch(task)
    return min(stopwatch(task) for _ in range(REPEATS))


def _copy_rate(stopwatch: Stopwatch, device: str, size: int) -> float:
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / best(stopwatch, lambda: target.copy_(source))


def _product_rate(stopwatch: Stopwatch, device: str, size: int, precision: str) -> float:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in "ab")
    out = torch.empty_like(a)
    with tf32_allowed(precision == "tf32"):
        return 2.0 * size**3 / best(stopwatch, lambda: torch.mm(a, b, out=out))


def _launch(stopwatch: Stopwatch, device: str) -> float:
    one = torch.zeros(1, device=device)
    return best(stopwatch, lambda: [one.add_(1) for _ in range(100)]) / 100


def _graph_node(stopwatch: Stopwatch) -> float:
    from .gpu_peers import capture_on_cuda

    one = torch.zeros(1, device="cuda")
    return best(stopwatch, capture_on_cuda(lambda: [one.add_(1) for _ in range(500)])) / 500


def measure_latencies() -> dict[str, float]:
    """Builds latencies.cu for this card and runs it. RuntimeError, with a sentence, where that fails."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise RuntimeError("latencies are not measured: there is no nvcc")
    root = Path(__file__).resolve().parent.parent
    program = root / "build" / "latencies"
    program.parent.mkdir(exist_ok=True)
    arch = nvcc_arch(torch.cuda.get_device_capability(0))
    build = [nvcc, "-O3", "-std=c++20", f"-arch={arch}", "-I", str(root / "csrc")]
    build += [str(root / "benchmarks" / "latencies.cu"), "-o", str(program)]
    for command, limit in ((build, 60), ([str(program)], 30)):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"latencies are not measured: no end of {Path(command[0]).name}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(f"latencies are not measured: {said[-1] if said else 'no reason was given'}")
    return parse_latencies(done.stdout)


def parse_latencies(text: str) -> dict[str, float]:
    latencies: dict[str, float] = json.loads(text.strip().splitlines()[-1])
    if not all(seconds > 0 for seconds in latencies.values()):
        raise RuntimeError(f"latencies are not measured: the program says {latencies}")
    return latencies
