"""The device that something is timed on, how time is taken there, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .timing import EventStopwatch, Plan, Stopwatch, wall_clock

# Events already average over calls, and nothing spins on a device that waits.
CUDA_PLAN = Plan(seconds=3.0, rounds=5, turn=0.01, turn_calls=2, rest=0.0, warmup=0.05)
CUDA_QUICK_PLAN = Plan(seconds=0.2, rounds=2, turn=0.002, turn_calls=1, rest=0.0, warmup=0.01)
INPUT_SETS = 3


@dataclass(frozen=True)
class Bench:
    device: str
    new_stopwatch: Callable[[], Stopwatch]  # one for each measurement: it remembers its tasks
    plan: Plan
    input_sets: int = INPUT_SETS  # that take turns
    clock: Callable[[], float] = time.perf_counter  # of the run as a whole


def cuda_bench(quick: bool) -> Bench:
    def new_stopwatch() -> Stopwatch:
        return EventStopwatch(lambda: torch.cuda.Event(enable_timing=True))

    return Bench("cuda", new_stopwatch, CUDA_QUICK_PLAN if quick else CUDA_PLAN)


def cpu_bench(plan: Plan, input_sets: int = 1) -> Bench:
    return Bench("cpu", lambda: wall_clock, plan, input_sets)
