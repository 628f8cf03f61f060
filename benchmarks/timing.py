"""Interleaved timing: all tasks of a measurement share one stretch of time and its noise.

In each round every task has one turn, in an order that is drawn anew. A turn is a short rest (so that the
worker threads of the previous task stop spinning), one untimed call (so that caches and threads belong to
this task), then timed calls. Medians are reported because means depend on what else runs on a shared host.

GPU calls return before the work is done, so on a GPU the stopwatch is a pair of device events around several
calls (`EventStopwatch`), and each task rotates through several sets of inputs (`rotation`). Caches are not
emptied between calls because a training step does not find them empty either.
"""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch

Task = Callable[[], object]
Stopwatch = Callable[[Task], float]  # seconds per call
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class TimingPlan:
    """How long to measure. All times in seconds."""

    seconds: float = 20.0  # for all tasks together; no round begins after this time
    rounds: int = 15  # at most
    least_rounds: int = 3  # even if the time is over
    turn: float = 0.02  # the timed calls of one turn take about this time
    turn_calls: int = 20  # timed calls per turn, at most
    rest: float = 0.005  # an OpenMP worker thread of libgomp spins for about 4 ms
    warmup: float = 0.3  # each task is called until this time is over
    warmup_calls: int = 3  # or until this many calls were made (TorchScript specializes on the second call)
    slow: float = 2.0  # a task whose call takes longer than this ...
    slow_calls: int = 2  # ... is timed only this often


QUICK_PLAN = TimingPlan(seconds=0.5, rounds=3)
# Events average over several calls, and no thread spins while the device works.
CUDA_PLAN = TimingPlan(seconds=3.0, rounds=5, turn=0.01, turn_calls=2, rest=0.0, warmup=0.05)
CUDA_QUICK_PLAN = TimingPlan(seconds=0.2, rounds=2, turn=0.002, turn_calls=1, rest=0.0, warmup=0.01)


@dataclass
class Timing:
    """The timed calls of one task, in seconds, in the order in which they were made."""

    times: list[float]
    slow: bool = False

    @property
    def median(self) -> float:
        return median(self.times)

    def figures(self) -> dict[str, float | int | bool]:
        return {
            "median_s": self.median,
            "p10_s": quantile(self.times, 0.1),
            "p90_s": quantile(self.times, 0.9),
            "calls": len(self.times),
            "slow": self.slow,
        }


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between the two nearest values."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


def wall_clock(task: Task) -> float:
    """Time of one call. Freeing its result counts, as it does in a training loop."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def processor_clock(task: Task) -> float:
    """Processor time of one call: its duration on one thread if other processes use the host as well."""
    start = time.process_time()
    task()
    return time.process_time() - start


class EventStopwatch:
    """Seconds per call by the device's clock: two events around as many calls as fill a window.

    A single call would be timed with its launch. In a row, launches overlap with work, as in training.
    `new_event` returns an object like `torch.cuda.Event(enable_timing=True)`.
    """

    def __init__(self, new_event: Callable[[], Any], window: float = 0.003, most_calls: int = 100) -> None:
        self._new_event, self._window, self._most = new_event, window, most_calls
        self._calls: dict[Task, int] = {}

    def __call__(self, task: Task) -> float:
        calls = self._calls.get(task, 1)
        begin, end = self._new_event(), self._new_event()
        begin.record()
        for _ in range(calls):
            task()
        end.record()
        end.synchronize()
        each: float = begin.elapsed_time(end) / 1e3 / calls
        self._calls[task] = max(1, min(self._most, int(self._window / max(each, 1e-9))))
        return each


def rotation(tasks: Sequence[Task]) -> Task:
    """One task made of several that take turns, so that none finds its inputs in a cache."""
    turns = itertools.cycle(tasks)
    return tasks[0] if len(tasks) == 1 else lambda: next(turns)()


@dataclass(frozen=True)
class Bench:
    """Where a benchmark runs, how time is taken there, and for how long."""

    plan: TimingPlan
    device: str = "cpu"
    new_stopwatch: Callable[[], Stopwatch] = lambda: wall_clock  # per measurement; it may have state
    input_sets: int = 1  # sets of inputs that take turns
    clock: Callable[[], float] = time.perf_counter  # of the whole run

    def measure(self, tasks: Mapping[Key, Task]) -> dict[Key, Timing]:
        """Time the tasks against each other. Each must have been called once before."""
        return measure(tasks, self.plan, self.new_stopwatch())

    def figures(self, tasks: Mapping[Key, Task]) -> dict[Key, dict[str, Any]]:
        """The same as plain values, for a JSON file."""
        return {key: timing.figures() for key, timing in self.measure(tasks).items()}

    def rotation(self, make: Callable[[int], Task]) -> Task:
        """The tasks `make(seed)` of all input sets in turn. Each is called once here."""
        tasks = [make(seed) for seed in range(self.input_sets)]
        for task in tasks:
            task()
        return rotation(tasks)


def cuda_bench(quick: bool) -> Bench:
    def new_stopwatch() -> Stopwatch:
        return EventStopwatch(lambda: torch.cuda.Event(enable_timing=True))

    return Bench(CUDA_QUICK_PLAN if quick else CUDA_PLAN, "cuda", new_stopwatch, input_sets=3)


def measure(tasks: Mapping[Key, Task], plan: TimingPlan, stopwatch: Stopwatch) -> dict[Key, Timing]:
    """Time the tasks against each other. Each must have been called once before, so that it is compiled."""
    with _no_garbage_collection():
        start = time.perf_counter()
        expected = {key: _warm_up(task, plan, stopwatch) for key, task in tasks.items()}
        # The caller's own call has warmed a slow task up, so the warm-up call counts as timed.
        timings = {
            key: Timing([call], True) if call > plan.slow else Timing([]) for key, call in expected.items()
        }
        order = list(tasks)
        chance = random.Random(0)
        for done in range(plan.rounds):
            if done >= plan.least_rounds and time.perf_counter() - start > plan.seconds:
                break
            chance.shuffle(order)
            for key in order:
                timing = timings[key]
                if not timing.slow or len(timing.times) < plan.slow_calls:
                    timing.times += _turn(tasks[key], expected[key], plan, stopwatch)
    return timings


def _warm_up(task: Task, plan: TimingPlan, stopwatch: Stopwatch) -> float:
    """Call a task until it is warm; return the time of its last call."""
    spent = 0.0
    for _ in range(plan.warmup_calls):
        call = stopwatch(task)
        spent += call
        if spent > plan.warmup:
            break
    return call


def _turn(task: Task, expected: float, plan: TimingPlan, stopwatch: Stopwatch) -> list[float]:
    time.sleep(plan.rest)
    if expected < plan.turn:  # in a longer call the first moments do not count
        task()
    calls = max(1, min(plan.turn_calls, int(plan.turn / max(expected, 1e-9))))
    return [stopwatch(task) for _ in range(calls)]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Turn garbage collection off, as timeit does, so that no call is timed with a collection."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
