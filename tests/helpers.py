"""Helpers of the tests: random problems, the results of the reference, and comparisons."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from rnnkernels import build_config, functional
from rnnkernels.testing import recurrence as reference

ROOT = Path(__file__).resolve().parent.parent
# cmake and ninja may be installed beside the interpreter.
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
FORMS = ("rate", "current")
NONLINEARITIES = tuple(reference.NONLINEARITIES)
RNN_NONLINEARITIES = ("relu", "tanh")  # the ones that torch.nn.RNN has
DTYPES = (torch.float32, torch.float64)
KINDS = tuple(itertools.product(FORMS, NONLINEARITIES))

# Rounding errors of the results, relative to the largest magnitude (see `distance`): some tens of units in
# the last place. The sums over steps, rows and units of the problems drawn here stay below them.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-14}

# The slope of ReLU jumps at zero. If rounding can carry an argument of f across zero, two correct results
# have different gradients. Such a problem is not compared, because a tolerance wide enough for it would hide
# errors in all other problems.
KINK_MARGIN = {torch.float32: 1e-5, torch.float64: 1e-13}


@dataclass(repr=False)
class Problem:
    """The arguments of one call. No tensor requires gradients; see `leaves`."""

    pre: Tensor
    h0: Tensor | None
    weight_hh: Tensor
    decay: float | Tensor
    nonlinearity: str = "relu"
    form: str = "rate"
    batch_sizes: Tensor | None = None
    reverse: bool = False

    def __repr__(self) -> str:
        """Show sizes and strides, but no values."""
        tensors = {name: (list(x.shape), x.stride()) for name, x in self.tensors.items()}
        sizes = None if self.batch_sizes is None else self.batch_sizes.tolist()
        kind = f"{self.form}, {self.nonlinearity}, {self.dtype}, batch_sizes={sizes}, reverse={self.reverse}"
        return f"Problem({kind}, {tensors})"

    @property
    def dtype(self) -> torch.dtype:
        return self.pre.dtype

    @property
    def keywords(self) -> dict[str, Any]:
        return {
            "nonlinearity": self.nonlinearity,
            "form": self.form,
            "batch_sizes": self.batch_sizes,
            "reverse": self.reverse,
        }

    @property
    def tensors(self) -> dict[str, Any]:
        """The tensors that may have a gradient, by name."""
        named = {"pre": self.pre, "h0": self.h0, "weight_hh": self.weight_hh, "decay": self.decay}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def relaid(self, name: str, layout: str) -> Problem:
        """Return the same problem with other strides of one tensor; see `LAYOUTS`."""
        x = self.tensors[name]
        if name == "weight_hh" and layout in ("expanded", "constant"):
            x = x / len(x) ** 0.5  # equal rows or columns add up; keep the states of order one
        changed: dict[str, Any] = {name: relaid(x, layout)}
        return replace(self, **changed)

    def leaves(self) -> Problem:
        """Return the same problem with leaves that require gradients, with the same strides."""
        return replace(self, **{name: x.detach().requires_grad_() for name, x in self.tensors.items()})

    def to(self, device: str) -> Problem:
        """Return the same problem on another device, with the same strides; batch_sizes stay on the CPU."""
        there: dict[str, Any] = {name: moved(x, device) for name, x in self.tensors.items()}
        return replace(self, **there)

    def run(self) -> tuple[Tensor, Tensor]:
        return functional.leaky_recurrence(self.pre, self.h0, self.weight_hh, self.decay, **self.keywords)

    def arrays(self) -> dict[str, Any]:
        """Return the arguments of the reference, with the decay rounded as the kernel takes it."""
        decay = torch.as_tensor(self.decay, dtype=self.dtype)
        named = {"pre": self.pre, "h0": self.h0, "weight_hh": self.weight_hh, "decay": decay}
        arrays = {name: None if x is None else x.detach().double().cpu().numpy() for name, x in named.items()}
        sizes = None if self.batch_sizes is None else self.batch_sizes.tolist()
        return arrays | self.keywords | {"batch_sizes": sizes}

    def expected(self) -> tuple[Tensor, Tensor]:
        output, h_n = reference.leaky_recurrence(**self.arrays())
        return torch.from_numpy(output), torch.from_numpy(h_n)

    def expected_gradients(self, grad_output: Tensor | None, grad_h_n: Tensor | None) -> dict[str, Tensor]:
        """Return the gradients by name; that of a scalar decay is the sum over the units."""
        arrays = self.arrays()
        output, h_n = reference.leaky_recurrence(**arrays)
        incoming = (
            np.zeros_like(like) if grad is None else grad.detach().double().cpu().numpy()
            for grad, like in ((grad_output, output), (grad_h_n, h_n))
        )
        grads = reference.leaky_recurrence_backward(*incoming, **arrays)._asdict()
        if np.ndim(arrays["decay"]) == 0:
            grads["decay"] = grads["decay"].sum()
        return {name: torch.as_tensor(grads[name]) for name in self.tensors}

    def magnitudes(self) -> dict[str, float]:
        """Return the magnitude of the terms of each gradient. They may cancel, but not their rounding errors.

        All inputs are of order one. In float32 and float64 the kernel takes decay's gradient from
        (h_{t-1} - h_t) / (1 - d).
        """
        decay = torch.as_tensor(self.decay)
        terms = self.pre.numel() if decay.dim() == 0 else self.pre.numel() // self.pre.shape[-1]
        cancelled = max(terms, 1) ** 0.5
        if self.dtype.itemsize > 2:
            cancelled /= 1 - float(decay.detach().max())
        return {name: cancelled if name == "decay" else 1.0 for name in self.tensors}

    def kink_margin(self) -> float:
        """Return the least magnitude of an argument of f, relative to the largest; inf if f is smooth."""
        if self.nonlinearity != "relu":
            return float("inf")
        states = list(reference._states(reference._problem(**self.arrays())))
        # In the current form, f acts on the states. h0 is exact.
        values = [z if self.form == "rate" else after for _, _, z, after in states]
        values = [np.abs(x).ravel() for x in values if x.size]
        if not values:
            return float("inf")
        magnitudes = np.concatenate(values)
        return float(magnitudes.min() / max(magnitudes.max(), 1.0))

    def has_clear_slopes(self) -> bool:
        return self.kink_margin() > KINK_MARGIN[self.dtype]


def make_problem(
    seed: int,
    steps: int = 5,
    batch: int = 3,
    hidden: int = 4,
    *,
    dtype: torch.dtype = torch.float64,
    h0: bool = True,
    decay: str = "unit",
    packed: bool = False,
    form: str = "rate",
    nonlinearity: str = "relu",
    reverse: bool = False,
) -> Problem:
    """Return a random problem whose states stay of order one. `decay` is "number", "scalar" or "unit"."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    sizes = None
    if packed:
        sizes = torch.randint(1, batch + 1, (steps,), generator=generator).sort(descending=True).values
        sizes[0] = batch
    pre = normal(steps, batch, hidden) if sizes is None else normal(int(sizes.sum()), hidden)
    decays = 0.95 * torch.rand(hidden, generator=generator, dtype=torch.float64).to(dtype)
    values: dict[str, float | Tensor]
    values = {"number": float(decays[0]), "scalar": decays[0].clone(), "unit": decays}
    return Problem(
        pre,
        normal(batch, hidden) if h0 else None,
        normal(hidden, hidden) / hidden**0.5,
        values[decay],
        nonlinearity,
        form,
        sizes,
        reverse,
    )


