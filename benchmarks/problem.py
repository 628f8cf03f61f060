"""What a cell of the benchmark is, and what every contender is given and has to give back.

A contender is made from a `Problem`, starts from a zero state, and has two timed calls:

- `forward()`: the output of all steps, no gradients recorded, input projection included;
- `forward_backward()`: the same with gradients of the four weights for a given gradient of the
  output. The input is data and gets none. Gradients are dropped (None) at the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

OURS = "rnnkernels"
WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class Cell(NamedTuple):
    """The sizes of one measurement: batch, steps, inputs, hidden units."""

    B: int
    T: int
    I: int  # noqa: E741 - the names of the sizes are the project's legend
    H: int

    def __str__(self) -> str:
        return f"B {self.B}, T {self.T}, I {self.I}, H {self.H}"

    def recurrence_flops(self, backward: bool) -> float:
        """Of h W_hh^T alone: one product forward, two more backward (to h and to W_hh)."""
        return (6.0 if backward else 2.0) * self.T * self.B * self.H * self.H


@dataclass(frozen=True)
class Problem:
    """What every contender of a cell is given."""

    cell: Cell
    decay: float
    x: Tensor  # [T, B, I]
    weights: dict[str, Tensor]  # named as in torch.nn.RNN
    grad_output: Tensor  # [T, B, H]
    lengths: tuple[int, ...] | None = None  # of the sequences, falling; None: all T

    def packed(self, sequences: Tensor) -> PackedSequence:
        """A `[T, B, ...]` as torch packs it; needs lengths."""
        assert self.lengths is not None
        return pack_padded_sequence(sequences, torch.tensor(self.lengths))

    def rows(self, sequences: Tensor) -> Tensor:
        """What there is of a `[T, B, ...]`: all of it, or the rows of its packed form."""
        return sequences if self.lengths is None else self.packed(sequences).data


def make_problem(
    cell: Cell,
    dtype: torch.dtype,
    decay: float,
    seed: int,
    device: str = "cpu",
    lengths: tuple[int, ...] | None = None,
) -> Problem:
    """Random data of magnitudes at which a ReLU network neither dies nor grows over any T."""
    chance = torch.Generator(device).manual_seed(seed)
    where = {"generator": chance, "dtype": dtype, "device": device}

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
    # All of one sign: sums over steps add up, and one unit whose input rounds to the other side
    # of zero stays invisible in the check of the gradients.
    grad_output = torch.rand(cell.T, cell.B, cell.H, **where)
    return Problem(cell, decay, x, weights, grad_output, lengths)


def widened(problem: Problem, decay: float) -> Problem:
    """The same numbers, in a dtype with digits enough to judge by."""

    def wide(x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))

    weights = {name: wide(weight) for name, weight in problem.weights.items()}
    return replace(
        problem, decay=decay, x=wide(problem.x), weights=weights, grad_output=wide(problem.grad_output)
    )


class Results(NamedTuple):
    output: Tensor
    gradients: dict[str, Tensor]


class Contender(Protocol):
    decay: float  # what it really computes; the check compares like with like

    def forward(self) -> object: ...

    def forward_backward(self) -> object: ...

    def results(self) -> Results: ...


class TorchContender:
    """Whatever autograd can differentiate: a function of x, and the leaves behind it."""

    reference_loop: Callable[..., Tensor] | None = None  # what to be checked against; None: the leaky loop

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
        """The same without touching the leaves: all that a CUDA graph may do."""
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
