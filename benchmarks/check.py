"""Compares every contender with the loop in PyTorch, so that no wrong answer is timed."""

from __future__ import annotations

import torch

from .gpu import tf32_allowed
from .loops import Loop, from_loop, leaky_loop
from .problem import Contender, Problem, Results

# Largest relative error (Frobenius norm) of outputs and of gradients. Gradients have a wider tolerance, as a
# unit whose input rounds to the other side of zero changes them far more than rounding does. In bfloat16 some
# contenders sum the gradients of all steps in that dtype and lose digits.
TOLERANCES = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-10, 1e-8), torch.bfloat16: (5e-2, 5e-1)}
TF32_TOLERANCE = TOLERANCES[torch.bfloat16]  # products have ten bits


class UsageError(Exception):
    """The options ask for something that cannot be measured here."""


class WrongAnswerError(ValueError):
    """A contender computes something else than the loop; `forward_right` says that its output is right."""

    def __init__(self, text: str, forward_right: bool = False) -> None:
        super().__init__(text)
        self.forward_right = forward_right


class Checker:
    """The loop's answers to one problem, for each decay and function that contenders compute."""

    def __init__(self, problem: Problem, tolerance: tuple[float, float] | None = None) -> None:
        self._problem = problem
        self._tolerance = tolerance or TOLERANCES[problem.x.dtype]
        self._references: dict[tuple[float, Loop], Results] = {}

    def __call__(self, name: str, contender: Contender) -> None:
        """Raise WrongAnswerError unless the contender's results are those of its loop."""
        key = contender.decay, getattr(contender, "reference_loop", None) or leaky_loop
        if key not in self._references:
            decay, loop = key
            with tf32_allowed(False):
                self._references[key] = from_loop(self._problem.widened(decay), loop).results()
        compare(name, self._problem, contender.results(), self._references[key], self._tolerance)


def compare(
    name: str, problem: Problem, got: Results, expected: Results, tolerance: tuple[float, float]
) -> None:
    """Raise WrongAnswerError unless output and gradients agree."""
    for_output, for_gradients = tolerance
    pairs = [("output", got.output, expected.output, for_output)]
    for weight, gradient in got.gradients.items():
        pairs.append((f"gradient of {weight}", gradient, expected.gradients[weight], for_gradients))
    for what, value, wanted, most in pairs:
        where = f"{name} at {problem.cell}: {what}"
        if value.shape != wanted.shape:
            raise WrongAnswerError(f"{where} is {list(value.shape)}, expected {list(wanted.shape)}")
        error = float(torch.linalg.vector_norm(value - wanted) / torch.linalg.vector_norm(wanted))
        if not error <= most:  # also if the error is not a number
            raise WrongAnswerError(
                f"{where} is wrong: relative error {error:.2g}, expected at most {most:g}", what != "output"
            )