def clear_problem(seed: int, *args: Any, margin: float | None = None, **kwargs: Any) -> Problem:
    """Return the first problem, counting up from this seed, whose arguments of f are not near ReLU's kink."""
    for attempt in itertools.count(seed):
        problem = make_problem(attempt, *args, **kwargs)
        if problem.kink_margin() > (KINK_MARGIN[problem.dtype] if margin is None else margin):
            return problem
    raise AssertionError("unreachable")


def normal_like(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)


# --- Strides -----------------------------------------------------------------------------------------
# The memory between the elements is NaN, so that reading it is noticed.


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1)


def _swapped(x: Tensor) -> Tensor:  # the layout of batch_first: the units stay contiguous
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)


def _sliced(x: Tensor) -> Tensor:
    view = x.new_full([2 * n + 1 for n in x.shape], torch.nan)[(slice(1, None, 2),) * x.dim()]
    return view.copy_(x)


def _padded(x: Tensor) -> Tensor:
    view = x.new_full((*x.shape[:-1], x.shape[-1] + 3), torch.nan)[..., 1:-2]
    return view.copy_(x)


def _expanded(x: Tensor) -> Tensor:  # changes the values: all entries equal the first one
    return x[:1].expand_as(x)


def _inner(x: Tensor) -> Tensor:  # changes the values of a vector: all equal the first one
    return x[..., :1].expand_as(x)


