"""Shared by the tests of the benchmarks: tiny problems, a short timing plan, a made-up GPU and its rates."""

from __future__ import annotations

from typing import Any

from helpers import ROOT as ROOT

from benchmarks import floor, recurrence
from benchmarks.problem import Cell, Point
from benchmarks.timing import Bench, TimingPlan

TINY = Cell(3, 7, 4, 5)
BENCH = Bench(TimingPlan(seconds=0.1, rounds=1, least_rounds=1, turn=0.0, rest=0.0, warmup=0.0), input_sets=2)
POINTS = [Point(TINY), Point(TINY, "bfloat16", packed=True), Point(TINY, "tf32")]
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
CARD = {"name": "NVIDIA Test 1", "capability": [9, 0], "multiprocessors": 9, "cuda": "13.0", "cudnn": 91000}


def gpu_run(
    points: list[Point] = POINTS, peers: tuple[str, ...] = ("rnn", "loop"), **more: Any
) -> dict[str, Any]:
    """A run of `recurrence --device cuda` with the CPU as its device."""
    settings: dict[str, Any] = {"bench": BENCH, "rates": RATES, "budget": 1e6} | more
    return recurrence.measure_points(points, peers, **settings)
