"""What a run on a GPU rests on: the clock, what is measured and left out, the floor, the card's target."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from benchmarks import card, floor
from benchmarks.bench import cpu_bench
from benchmarks.gpu_plan import Costs, Point, choose, grid, unsuited
from benchmarks.problem import OURS, Cell
from benchmarks.timing import EventStopwatch, Plan, Rotation

TINY = Cell(3, 7, 4, 5)
PLAN = Plan(seconds=0.1, rounds=1, least_rounds=1, turn=0.0, rest=0.0, warmup=0.0)
LATENCIES = {
    "barrier_s": 2e-8,
    "shared_read_s": 1e-8,
    "product_s": 2e-8,
    "cluster_read_s": 1e-7,
    "flag_s": 4e-7,
}
RATES = floor.Rates(
    copy_bytes_per_s=3e12,
    flops_per_s={"bfloat16": 8e14, "float32": 5e13, "tf32": 4e14},
    multiprocessors=128,
    latencies=LATENCIES,
)


# ----------------------------------------------------------------------------------------- clock


class Device:
    """A clock that stands still but for the calls, and events that read it."""

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
        self.device, self.at, self.waited = device, None, False

    def record(self) -> None:
        self.at = self.device.seconds

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: DeviceEvent) -> float:
        assert end.waited, "an event was read before it had happened"
        return 1e3 * (end.at - self.at)


def test_events_stand_around_as_many_calls_as_fill_the_window() -> None:
    device = Device()
    stopwatch = EventStopwatch(device.event, window=0.0105, most_calls=50)
    quick, slow, tiny = (device.task(*what) for what in (("quick", 1e-3), ("slow", 1.0), ("tiny", 1e-6)))
    for task, seconds in ((quick, 1e-3), (slow, 1.0), (tiny, 1e-6)):
        assert [stopwatch(task) for _ in range(3)] == pytest.approx([seconds] * 3)
    assert [device.calls.count(name) for name in ("quick", "slow", "tiny")] == [1 + 10 + 10, 3, 1 + 50 + 50]


def test_a_rotation_calls_one_after_another() -> None:
    device = Device()
    rotation = Rotation([device.task(name, 0.0) for name in "abc"])
    for _ in range(7):
        rotation()
    assert "".join(device.calls) == "abcabca"


# ------------------------------------------------------------------------------------------ plan


def test_the_grid_is_what_was_asked_for() -> None:
    points = grid()
    assert len(set(points)) == len(points)
    square = {(p.cell.H, p.cell.B, p.precision) for p in points if p.cell.T == 512 and not p.packed}
    sizes, batches = (64, 128, 256, 384, 512, 768, 1024, 2048), (1, 16, 64, 256)
    assert square >= {(h, b, dtype) for h in sizes for b in batches for dtype in ("float32", "bfloat16")}
    assert len([p for p in points if p.cell.T == 4096]) == 2
    (packed,) = [p for p in points if p.packed]
    assert len(packed.lengths) == packed.cell.B and max(packed.lengths) == packed.cell.T
    assert packed.lengths == tuple(sorted(packed.lengths, reverse=True)) and min(packed.lengths) >= 1
    assert packed.rows == pytest.approx(packed.cell.B / 2, rel=0.05)
    assert {p.precision for p in grid(["bfloat16"])} == {"bfloat16"}


def test_who_is_not_for_a_point() -> None:
    whole, packed = Point(Cell(16, 512, 64, 512), "float32"), Point(Cell(64, 512, 64, 256), "bfloat16", True)
    assert unsuited("scan", packed, packs=False) == "takes no packed batch"
    assert unsuited("rnn", packed, packs=True) is None
    assert unsuited("half", packed, packs=True) is None
    assert unsuited("half", whole, packs=True) == "is beside bfloat16 alone"
    assert unsuited("compile", whole, packs=False) is None
    assert "few shapes" in unsuited("compile", whole._replace(cell=Cell(64, 512, 64, 768)), packs=False)
    assert "one T" in unsuited("compile", whole._replace(cell=Cell(16, 4096, 64, 256)), packs=False)
    assert unsuited("compile", Point(TINY, "float32"), packs=False) is None


SMALL, LARGE = Point(Cell(1, 512, 64, 64), "float32"), Point(Cell(64, 512, 64, 2048), "float32")
COST = {"loop": 5.0, "compile": 20.0, "graph": 2.0}


def made_cost(point: Point, who: str) -> float:
    return COST.get(who, 1.0) * (2 if point == LARGE else 1)


def test_with_time_enough_nothing_is_left_out() -> None:
    wanted = {SMALL: ["rnn", "graph", "loop", "compile"], LARGE: ["rnn", "graph", "loop"]}
    choice = choose(wanted, 100.0, made_cost)
    assert choice.kept == wanted and not choice.dropped and not choice.points_dropped


def test_the_dearest_go_first_but_each_peer_is_measured_somewhere() -> None:
    wanted = {SMALL: ["rnn", "graph", "loop", "compile"], LARGE: ["rnn", "graph", "loop", "compile"]}
    # Of 93 seconds: compile at the large shape is 40, the loop there 10.
    assert choose(wanted, 60.0, made_cost).dropped == {LARGE: ["compile"]}
    assert choose(wanted, 45.0, made_cost).dropped == {LARGE: ["compile", "loop"]}
    # compile was measured before, so that its small shape is no longer kept for it.
    assert choose(wanted, 45.0, made_cost, measured=["compile"]).dropped == {
        LARGE: ["compile"],
        SMALL: ["compile"],
    }


def test_nn_rnn_stays_and_then_points_go_from_the_end() -> None:
    wanted = {SMALL: ["rnn", "graph", "loop"], LARGE: ["rnn", "graph", "loop"]}
    choice = choose(wanted, 9.0, made_cost)
    assert choice.kept == {SMALL: ["rnn"], LARGE: ["rnn"]}
    choice = choose(wanted, 8.0, made_cost)
    assert choice.kept == {SMALL: ["rnn"]} and choice.points_dropped == [LARGE]
    assert LARGE not in choice.dropped
    assert choose(wanted, 0.0, made_cost).kept == {}


def test_costs_learn_from_what_a_peer_took() -> None:
    costs = Costs()
    before = costs(SMALL, "scan")
    for seconds in (1.0, 3.0):
        costs.made("scan", seconds)
    guessed = Costs()
    guessed.made("scan", 2.0)
    assert costs(SMALL, "scan") == pytest.approx(guessed(SMALL, "scan"))
    assert costs(SMALL, "scan") < before < costs(SMALL, "compile")
    assert costs(SMALL, OURS) < costs(LARGE, OURS)


# ----------------------------------------------------------------------------------------- floor


def test_the_model_is_met_at_its_entries_and_lies_between_them_elsewhere() -> None:
    for hidden, row in floor.MODELLED.items():
        for batch, us in zip(floor.MODELLED_BATCHES, row, strict=True):
            assert floor.modelled_us(batch, hidden) == pytest.approx(us)
    assert 1.2 < floor.modelled_us(256, 1448) < 4.1
    assert floor.modelled_us(1, 64) == 0.19 and floor.modelled_us(4096, 4096) == pytest.approx(4.1)


def test_the_floor_follows_from_rates_and_latencies() -> None:
    # H 128 fits into one multiprocessor: a meeting, a read, a product, and the multiply-adds of its one row.
    share = 2 * 128**2 / (8e14 / 128)
    assert floor.walk_seconds(RATES, "bfloat16", 1, 128) == pytest.approx(5e-8 + share)
    # H 2048 does not; of 32 KB to 128 KB each, only all of them together hold it.
    share = 2 * 2048**2 / 8e14
    assert floor.walk_seconds(RATES, "bfloat16", 1, 2048) == pytest.approx(4.4e-7 + share)
    # float32 is three products of TF32 where that is faster than multiply-adds.
    assert RATES.product_rate("float32") == pytest.approx(4e14 / 3)
    both = floor.step_floor(RATES, "bfloat16", 256, 1024, backward=True)
    alone = floor.step_floor(RATES, "bfloat16", 256, 1024, backward=False)
    assert both["walk_s"] == pytest.approx(2 * alone["walk_s"] + 2 * 256 * 1024**2 / 8e14)
    assert alone["memory_s"] == pytest.approx(2 * 2 * 256 * 1024 / 3e12)
    assert alone["floor_s"] == max(alone["walk_s"], alone["memory_s"])
    assert alone["modelled_bfloat16_s"] == pytest.approx(1.2e-6) and "modelled_bfloat16_s" not in both


def test_without_latencies_the_model_stands_in() -> None:
    rates = dataclasses.replace(RATES, latencies=None, why_no_latencies="there is no nvcc")
    assert floor.walk_seconds(rates, "bfloat16", 1, 128) == pytest.approx(0.19e-6)
    assert floor.walk_seconds(rates, "float32", 4096, 2048) == pytest.approx(2 * 4096 * 2048**2 / (4e14 / 3))


def test_before_clusters_a_large_matrix_needs_all_multiprocessors() -> None:
    old = {name: seconds for name, seconds in LATENCIES.items() if name != "cluster_read_s"}
    rates = dataclasses.replace(RATES, latencies=old)
    assert (
        floor.walk_seconds(rates, "bfloat16", 1, 512) > 4e-7 > floor.walk_seconds(RATES, "bfloat16", 1, 512)
    )


def test_rates_are_measured_and_survive_json(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = cpu_bench(PLAN).new_stopwatch()
    rates = floor.measure_rates(stopwatch, "cpu", 16, 1 << 12, latencies=lambda: LATENCIES)
    assert rates.copy_bytes_per_s > 0 and min(rates.flops_per_s.values()) > 0 and rates.launch_s > 0
    assert floor.rates_from(json.loads(json.dumps(rates.document()))) == rates
    monkeypatch.setattr(floor, "find_tool", lambda name: None)
    rates = floor.measure_rates(stopwatch, "cpu", 16, 1 << 12)
    assert rates.latencies is None and "no nvcc" in rates.why_no_latencies


def test_what_the_program_of_latencies_prints() -> None:
    assert floor.parse_latencies('{"barrier_s": 2e-08, "flag_s": 4e-07}\n') == {
        "barrier_s": 2e-8,
        "flag_s": 4e-7,
    }
    with pytest.raises(RuntimeError, match="latencies are not measured"):
        floor.parse_latencies('{"barrier_s": -1e-09}\n')


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_program_of_latencies_compiles(tmp_path: Path, arch: str) -> None:
    command = ["nvcc", "-std=c++20", f"-arch={arch}", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-c"]
    command += [str(ROOT / "benchmarks" / "latencies.cu"), "-o", str(tmp_path / "latencies.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------ card


@pytest.mark.parametrize(
    ("capability", "arch", "nvcc"),
    [
        ((9, 0), "9.0a", "sm_90a"),
        ((10, 0), "10.0", "sm_100"),
        ((8, 6), "8.6", "sm_86"),
        ((12, 0), "12.0", "sm_120"),
    ],
)
def test_the_target_of_a_card(capability: tuple[int, int], arch: str, nvcc: str) -> None:
    assert card.arch_list(capability) == arch
    assert card.nvcc_arch(capability) == nvcc


def test_what_nvidia_smi_says() -> None:
    line = "580.1, 345 MHz, 1980 MHz, 2619 MHz, 700.00 W, 34, Enabled, Disabled"
    found = card.parse_nvidia_smi(line)
    assert (found["driver"], found["sm_clock_most"], found["mig"]) == ("580.1", "1980 MHz", "Disabled")
    assert card.parse_nvidia_smi("no devices were found") == {}


def test_tf32_is_for_everyone_or_for_nobody_and_then_as_before() -> None:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for allowed in (True, False):
        with card.tf32_allowed(allowed):
            assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
    assert [backend.allow_tf32 for backend in backends] == before
