"""Parts of a run on a GPU: the clock, the points and their peers, the floor, the GPU's description."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmark_helpers import BENCH, LATENCIES, RATES, ROOT, TINY

from benchmarks import floor, gpu
from benchmarks.peers import PEERS, suits
from benchmarks.problem import Cell, Point, gpu_grid
from benchmarks.timing import EventStopwatch, rotation

# ----------------------------------------------------------------------------------------- clock


class Device:
    """A clock that advances only with the calls, and events that read it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls: list[str] = []

    def task(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.seconds += seconds

        return call

    def event(self) -> DeviceEvent:
        return DeviceEvent(self)


class DeviceEvent:
    def __init__(self, device: Device) -> None:
        self.device, self.waited = device, False
        self.at: float | None = None

    def record(self) -> None:
        self.at = self.device.seconds

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: DeviceEvent) -> float:
        assert end.waited, "an event was read before it had happened"
        return 1e3 * (end.at - self.at)


def test_events_time_as_many_calls_as_fill_the_window() -> None:
    device = Device()
    stopwatch = EventStopwatch(device.event, window=0.0105, most_calls=50)
    quick, slow, tiny = (device.task(*what) for what in (("quick", 1e-3), ("slow", 1.0), ("tiny", 1e-6)))
    for task, seconds in ((quick, 1e-3), (slow, 1.0), (tiny, 1e-6)):
        assert [stopwatch(task) for _ in range(3)] == pytest.approx([seconds] * 3)
    assert [device.calls.count(name) for name in ("quick", "slow", "tiny")] == [1 + 10 + 10, 3, 1 + 50 + 50]


def test_a_rotation_calls_one_after_another() -> None:
    device = Device()
    task = rotation([device.task(name, 0.0) for name in "abc"])
    for _ in range(7):
        task()
    assert "".join(device.calls) == "abcabca"


# ---------------------------------------------------------------------------------------- points


def test_the_grid_has_all_sizes_and_precisions() -> None:
    points = gpu_grid()
    assert len(set(points)) == len(points)
    square = {(p.cell.H, p.cell.B, p.precision) for p in points if p.cell.T == 512 and not p.packed}
    sizes, batches = (64, 128, 256, 384, 512, 768, 1024, 2048), (1, 16, 64, 256)
    assert square >= {(h, b, dtype) for h in sizes for b in batches for dtype in ("float32", "bfloat16")}
    assert len([p for p in points if p.cell.T == 4096]) == 2
    (packed,) = [p for p in points if p.packed]
    assert len(packed.lengths) == packed.cell.B
    assert max(packed.lengths) == packed.cell.T
    assert packed.lengths == tuple(sorted(packed.lengths, reverse=True))
    assert min(packed.lengths) >= 1
    assert packed.rows == pytest.approx(packed.cell.B / 2, rel=0.05)
    assert {p.precision for p in gpu_grid(["bfloat16"])} == {"bfloat16"}


def test_points_that_do_not_suit_a_peer() -> None:
    whole, packed = Point(Cell(16, 512, 64, 512), "float32"), Point(Cell(64, 512, 64, 256), "bfloat16", True)
    assert [name for name in PEERS if suits(name, packed)] == ["rnn", "half", "graph", "loop"]
    assert [name for name in PEERS if not suits(name, whole)] == ["half"]
    for cell in (Cell(64, 512, 64, 768), Cell(16, 4096, 64, 256)):  # another shape of the grid, a long T
        assert [name for name in PEERS if not suits(name, whole._replace(cell=cell))] == [
            "half",
            "compile",
            "flash",
        ]
    assert suits("compile", Point(TINY, "float32"))


# ----------------------------------------------------------------------------------------- floor


