"""Chooses what `recurrence --device cuda` measures in the time that it has.

The choice is made anew before each point, from the time that is left and from what the peers have cost so
far. rnnkernels and nn.RNN are never left out of a point. The most expensive of the others is left out
first; but a peer that has not been measured yet keeps its first point as long as possible, because then its
cost is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from .peers import RECURRENCE
from .problem import OURS, Point

ALWAYS = (OURS, RECURRENCE)

# Seconds to make a contender for all input sets and to check it, before it was measured.
SET_UP = {"compile": 40.0, "flash": 120.0, "scan": 4.0, "graph": 0.5}
SET_UP_OTHERS = 0.2
# Microseconds per step of the slow contenders: forward, and forward + backward.
STEP_US = {"loop": (20.0, 80.0), "compile": (15.0, 60.0), "graph": (5.0, 15.0), "scan": (10.0, 30.0)}
STEP_US_OTHERS = (2.0, 6.0)
FLOPS_PER_S = 2e13  # of a step's product
READINGS = 12  # per pass, warm-up included
LEAST_READING = 0.01  # seconds


class Costs:
    """Estimates the seconds that a contender takes at a point, and learns from what making it has cost."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}

    def made(self, who: str, seconds: float) -> None:
        self._seen.setdefault(who, []).append(seconds)

    def __call__(self, point: Point, who: str) -> float:
        seen = self._seen.get(who)
        seconds = sum(seen) / len(seen) if seen else SET_UP.get(who, SET_UP_OTHERS)
        for backward, us in enumerate(STEP_US.get(who, STEP_US_OTHERS)):
            call = 1e-6 * us * point.cell.T + point.cell.recurrence_flops(bool(backward)) / FLOPS_PER_S
            seconds += READINGS * max(LEAST_READING, call)
        return seconds


class Choice(NamedTuple):
    kept: dict[Point, list[str]]  # points to measure, with their peers
    dropped: dict[Point, list[str]]  # peers without time, at the points that are kept
    points_dropped: list[Point]


def choose(
    wanted: Mapping[Point, Sequence[str]],
    seconds: float,
    cost: Callable[[Point, str], float],
    measured: Collection[str] = (),
    stay: Collection[str] = ("rnn",),
) -> Choice:
    """Drop the most expensive peers, then the last points, until the rest fits into the seconds."""
    kept = {point: list(peers) for point, peers in wanted.items()}
    dropped: dict[Point, list[str]] = {}
    total = sum(cost(point, who) for point in kept for who in (*ALWAYS, *kept[point]))
    optional = [(point, peer) for point, peers in kept.items() for peer in peers if peer not in stay]
    # The first point of each peer that was not measured yet; the reversal makes the first one win.
    firsts = {peer: (point, peer) for point, peer in reversed(optional) if peer not in measured}.values()
    for point, peer in sorted(optional, key=lambda pair: (pair in firsts, -cost(*pair))):
        if total <= seconds:
            break
        kept[point].remove(peer)
        dropped.setdefault(point, []).append(peer)
        total -= cost(point, peer)
    points_dropped: list[Point] = []
    for point in reversed(list(wanted)):
        if total <= seconds:
            break
        total -= sum(cost(point, who) for who in (*ALWAYS, *kept.pop(point)))
        points_dropped.insert(0, point)
        dropped.pop(point, None)
    return Choice(kept, dropped, points_dropped)
