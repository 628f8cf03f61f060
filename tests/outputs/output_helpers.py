"""Helpers for the tests of the output models: models, and matching states and frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rnnkernels import NADE, RBM, Categorical, IndependentBernoulli
from rnnkernels.testing import outputs as reference

VISIBLE, HIDDEN, CONDITION = 5, 4, 3
MODELS = {
    "independent": lambda **options: IndependentBernoulli(VISIBLE, CONDITION, **options),
    "categorical": lambda **options: Categorical(VISIBLE, CONDITION, **options),
    "nade": lambda **options: NADE(VISIBLE, HIDDEN, CONDITION, **options),
    "rbm": lambda **options: RBM(VISIBLE, HIDDEN, CONDITION, **options),
}
BINARY = tuple(name for name in MODELS if name != "categorical")


def make_model(name: str, dtype: torch.dtype = torch.float64, scale: float = 1.0, **options) -> nn.Module:
    """Make a model with dependent units: all parameters are drawn from N(0, scale^2)."""
    model = MODELS[name](dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(scale * values)
    return model


def make_state(*lead: int, dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, CONDITION, generator=generator, dtype=torch.float64).to(dtype)


def make_frames(name: str, *lead: int, dtype: torch.dtype = torch.bool, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if name == "categorical":
        return torch.randint(VISIBLE, lead, generator=generator)
    return (torch.rand(*lead, VISIBLE, generator=generator) < 0.4).to(dtype)


def every_frame(name: str) -> Tensor:
    """Return every frame (for `categorical` every class)."""
    if name == "categorical":
        return torch.arange(VISIBLE)
    return torch.from_numpy(reference.all_states(VISIBLE))


def biases(model: Any, state: Tensor) -> Iterator[np.ndarray]:
    """Yield b, and c if the model has it, as the reference takes them."""
    for layer in (model.visible_bias, getattr(model, "hidden_bias", None)):
        if layer is not None:
            rows = nn.functional.linear(state.double(), layer.weight.double(), layer.bias.double())
            yield rows.detach().reshape(-1, rows.shape[-1]).numpy()


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def frequencies(v: Tensor) -> Tensor:
    """Return the relative frequency of each frame, in the order of `every_frame`."""
    v = v.reshape(-1, v.shape[-1]).long()
    numbers = (v << torch.arange(v.shape[-1])).sum(-1)
    return torch.bincount(numbers, minlength=2 ** v.shape[-1]) / len(v)


def assert_drawn_from(found: Tensor, expected: Tensor, draws: int) -> None:
    """Check that each frequency is within 4.5 standard deviations of its probability.

    All of 32 frequencies are with a probability of 0.9998.
    """
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert torch.all((found - expected).abs() <= 4.5 * deviation + 1 / draws), (found, expected)


def assert_empty_like(run: Callable[[int], Any]) -> None:
    """Assert that ``run(0)`` has the shapes of ``run(2)``, in which only the examples have the size 2."""
    found, expected = (torch.utils._pytree.tree_leaves(run(n)) for n in (0, 2))
    shapes = [tuple(0 if size == 2 else size for size in x.shape) for x in expected]
    assert [tuple(x.shape) for x in found] == shapes
    assert all(0 in shape for shape in shapes)


def half_width(draws: int) -> float:
    """Return 4.5 standard deviations of a mean of draws from [0, 1]; one draw has at most 1/2."""
    return 4.5 * math.sqrt(0.25 / draws)
