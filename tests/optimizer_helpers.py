"""Random trees of tensors for the optimizers' tests, and the two judges: torch and NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import rnnkernels
from rnnkernels import reference

# Relative to the largest element. A few roundings a step, over the steps of a test.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


class Tree(NamedTuple):
    """Shapes of groups of parameters, and which of them get no gradient at some steps."""

    groups: list[list[tuple[int, ...]]]
    missing: float
    layout: str
    seed: int


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.sampled_from([(4096,), (4097,), (130, 67)])
trees = st.builds(
    Tree,
    st.lists(st.lists(shapes, min_size=1, max_size=5), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.0, 0.4]),
    st.sampled_from(["contiguous", "transposed", "gradient transposed", "sliced"]),
    st.integers(0, 2**31),
)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values, in memory otherwise."""
    if layout == "transposed" and values.dim() > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced" and values.dim() > 0:
        wide = values.new_zeros(*values.shape[:-1], 2 * values.shape[-1] + 1)
        return wide[..., 1::2].copy_(values)
    return values


def make_groups(tree: Tree, dtype: torch.dtype) -> list[list[torch.nn.Parameter]]:
    chance = torch.Generator().manual_seed(tree.seed)
    return [
        [
            torch.nn.Parameter(laid_out(torch.randn(shape, generator=chance, dtype=dtype), tree.layout))
            for shape in group
        ]
        for group in tree.groups
    ]


def draw_gradients(tree: Tree, dtype: torch.dtype, step: int, scale: float = 1.0) -> list[Tensor | None]:
    """In one list for all groups; None where a parameter is left out."""
    chance = torch.Generator().manual_seed(tree.seed + 1 + step)
    grads: list[Tensor | None] = []
    for shape in (shape for group in tree.groups for shape in group):
        grad = scale * torch.randn(shape, generator=chance, dtype=dtype)
        left_out = float(torch.rand((), generator=chance)) < tree.missing
        grads.append(None if left_out else grad)
    return grads


def set_gradients(params: list[torch.nn.Parameter], grads: list[Tensor | None], layout: str = "") -> None:
    for param, grad in zip(params, grads, strict=True):
        if grad is None:
            param.grad = None
        elif layout == "gradient transposed":
            param.grad = laid_out(grad.clone(), "transposed")
        else:
            param.grad = laid_out(grad.clone(), layout)


def clip_and_step(optimizer: torch.optim.Optimizer, max_norm: float | None, norm_type: float = 2.0) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if max_norm is not None:
        clip_grad_norm_(params, max_norm, norm_type)
    optimizer.step()


def assert_near(got: Any, wanted: Any, dtype: torch.dtype, factor: float = 1.0) -> None:
    """As near as rounding, relative to the largest element that there is (or to 1)."""
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        b = torch.as_tensor(b, dtype=torch.float64)
        b, a = b.detach(), a.detach().to(torch.float64)
        assert a.shape == b.shape
        if a.numel() == 0:
            continue
        error = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
        assert error <= factor * TOLERANCE[dtype], (number, error)


class NumpyNesterov:
    """The reference over lists of parameters: float64, from the same start."""

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        self.theta = [p.detach().to(torch.float64).numpy().copy() for p in params]
        self.v = [0 * x for x in self.theta]
        self.previous = 0.0
        self.norm = 0.0

    def step(
        self,
        grads: list[Tensor | None],
        max_norm: float | None,
        norm_type: float = 2.0,
        sign: float = 1.0,
        **settings: Any,
    ) -> None:
        arrays = [None if g is None else g.to(torch.float64).numpy() for g in grads]
        c, self.norm = reference.clip_coefficient(arrays, max_norm, norm_type)
        for i, grad in enumerate(arrays):
            if grad is not None:
                self.theta[i], self.v[i] = reference.nesterov_step(
                    self.theta[i],
                    self.v[i],
                    grad,
                    coefficient=sign * c,
                    previous_momentum=self.previous,
                    **settings,
                )
        self.previous = settings["momentum"]


def one(shape: Any = (3, 4), dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """One parameter with a gradient, and its optimizer."""
    param = torch.nn.Parameter(torch.randn(shape).to(dtype))
    param.grad = torch.randn(shape).to(dtype)
    return param, rnnkernels.ClippedNesterov([param], **options)
