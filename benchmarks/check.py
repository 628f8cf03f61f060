"""Every contender against the loop in PyTorch: a wrong answer is not timed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .card import tf32_allowed
from .loops import from_loop, leaky_loop
from .problem import Contender, Problem, Results, widened

# Largest relative error (Frobenius) of outputs and of gradients. A unit whose input rounds to
# the other side of zero changes a gradient by far more than rounding does, hence the difference.
# In bfloat16 some contenders add up the gradients of all steps in that dtype, and lose digits by the way.
TOLERANCES = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-10, 1e-8), torch.bfloat16: (5e-2, 5e-1)}
TF32_TOLERANCE = TOLERANCES[torch.bfloat16]  # products of ten bits


class WrongAnswerError(Exception):
    """A contender does not compute what it is timed for; `forward_right`: its output is right."""

    def __init__(self, text: str, forward_right: bool = False) -> None:
        super().__init__(text)
        self.forward_right = forward_right


class Checker:
    """The loop's own answers to one problem, for each decay and function that contenders compute."""

    def __init__(self, problem: Problem, tolerance: tuple[float, float] | None = None) -> None:
        self._problem = problem
        self._tolerance = tolerance or TOLERANCES[problem.x.dtype]
        self._references: dict[tuple[float, Callable[..., Tensor]], Results] = {}

    def __call__(self, name: str, contender: Contender) -> None:
        """Raises WrongAnswerError where it computes something else."""
        what = contender.decay, getattr(contender, "reference_loop", None) or leaky_loop
        if what not in self._references:
            decay, loop = what
            with tf32_allowed(False):
                self._references[what] = from_loop(widened(self._problem, decay), loop).results()
        compare(name, self._problem, contender.results(), self._references[what], self._tolerance)


def check(problem: Problem, contenders: dict[str, Contender]) -> None:
    checker = Checker(problem)
    for name, contender in contenders.items():
        checker(name, contender)


def compare(
    name: str, problem: Problem, got: Results, expected: Results, tolerance: tuple[float, float]
) -> None:
    for_output, for_gradients = tolerance
    pairs = [("output", got.output, expected.output, for_output)]
    for weight, gradient in got.gradients.items():
        pairs.append((f"gradient of {weight}", gradient, expected.gradients[weight], for_gradients))
    for what, value, wanted, most in pairs:
        where = f"{name} at {problem.cell}: {what}"
        if value.shape != wanted.shape:
            raise WrongAnswerError(f"{where} is {list(value.shape)}, expected {list(wanted.shape)}")
        error = float(torch.linalg.vector_norm(value - wanted) / torch.linalg.vector_norm(wanted))
        if not error <= most:  # also where it is not a number
            raise WrongAnswerError(
                f"{where} is wrong: relative error {error:.2g}, expected at most {most:g}", what != "output"
            )