LAYOUTS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {  # with the least number of dimensions
    "contiguous": (0, lambda x: x),
    "transposed": (2, _transposed),
    "swapped": (3, _swapped),
    "sliced": (1, _sliced),
    "padded": (1, _padded),
    "expanded": (1, _expanded),
    "constant": (1, _inner),
}


def relaid(x: Tensor, layout: str) -> Tensor:
    dimensions, lay = LAYOUTS[layout]
    return lay(x) if x.dim() >= dimensions and x.numel() else x


def moved(x: Tensor, device: str) -> Tensor:
    """Return a copy on another device with the same strides, and NaN between the elements."""
    if x.device.type == device:
        return x
    extent = (
        1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    )
    memory = torch.full((extent,), torch.nan, dtype=x.dtype, device=device)
    view = memory.as_strided(x.shape, x.stride())
    if 0 in x.stride():  # expanded: copy each element once
        once = x[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())]
        memory.as_strided(once.shape, once.stride()).copy_(once)
    else:
        view.copy_(x)
    return view


# --- Strategies --------------------------------------------------------------------------------------

layouts = st.sampled_from(tuple(LAYOUTS))
# Above 70, sizes near multiples of the block size of the kernels.
hidden_sizes = st.one_of(st.integers(1, 70), st.sampled_from((127, 128, 130)))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Draw any valid call: sizes, form, dtype, decay, packing, direction and strides."""
    packed = draw(st.booleans())
    least = 1 if packed else 0
    problem = make_problem(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(least, 12)),
        draw(st.integers(least, 9)),
        draw(hidden_sizes),
        dtype=draw(st.sampled_from(DTYPES)),
        h0=draw(st.booleans()),
        decay=draw(st.sampled_from(("number", "scalar", "unit"))),
        packed=packed,
        form=draw(st.sampled_from(FORMS)),
        nonlinearity=draw(st.sampled_from(NONLINEARITIES)),
        reverse=draw(st.booleans()),
    )
    for name in problem.tensors:
        problem = problem.relaid(name, draw(layouts))
    return problem


# --- Comparing ---------------------------------------------------------------------------------------


def distance(actual: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Return the largest difference, relative to the largest magnitude of `expected` (or to `least`)."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    scale = max(float(expected.abs().max()), least)
    difference = float((actual.double() - expected.double()).abs().max())
    return difference / scale if scale else difference


def assert_near(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    tolerance: float,
    least: Mapping[str, float] | None = None,
) -> None:
    """Assert the same names and shapes, and a `distance` within the tolerance for each tensor."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        off = distance(actual[name], value, least[name] if least else 1.0)
        assert off <= tolerance, f"{name} is off by {off:.3g}"  # also fails for NaN


def gradients(problem: Problem, grad_output: Tensor | None, grad_h_n: Tensor | None) -> dict[str, Tensor]:
    """Return the gradients of the package by name, for a problem made of leaves."""
    pairs = [
        (value, grad)
        for value, grad in zip(problem.run(), (grad_output, grad_h_n), strict=True)
        if grad is not None
    ]
    outputs, incoming = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, list(problem.tensors.values()), incoming)
    return dict(zip(problem.tensors, found, strict=True))


