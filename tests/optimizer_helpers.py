"""Random trees of tensors for the optimizers' tests, and comparisons with torch and NumPy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from rnnkernels import ClippedAdamW, ClippedNesterov
from rnnkernels import testing as reference

# Relative to the largest element: a few roundings per step, over the steps of a test.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


class Tree(NamedTuple):
    """Shapes of groups of parameters, and the probability that a parameter has no gradient at a step."""

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
    """The same values with another memory layout."""
    if layout == "transposed" and values.dim() > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced" and values.dim() > 0:
        wide = values.new_zeros(*values.shape[:-1], 2 * values.shape[-1] + 1)
        return wide[..., 1::2].copy_(values)
    return values


def make_groups(tree: Tree, *dtypes: torch.dtype, device: str = "cpu") -> list[list[torch.nn.Parameter]]:
    """Make the parameters of each group; each gets one of the dtypes at random."""
    chance = torch.Generator().manual_seed(tree.seed)

    def make(shape: tuple[int, ...]) -> torch.nn.Parameter:
        dtype = dtypes[int(torch.randint(len(dtypes), (), generator=chance))]
        values = torch.randn(shape, generator=chance, dtype=torch.float64).to(device, dtype)
        return torch.nn.Parameter(laid_out(values, tree.layout))

    return [[make(shape) for shape in group] for group in tree.groups]


def draw_gradients(tree: Tree, params: Sequence[Tensor], step: int) -> list[Tensor | None]:
    """Return a gradient for each parameter, or None where it has none at this step."""
    chance = torch.Generator().manual_seed(tree.seed + 1 + step)
    grads: list[Tensor | None] = []
    for param in params:
        grad = torch.randn(param.shape, generator=chance, dtype=torch.float64).to(param)
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
    # torch has no infinity norm of an empty tensor.
    params = [p for group in optimizer.param_groups for p in group["params"] if p.numel() > 0]
    if max_norm is not None:
        clip_grad_norm_(params, max_norm, norm_type)
    optimizer.step()


def assert_near(got: Any, wanted: Any, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Check that values agree up to rounding, relative to the largest element (or to 1)."""
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        b = torch.as_tensor(b, dtype=torch.float64)
        b, a = b.detach(), a.detach().to(torch.float64)
        assert a.shape == b.shape
        if a.numel() == 0:
            continue
        error = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
        assert error <= factor * TOLERANCE[dtype], (number, error)


# --- Parameters that are written between two steps ----------------------------------------------------


def _next_value(param: Tensor) -> None:
    """Write the next value of the dtype, away from zero."""
    param.copy_((param.contiguous().view(torch.int16) + 1).view(param.dtype))


def _with_new_memory(param: Tensor) -> None:
    param.data = (0.5 * param).clone()


def _some(param: Tensor) -> Tensor:
    return (torch.arange(param.numel(), device=param.device) % 3 == 0).view(param.shape)


# Each is called without autograd.
EDITS: dict[str, Callable[[Tensor], object]] = {
    "nothing": lambda param: None,
    "filled": lambda param: param.fill_(0.25),
    "clamped": lambda param: param.clamp_(-0.3, 0.3),
    "masked": lambda param: param.masked_fill_(_some(param), 0.0),
    "multiplied by a mask": lambda param: param.mul_(_some(param)),
    "averaged": lambda param: param.lerp_(torch.ones_like(param), 0.1),
    "by one place": _next_value,
    "negated": lambda param: param.neg_(),
    "new memory": _with_new_memory,
    "infinite": lambda param: param.masked_fill_(_some(param), math.inf),
    "NaN": lambda param: param.masked_fill_(_some(param), math.nan),
    "tiny": lambda param: param.mul_(1e-6),
    "huge": lambda param: param.mul_(torch.finfo(param.dtype).max / 4),
}


def check_edit(
    cls: type[ClippedNesterov | ClippedAdamW],
    dtype: torch.dtype,
    edit: str,
    layout: str = "contiguous",
    device: str = "cpu",
) -> None:
    """Check that steps with master weights start from what was written.

    A float32 parameter is the reference. It gets the same gradients, and what is written wherever that is not
    its rounded value.
    """
    chance = torch.Generator().manual_seed(8)
    sizes = 10 ** (torch.rand(70, 61, generator=chance) * 6 - 4)  # those of float16 include subnormal ones
    start = (sizes * torch.randn(70, 61, generator=chance)).to(device, dtype)
    param = torch.nn.Parameter(laid_out(start.clone(), layout))
    wide = torch.nn.Parameter(start.float())
    optimizer = cls([param], lr=1e-3, max_norm=0.5, master_weights=True)
    judge = cls([wide], lr=1e-3, max_norm=0.5)
    for step in range(6):
        grad = torch.randn(70, 61, generator=chance).to(device, dtype)
        param.grad, wide.grad = laid_out(grad.clone(), layout), grad.float()
        optimizer.step()
        judge.step()
        assert torch.equal(param.isnan(), wide.isnan())
        torch.testing.assert_close(optimizer.state[param]["master"], wide, rtol=1e-6, atol=0, equal_nan=True)
        rounded = optimizer.state[param]["master"].to(dtype)
        torch.testing.assert_close(param.detach(), rounded, rtol=0, atol=0, equal_nan=True)
        if step in (1, 2, 4):
            with torch.no_grad():
                EDITS[edit](param)
                same = (param == rounded) & (param.signbit() == rounded.signbit())
                wide.copy_(torch.where(same, wide, param.float()))


