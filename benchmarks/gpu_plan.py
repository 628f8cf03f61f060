"""What `recurrence --device cuda` measures, and what it leaves out where the time does not suffice.

The plan is made anew before each point, with the time that is left and with what the peers have cost so far.
Ours and nn.RNN stay to the end. Of the others the dearest goes first, which is a slow peer at a large shape;
but a peer that has not been measured anywhere keeps its first point as long as possible, and from then on its
cost is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from .problem import OURS, Cell
from .report import RECURRENCE

ALWAYS = (OURS, RECURRENCE)
INPUTS = 64
STEPS = 512
HIDDEN = (256, 128, 512, 1024, 64, 2048, 384, 768)  # in this order, so that a short run has the middle of it
BATCHES = (16, 1, 64, 256)
LONG = 4096
PRECISIONS = ("float32", "bfloat16", "tf32")
COMPILED = {(128, 16), (512, 16)}  # H and B; one more shape is one more minute


class Point(NamedTuple):
    """One measurement: sizes, and what is multiplied with what."""

    cell: Cell
    precision: str  # float32: exactly; tf32: float32 where torch and cuDNN may round to TF32
    packed: bool = False  # lengths of all kinds

    def __str__(self) -> str:
        return f"{self.cell}, {self.precision}{', packed' if self.packed else ''}"

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """Evenly spread from T down to T/B, so that the mean of the rows at a step is about half of B."""
        if not self.packed:
            return None
        return tuple(-(-self.cell.T * (self.cell.B - row) // self.cell.B) for row in range(self.cell.B))

    @property
    def rows(self) -> float:
        """Of a step, in the mean."""
        return self.cell.B if self.lengths is None else sum(self.lengths) / self.cell.T


def grid(precisions: Sequence[str] = PRECISIONS) -> tuple[Point, ...]:
    both = [name for name in ("float32", "bfloat16") if name in precisions]
    points = [Point(Cell(16, LONG, INPUTS, 256), name) for name in both]
    points += [Point(Cell(64, STEPS, INPUTS, 256), name, packed=True) for name in both[-1:]]
    if "tf32" in precisions:  # what nn.RNN does with float32 where nobody forbids it
        points += [Point(Cell(64, STEPS, INPUTS, hidden), "tf32") for hidden in (256, 1024)]
    square = [
        Point(Cell(batch, STEPS, INPUTS, hidden), name)
        for hidden in HIDDEN
        for batch in BATCHES
        for name in both
    ]
    first = len(BATCHES) * len(both)  # the first H, then the special ones, then the rest
    return (*square[:first], *points, *square[first:])


QUICK_GRID = (Point(Cell(4, 32, 8, 64), "float32"), Point(Cell(4, 32, 8, 64), "bfloat16", packed=True))


def unsuited(peer: str, point: Point, packs: bool) -> str | None:
    """Why a peer is not for a point, however much time there is."""
    if peer == "half" and point.precision != "bfloat16":
        return "is beside bfloat16 alone"
    if point.packed and not packs:
        return "takes no packed batch"
    if point.cell.T > STEPS and peer in ("compile", "flash"):
        return "compiled at one T alone"
    if peer in ("compile", "flash") and point in grid() and (point.cell.H, point.cell.B) not in COMPILED:
        return "compiled at few shapes alone"
    return None


# ------------------------------------------------------------------------------------------ cost

# Seconds to make a contender for all input sets and check it, before anything was measured.
SET_UP = {"compile": 40.0, "flash": 120.0, "scan": 4.0, "graph": 0.5}
SET_UP_OTHERS = 0.2
# Microseconds a step of the slow ones, launched from Python or as graph nodes: forward, and both.
STEP_US = {"loop": (20.0, 80.0), "compile": (15.0, 60.0), "graph": (5.0, 15.0), "scan": (10.0, 30.0)}
STEP_US_OTHERS = (2.0, 6.0)
FLOPS_PER_S = 2e13  # of a step's product, where nobody has measured yet
READINGS = 12  # of each pass: warming and timed ones
LEAST_READING = 0.01  # seconds


class Costs:
    """Estimates of what a contender costs at a point, in seconds; they learn from what making one cost."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}

    def made(self, who: str, seconds: float) -> None:
        self._seen.setdefault(who, []).append(seconds)

    def __call__(self, point: Point, who: str) -> float:
        seen = self._seen.get(who)
        set_up = sum(seen) / len(seen) if seen else SET_UP.get(who, SET_UP_OTHERS)
        timed = 0.0
        for backward, us in enumerate(STEP_US.get(who, STEP_US_OTHERS)):
            call = 1e-6 * us * point.cell.T + point.cell.recurrence_flops(bool(backward)) / FLOPS_PER_S
            timed += READINGS * max(LEAST_READING, call)
        return set_up + timed


# ---------------------------------------------------------------------------------------- choice


class Choice(NamedTuple):
    kept: dict[Point, list[str]]  # points that are measured, with their peers
    dropped: dict[Point, list[str]]  # peers for which the time does not suffice, at a kept point
    points_dropped: list[Point]


def choose(
    wanted: Mapping[Point, Sequence[str]],
    seconds: float,
    cost: Callable[[Point, str], float],
    measured: Collection[str] = (),
    stay: Collection[str] = ("rnn",),
) -> Choice:
    """What fits into the seconds: peers go first, the dearest first; then points, the last first."""
    kept = {point: list(peers) for point, peers in wanted.items()}
    dropped: dict[Point, list[str]] = {}
    total = sum(cost(point, who) for point in kept for who in (*ALWAYS, *kept[point]))
    optional = [(point, peer) for point, peers in kept.items() for peer in peers if peer not in stay]
    first: dict[str, tuple[Point, str]] = {}
    for pair in optional:
        if pair[1] not in measured:
            first.setdefault(pair[1], pair)
    keepsakes = set(first.values())
    for pair in sorted(optional, key=lambda pair: (pair in keepsakes, -cost(*pair))):
        if total <= seconds:
            break
        point, peer = pair
        kept[point].remove(peer)
        dropped.setdefault(point, []).append(peer)
        total -= cost(point, peer)
    points_dropped: list[Point] = []
    for point in reversed(wanted):
        if total <= seconds:
            break
        total -= sum(cost(point, who) for who in (*ALWAYS, *kept.pop(point)))
        points_dropped.insert(0, point)
        dropped.pop(point, None)
    return Choice(kept, dropped, points_dropped)