def check_forward(problem: Problem) -> None:
    output, h_n = problem.run()
    assert output.dtype == h_n.dtype == problem.dtype
    expected = dict(zip(("output", "h_n"), problem.expected(), strict=True))
    assert_near({"output": output, "h_n": h_n}, expected, TOLERANCE[problem.dtype])


def check_backward(problem: Problem, grad_output: Tensor | None, grad_h_n: Tensor | None) -> None:
    leaves = problem.leaves()
    found = gradients(leaves, grad_output, grad_h_n)
    assert all(g.dtype == problem.dtype for g in found.values())
    expected = problem.expected_gradients(grad_output, grad_h_n)
    assert_near(found, expected, TOLERANCE[problem.dtype], problem.magnitudes())


def check(problem: Problem, seed: int = 1) -> None:
    """Compare forward and backward with the reference."""
    check_forward(problem)
    grads = (normal_like(x, seed + i) for i, x in enumerate(problem.expected()))
    check_backward(problem, *(g.to(problem.dtype) for g in grads))


def rounds_factors(dtype: torch.dtype) -> bool:
    """Return whether the products round W_hh and its operand to this dtype."""
    return dtype == torch.bfloat16 and build_config()["active_instruction_set"] == "avx512bf16"


def check_half(problem: Problem, dtype: torch.dtype) -> None:
    """Compare half precision with float32 for the same values: results are rounded once.

    With bfloat16 products, the operands are rounded as well.
    """
    half = replace(problem, **{k: x.to(dtype) for k, x in problem.tensors.items() if k != "decay"}).leaves()
    wide = replace(problem, **{k: x.detach().float() for k, x in half.tensors.items()}).leaves()
    exact, eps = not rounds_factors(dtype), torch.finfo(dtype).eps
    for found, expected in zip(half.run(), wide.run(), strict=True):
        assert torch.equal(found, expected.to(dtype)) if exact else distance(found, expected) < 2 * eps
    if not exact and problem.keywords["nonlinearity"] == "relu":
        return  # rounding may carry z across the kink
    grads = [normal_like(x, seed).to(dtype) for seed, x in enumerate((problem.pre, problem.h0))]
    gradient = gradients(half, *grads)
    expected_gradient = gradients(wide, *(grad.float() for grad in grads))
    for name, value in gradient.items():
        assert value.dtype == (torch.float32 if name == "decay" else dtype)
        # The values kept for backward (the output, and f(z) if f is smooth) are stored in half precision.
        assert distance(value, expected_gradient[name]) < 8 * eps, name


# Every number of rows of a register tile; numbers of units on both sides of the end of a block or a word.
GRID_SHAPES = (
    (1, 1, 1), (4, 2, 15), (4, 3, 16), (3, 4, 17), (5, 5, 31), (2, 6, 32), (3, 7, 33), (3, 8, 48),
    (2, 9, 64), (3, 11, 65), (2, 13, 100), (6, 1, 130), (3, 2, 257),
)  # fmt: skip


def grid() -> Iterator[Problem]:
    for (steps, batch, hidden), (form, nonlinearity), dtype in itertools.product(GRID_SHAPES, KINDS, DTYPES):
        yield clear_problem(
            7, steps, batch, hidden, form=form, nonlinearity=nonlinearity, dtype=dtype, packed=steps == 3
        )


def check_grid(instruction_set: str) -> None:
    """Check the grid. It runs in its own process, because a process chooses its instruction set once."""
    assert build_config()["active_instruction_set"] == instruction_set
    for problem in grid():
        check(problem)
        if problem.dtype == torch.float32:
            check_half(problem, torch.bfloat16)
            check_half(problem, torch.float16)


# --- Processes ---------------------------------------------------------------------------------------


def run_python(
    *arguments: str, cwd: Path | str | None = None, timeout: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with the tests importable and with these environment variables."""
    tests = Path(__file__).parent
    folders = [tests, *(path for path in sorted(tests.iterdir()) if path.is_dir())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))} | variables
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
