"""Interleaved timing: all tasks of a cell share one stretch of time, and its noise with it.

The tasks take turns, in an order drawn anew each round so that nobody always follows the same
neighbour. A turn is a short rest (worker threads of the task before stop spinning), one untimed
call (caches and threads become this task's), then timed calls. Medians are reported, because on a
shared machine the mean belongs to the neighbours.

On a GPU calls return before the work is done, so there the stopwatch is a pair of the device's own events
around some calls in a row (`EventStopwatch`), and a task rotates through several sets of inputs (`Rotation`).
Caches are not emptied between calls: a training step does not find them empty either.
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
from typing import Protocol, TypeVar

Task = Callable[[], object]
Stopwatch = Callable[[Task], float]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Plan:
    """How long to measure. All times in seconds."""

    seconds: float = 20.0  # for all tasks together; begins no round after that
    rounds: int = 15  # turns of each task, at most
    least_rounds: int = 3  # even where the seconds are over
    turn: float = 0.02  # timed calls of one turn fill about this
    turn_calls: int = 20  # but are no more than this
    rest: float = 0.005  # an OpenMP worker of libgomp spins for about 4 ms
    warmup: float = 0.3  # each task is warmed until this is over
    warmup_calls: int = 3  # or this many calls were made (TorchScript specialises on the second)
    slow: float = 2.0  # a task that takes longer than this a call ...
    slow_calls: int = 2  # ... is called only so often


@dataclass
class Timing:
    """The timed calls of one task, in seconds, in the order they were made."""

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
    """The q-quantile, linear between the two nearest values (NumPy's default)."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def wall_clock(task: Task) -> float:
    """Time of one call; dropping its result is a part of it, as it is in a training loop."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def processor_clock(task: Task) -> float:
    """What a call keeps processors busy: its time on one thread, where others use the machine as well."""
    start = time.process_time()
    task()
    return time.process_time() - start


class Event(Protocol):
    """What torch.cuda.Event(enable_timing=True) has of it."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float: ...  # milliseconds


class EventStopwatch:
    """Seconds a call by the device's clock: two events around as many calls as fill a window.

    One call alone would be timed with its launch; in a row, the device goes from one to the next as fast
    as it and the host can, which is what a training loop sees.
    """

    def __init__(self, new_event: Callable[[], Event], window: float = 0.003, most_calls: int = 100) -> None:
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
        each = begin.elapsed_time(end) / 1e3 / calls
        self._calls[task] = max(1, min(self._most, int(self._window / max(each, 1e-9))))
        return each


class Rotation:
    """One task of several in turn, each with inputs of its own, so that none finds its inputs in a cache
    only because it has just read them."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = itertools.cycle(tasks)

    def __call__(self) -> object:
        return next(self._tasks)()


def measure(
    tasks: Mapping[Key, Task], plan: Plan, *, seed: int = 0, stopwatch: Stopwatch = wall_clock
) -> dict[Key, Timing]:
    """Times the tasks against each other. Each must have been called once before, to compile."""
    with _no_garbage_collection():
        start = time.perf_counter()
        expected = {key: _warm_up(task, plan, stopwatch) for key, task in tasks.items()}
        # A slow task was warmed by the caller's own call, so this one counts already.
        timings = {
            key: Timing([call], True) if call > plan.slow else Timing([]) for key, call in expected.items()
        }
        order = list(tasks)
        chance = random.Random(seed)
        for done in range(plan.rounds):
            if done >= plan.least_rounds and time.perf_counter() - start > plan.seconds:
                break
            chance.shuffle(order)
            for key in order:
                timing = timings[key]
                if not timing.slow or len(timing.times) < plan.slow_calls:
                    timing.times += _turn(tasks[key], expected[key], plan, stopwatch)
    return timings


def _warm_up(task: Task, plan: Plan, stopwatch: Stopwatch) -> float:
    """Calls a task until it is warm; returns the time of its last call."""
    spent = 0.0
    for _ in range(plan.warmup_calls):
        call = stopwatch(task)
        spent += call
        if spent > plan.warmup:
            break
    return call


def _turn(task: Task, expected: float, plan: Plan, stopwatch: Stopwatch) -> list[float]:
    time.sleep(plan.rest)
    if expected < plan.turn:  # in a longer call the first moments do not count
        task()
    calls = max(1, min(plan.turn_calls, int(plan.turn / max(expected, 1e-9))))
    return [stopwatch(task) for _ in range(calls)]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """As timeit does it: a collection in the middle of a call would be timed with it."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