def test_the_floor_follows_from_rates_and_latencies() -> None:
    # H 128 fits into one multiprocessor: a barrier, a read, a product, and the multiply-adds of its one row.
    share = 2 * 128**2 / (8e14 / 128)
    assert floor.scan_seconds(RATES, "bfloat16", 1, 128) == pytest.approx(5e-8 + share)
    # H 2048 fits into all multiprocessors together only.
    share = 2 * 2048**2 / 8e14
    assert floor.scan_seconds(RATES, "bfloat16", 1, 2048) == pytest.approx(4.4e-7 + share)
    # float32 is three products of TF32 where that is faster than multiply-adds.
    assert RATES.product_rate("float32") == pytest.approx(4e14 / 3)
    both = floor.step_floor(RATES, "bfloat16", 256, 1024, backward=True)
    alone = floor.step_floor(RATES, "bfloat16", 256, 1024, backward=False)
    assert both["scan_s"] == pytest.approx(2 * alone["scan_s"] + 2 * 256 * 1024**2 / 8e14)
    assert alone["memory_s"] == pytest.approx(2 * 2 * 256 * 1024 / 3e12)
    assert alone["floor_s"] == max(alone["scan_s"], alone["memory_s"])


def test_without_latencies_the_floor_is_the_arithmetic() -> None:
    rates = dataclasses.replace(RATES, latencies=None, why_no_latencies="there is no nvcc")
    assert floor.scan_seconds(rates, "float32", 4096, 2048) == pytest.approx(2 * 4096 * 2048**2 / (4e14 / 3))


def test_before_clusters_a_large_matrix_needs_all_multiprocessors() -> None:
    old = {name: seconds for name, seconds in LATENCIES.items() if name != "cluster_read_s"}
    rates = dataclasses.replace(RATES, latencies=old)
    assert (
        floor.scan_seconds(rates, "bfloat16", 1, 512) > 4e-7 > floor.scan_seconds(RATES, "bfloat16", 1, 512)
    )


def test_rates_are_measured_and_survive_json(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = BENCH.new_stopwatch()
    rates = floor.measure_rates(stopwatch, "cpu", 16, 1 << 12, latencies=lambda: LATENCIES)
    assert rates.copy_bytes_per_s > 0
    assert min(rates.flops_per_s.values()) > 0
    assert rates.launch_s > 0
    assert floor.Rates(**json.loads(json.dumps(dataclasses.asdict(rates)))) == rates
    monkeypatch.setattr(floor, "find_tool", lambda name: None)
    rates = floor.measure_rates(stopwatch, "cpu", 16, 1 << 12)
    assert rates.latencies is None
    assert "no nvcc" in rates.why_no_latencies


def test_the_output_of_the_latency_program() -> None:
    assert floor.parse_latencies('{"barrier_s": 2e-08, "flag_s": 4e-07}\n') == {
        "barrier_s": 2e-8,
        "flag_s": 4e-7,
    }
    with pytest.raises(RuntimeError, match="latencies are not measured"):
        floor.parse_latencies('{"barrier_s": -1e-09}\n')


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_latency_program_compiles(tmp_path: Path, arch: str) -> None:
    command = ["nvcc", "-std=c++20", f"-arch={arch}", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-c"]
    command += [str(ROOT / "benchmarks" / "latencies.cu"), "-o", str(tmp_path / "latencies.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------ gpu


@pytest.mark.parametrize(
    ("capability", "arch", "nvcc"),
    [
        ((9, 0), "9.0a", "sm_90a"),
        ((10, 0), "10.0", "sm_100"),
        ((8, 6), "8.6", "sm_86"),
        ((12, 0), "12.0", "sm_120"),
    ],
)
def test_the_target_of_a_gpu(capability: tuple[int, int], arch: str, nvcc: str) -> None:
    assert gpu.arch_list(capability) == arch
    assert gpu.nvcc_arch(capability) == nvcc


def test_the_output_of_nvidia_smi() -> None:
    line = "580.1, 345 MHz, 1980 MHz, 2619 MHz, 700.00 W, 34, Enabled, Disabled"
    found = gpu.parse_nvidia_smi(line)
    assert (found["driver"], found["sm_clock_most"], found["mig"]) == ("580.1", "1980 MHz", "Disabled")
    assert gpu.parse_nvidia_smi("no devices were found") == {}


def test_tf32_is_set_for_both_libraries_and_restored() -> None:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for allowed in (True, False):
        with gpu.tf32_allowed(allowed):
            assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
    assert [backend.allow_tf32 for backend in backends] == before