class Judge:
    """The float64 reference of an optimizer: starts at its parameters, and uses its groups' settings.

    A half-precision parameter without a master copy is rounded at every step, and the reference continues
    from the rounded value.
    """

    def __init__(self, optimizer: ClippedNesterov | ClippedAdamW) -> None:
        self.optimizer = optimizer
        self.norm = 0.0
        self.previous = [0.0] * len(optimizer.param_groups)
        self.steps: Counter[Tensor] = Counter()
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self.theta = {p: array_of(p) for p in params}
        self.states = {p: [np.zeros(p.shape)] * len(optimizer.state_names) for p in params}
        # The largest magnitude so far, to which rounding errors are relative.
        self.scale = dict.fromkeys(params, 1.0)
        self.state_scale = {p: [0.0] * len(optimizer.state_names) for p in params}

    def step(self) -> None:
        """Take the step that the optimizer should take next, with the current gradients."""
        grads = {p: None if p.grad is None else array_of(p.grad) for p in self.theta}
        for number, group in enumerate(self.optimizer.param_groups):
            max_norm = None if group["max_norm"] is None else float(group["max_norm"])
            norm_type = self.optimizer.norm_type
            c, self.norm = reference.clip_coefficient(list(grads.values()), max_norm, norm_type)
            common = {"lr": float(group["lr"]), "weight_decay": float(group["weight_decay"])}
            common["coefficient"] = -c if group["maximize"] else c
            for param in group["params"]:
                if grads[param] is not None:
                    self._update(param, grads[param], number, group, common)
            self.previous[number] = float(group.get("momentum", 0.0))

    def _update(self, param: Tensor, grad: Any, number: int, group: dict[str, Any], common: Any) -> None:
        after: Any
        self.steps[param] += 1
        now = [self.theta[param], *self.states[param], grad]
        if isinstance(self.optimizer, ClippedNesterov):
            momenta: dict[str, Any] = {
                "momentum": float(group["momentum"]),
                "previous_momentum": self.previous[number],
            }
            after = reference.nesterov_step(*now, **momenta, **common)
        else:
            betas: Any = tuple(map(float, group["betas"]))
            eps = float(group["eps"])
            after = reference.adamw_step(*now, self.steps[param], betas=betas, eps=eps, **common)
        self.theta[param], *self.states[param] = after
        self.scale[param] = max(self.scale[param], largest(after[0]))
        self.state_scale[param] = [
            max(scale, largest(state))
            for scale, state in zip(self.state_scale[param], after[1:], strict=True)
        ]

    def check(self, factor: float) -> None:
        """Check that parameters, master copies and states equal the reference, up to ``factor`` roundings."""
        for param, theta in self.theta.items():
            state = self.optimizer.state.get(param, {})
            number = torch.float64 if param.dtype == torch.float64 else torch.float32
            tolerance = factor * TOLERANCE[number]
            wide = state.get("master", param)
            rounding = torch.finfo(wide.dtype).eps / 2 if wide.dtype != number else 0.0
            assert difference(wide, theta) <= (tolerance + rounding) * self.scale[param]
            if wide is not param:
                assert wide.dtype == number
                assert torch.equal(param, wide.to(param.dtype))
            elif rounding:
                self.theta[param] = array_of(param)
            if not state:
                assert self.steps[param] == 0
                continue
            for i, name in enumerate(self.optimizer.state_names):
                assert state[name].dtype == number
                error = difference(state[name], self.states[param][i])
                assert error <= tolerance * self.state_scale[param][i], name


def array_of(tensor: Tensor) -> Any:
    return tensor.detach().to("cpu", torch.float64).numpy().copy()


def largest(array: Any) -> float:
    return float(np.abs(array).max(initial=0.0))


def difference(tensor: Tensor, array: Any) -> float:
    assert tuple(tensor.shape) == array.shape
    return largest(array_of(tensor) - array)


def one(shape: Any = (3, 4), dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """Return a parameter with a gradient, and its optimizer."""
    param = torch.nn.Parameter(torch.randn(shape).to(dtype))
    param.grad = torch.randn(shape).to(dtype)
    return param, ClippedNesterov([param], **options)


APPLY_SETTINGS = [(ClippedNesterov, {"momentum": mu}) for mu in (0.0, 0.9)] + [
    (ClippedAdamW, {"betas": betas}) for betas in ((0.0, 0.9), (0.9, 0.999))
]


def assert_torch_applies_the_same(
    cls: Any, settings: dict[str, Any], params: list[torch.nn.Parameter], bad: float, max_norm: float | None
) -> None:
    """Compare three steps with ``nonfinite="apply"``; the first has a nonfinite value in a gradient."""
    optimizer = cls(params, lr=0.1, nonfinite="apply", max_norm=max_norm, weight_decay=0.0, **settings)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    judge: torch.optim.Optimizer
    if cls is ClippedNesterov:
        judge = torch.optim.SGD(others, lr=0.1, nesterov=settings["momentum"] != 0, **settings)
    else:
        judge = torch.optim.AdamW(others, lr=0.1, weight_decay=0.0, **settings)
    for step in range(3):
        for other, param in zip(others, params, strict=True):
            param.grad = torch.randn_like(param)
            if step == 0 and param is params[0]:
                param.grad[5] = bad
            other.grad = param.grad.clone()
        clip_and_step(judge, max_norm)
        optimizer.step()
        for other, param in zip(others, params, strict=True):
            torch.testing.assert_close(param, other, equal_nan=True)
    assert int(optimizer.taken_steps) == 3
