"""The problems: their sizes, their random data, and the interface of everything that is timed on them.

A contender is made from a `Problem`, starts from a zero state, and has two timed calls:

- `forward()`: the output of all steps, input projection included, without recording gradients;
- `forward_backward()`: the same with gradients of the four weights for a given gradient of the output. The
  input is data and gets no gradient. The gradients of a call are dropped (None) at the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

OURS = "rnnkernels"
WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
# By precision. "float32" is exact; "tf32" is float32 whose products may round to TF32.
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
}


class Cell(NamedTuple):
    """The sizes of one measurement: batch, steps, inputs, hidden units."""

    B: int
    T: int
    I: int  # noqa: E741 - the project's name for this size
    H: int

    def __str__(self) -> str:
        return f"B {self.B}, T {self.T}, I {self.I}, H {self.H}"

    def recurrence_flops(self, backward: bool) -> float:
        """Operations of h W_hh^T alone: one product forward, two more backward (gradients of h and W_hh)."""
        return (6.0 if backward else 2.0) * self.T * self.B * self.H * self.H


class Point(NamedTuple):
    """One measurement: sizes, precision (a key of DTYPES), and whether the batch is packed."""

    cell: Cell
    precision: str = "float32"
    packed: bool = False

    def __str__(self) -> str:
        return f"{self.cell}, {self.precision}{', packed' if self.packed else ''}"

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """Evenly spread from T down to T/B, so that a step has about B/2 rows on average."""
        if not self.packed:
            return None
        return tuple(-(-self.cell.T * (self.cell.B - row) // self.cell.B) for row in range(self.cell.B))

    @property
    def rows(self) -> float:
        """Rows per step, on average."""
        return self.cell.B if self.lengths is None else sum(self.lengths) / self.cell.T


# ----------------------------------------------------------------------------------------- sizes

CPU_GRID = (
    Cell(1, 1000, 32, 128),
    Cell(1, 200, 16, 50),
    Cell(16, 100, 88, 200),
    Cell(16, 100, 8, 64),
    Cell(64, 150, 85, 256),
    Cell(20, 300, 4, 100),
    Cell(32, 100, 256, 512),
    Cell(32, 100, 512, 1024),
    Cell(256, 100, 128, 256),
    Cell(450, 300, 4, 1000),
)
CPU_QUICK_GRID = (Cell(1, 200, 16, 50), Cell(16, 100, 8, 64), Cell(16, 100, 88, 200))
GPU_STEPS = 512
GPU_HIDDEN = (256, 128, 512, 1024, 64, 2048, 384, 768)  # middle sizes first, for runs that are cut short
GPU_BATCHES = (16, 1, 64, 256)
GPU_QUICK_GRID = (Point(Cell(4, 32, 8, 64)), Point(Cell(4, 32, 8, 64), "bfloat16", packed=True))


def gpu_grid(precisions: Sequence[str] = ("float32", "bfloat16", "tf32")) -> tuple[Point, ...]:
    """All H and B in float32 and bfloat16, and a few points with a long T, packed, and in TF32."""
    both = [name for name in ("float32", "bfloat16") if name in precisions]
    special = [Point(Cell(16, 4096, 64, 256), name) for name in both]
    special += [Point(Cell(64, GPU_STEPS, 64, 256), name, packed=True) for name in both[-1:]]
    if "tf32" in precisions:  # the default of nn.RNN in float32
        special += [Point(Cell(64, GPU_STEPS, 64, hidden), "tf32") for hidden in (256, 1024)]
    square = [
        Point(Cell(batch, GPU_STEPS, 64, hidden), name)
        for hidden in GPU_HIDDEN
        for batch in GPU_BATCHES
        for name in both
    ]
    first = len(GPU_BATCHES) * len(both)
    return (*square[:first], *special, *square[first:])


# ------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Problem:
    """The data that every contender of a measurement gets."""

    cell: Cell
    decay: float
    x: Tensor  # [T, B, I]
    weights: dict[str, Tensor]  # named as in torch.nn.RNN
    grad_output: Tensor  # [T, B, H]
    lengths: tuple[int, ...] | None = None  # of the sequences, descending; None if all have T steps

    def packed(self, sequences: Tensor) -> PackedSequence:
        """A `[T, B, ...]` as a PackedSequence; needs lengths."""
        assert self.lengths is not None
        return pack_padded_sequence(sequences, torch.tensor(self.lengths))

    def rows(self, sequences: Tensor) -> Tensor:
        """The valid rows of a `[T, B, ...]`: the tensor itself, or the data of its packed form."""
        return sequences if self.lengths is None else self.packed(sequences).data

    def widened(self, decay: float) -> Problem:
        """The same data in float32 at least, with another decay."""

        def wide(x: Tensor) -> Tensor:
            return x.to(torch.promote_types(x.dtype, torch.float32))

        weights = {name: wide(weight) for name, weight in self.weights.items()}
        return replace(self, decay=decay, x=wide(self.x), weights=weights, grad_output=wide(self.grad_output))


def make_problem(
    cell: Cell,
    dtype: torch.dtype,
    decay: float,
    seed: int,
    device: str = "cpu",
    lengths: tuple[int, ...] | None = None,
) -> Problem:
    """Random data at whose scale a ReLU network neither dies nor grows for any T."""
    generator = torch.Generator(device).manual_seed(seed)
    where: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": device}

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, **where).mul_(scale)

    weights = {
        "weight_ih_l0": normal(cell.H, cell.I, scale=cell.I**-0.5),
        # ReLU halves the power, so 1/sqrt(H) keeps the recurrent share of it at one half.
        "weight_hh_l0": normal(cell.H, cell.H, scale=cell.H**-0.5),
        "bias_ih_l0": normal(cell.H, scale=0.1),
        "bias_hh_l0": normal(cell.H, scale=0.1),
    }
    x = normal(cell.T, cell.B, cell.I, scale=1.0)
    # All gradients are positive, so sums over steps do not cancel: a unit whose input rounds to the other
    # side of zero then barely changes them, and the check of gradients can be strict.
    grad_output = torch.rand(cell.T, cell.B, cell.H, **where)
    return Problem(cell, decay, x, weights, grad_output, lengths)


# ------------------------------------------------------------------------------------ contenders


class Results(NamedTuple):
    output: Tensor
    gradients: dict[str, Tensor]


class Contender(Protocol):
    decay: float  # the decay that it computes with; it is checked against a loop with this decay

    def forward(self) -> object: ...

    def forward_backward(self) -> object: ...

    def results(self) -> Results: ...


class TorchContender:
    """Anything that autograd can differentiate: a function of x, and the leaves that it depends on."""

    reference_loop: Callable[..., Tensor] | None = None  # the loop to check against; None: the leaky loop

    def __init__(
        self,
        problem: Problem,
        layer: Callable[..., Tensor],
        leaves: Mapping[str, Tensor],
        x: Tensor | PackedSequence | None = None,
        decay: float | None = None,
    ) -> None:
        self.decay = problem.decay if decay is None else decay
        self._layer = layer
        self._leaves = dict(leaves)
        self._x = problem.x if x is None else x
        self._grad_output = problem.rows(problem.grad_output)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self._layer(self._x)

    def forward_backward(self) -> Tensor:
        for leaf in self._leaves.values():
            leaf.grad = None
        output = self._layer(self._x)
        torch.autograd.backward(output, self._grad_output)
        return output

    def differentiated(self) -> Results:
        """The same without writing to the leaves, as a CUDA graph requires."""
        output = self._layer(self._x)
        gradients = torch.autograd.grad(output, list(self._leaves.values()), self._grad_output)
        return Results(output.detach(), dict(zip(self._leaves, gradients, strict=True)))

    def results(self) -> Results:
        output = self.forward_backward().detach()
        gradients = {}
        for name, leaf in self._leaves.items():
            if leaf.grad is None:
                raise RuntimeError(f"no gradient of {name} was computed")
            gradients[name] = leaf.grad
        return Results(output, gradients)
