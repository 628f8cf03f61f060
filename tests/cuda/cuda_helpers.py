"""Helpers for the tests of CUDA tensors: the device, the teams that can be requested, tolerances, and the
comparison with the reference.

With RNNKERNELS_TEST_DEVICE=cpu the tests run without a GPU, on CPU tensors. In the module for the emulated
GPU (CMakeLists.txt, RNNKERNELS_EMULATED) CPU tensors use the CUDA kernels.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from helpers import (
    KINDS,
    Problem,
    assert_near,
    clear_problem,
    gradients,
    make_problem,
    moved,
    normal_like,
)
from torch import Tensor

from rnnkernels import _C, build_config

DEVICE = os.environ.get("RNNKERNELS_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
HAS_TEAMS = "cuda:0" in _C.known_devices()  # a GPU, or the emulated GPU
CAN_RUN = not ON_GPU or (torch.cuda.is_available() and build_config()["cuda"])

# A different seed in every run; a failing test prints it.
SEED = int(os.environ.get("RNNKERNELS_TEST_SEED", random.SystemRandom().randrange(2**31)))

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Tolerances against the reference in float64, relative to the largest magnitude; the native tests use the
# same ones (tests/native/recurrences.h). Products of bfloat16 round both factors, those of float16 have the
# digits of TF32. Gradients have the tolerance of check_half in helpers.py, because backward reads values that
# were stored in half precision. FAIR is the least distance from ReLU's kink at which gradients are compared.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2, torch.float16: 2e-3}
GRADIENT_TOLERANCE = TOLERANCE | {x: 8 * torch.finfo(x).eps for x in (torch.bfloat16, torch.float16)}
FAIR = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}

TEAMS = ("", "block", "cluster2", "cluster4", "cluster8", "cluster16", "grid", "steps")
# (T, B, H): small shapes for all teams, and large shapes that only large teams hold on chip.
SMALL = dict.fromkeys(TEAMS, ((1, 1, 1), (6, 3, 7), (5, 9, 33), (4, 17, 64)))
LARGE = {
    "": ((3, 8, 257), (2, 5, 1030), (2, 3, 4100)),
    "block": ((4, 8, 128), (3, 5, 200)),
    "cluster2": ((3, 8, 300),),
    "cluster4": ((3, 8, 500),),
    "cluster8": ((3, 8, 700),),
    "cluster16": ((3, 8, 1000),),
    "grid": ((3, 17, 256), (3, 8, 1024)),
    "steps": ((3, 8, 300), (2, 100, 1024)),
}


def fits(team: str, problem: Problem) -> bool:
    """Whether a problem fits a team on this device; always true for the CPU kernels, which have no teams."""
    if not HAS_TEAMS:
        return True
    dtype = str(problem.dtype).removeprefix("torch.")
    batch = problem.pre.shape[-2] if problem.batch_sizes is None else int(problem.batch_sizes[0])
    try:
        _C.plan(problem.pre.shape[-1], batch, dtype, 1, "cuda:0", team)
    except ValueError as error:
        assert "does not fit" in str(error)  # noqa: PT017  (it may fit)
        return False
    return True


def poison() -> None:
    """Fill freed memory with NaN: torch reuses it for the next tensors, so reads of unwritten memory fail."""
    for size in (2**8, 2**12, 2**16, 2**20):
        held = [torch.full((size,), torch.nan, device=DEVICE) for _ in range(8)]
        del held


def drawn(seed: int, shape: tuple[int, int, int], dtype: torch.dtype, **fixed: Any) -> Problem:
    """A problem of this shape and dtype, with all options that are not ``fixed`` drawn from the seed."""
    draw = random.Random(seed)
    form, nonlinearity = draw.choice(KINDS)
    options = {
        "packed": draw.random() < 0.5,
        "reverse": draw.random() < 0.5,
        "h0": draw.random() < 0.5,
        # A Python number is not rounded to half precision, but the reference would round it.
        "decay": draw.choice(("scalar", "unit", "number") if dtype.itemsize > 2 else ("scalar", "unit")),
        "form": form,
        "nonlinearity": nonlinearity,
    }
    return make_problem(seed, *shape, dtype=dtype, **(options | fixed))


def check(problem: Problem, seed: int) -> None:
    """Forward and backward on the device against the reference."""
    here = problem.to(DEVICE).leaves()
    expected = dict(zip(("output", "h_n"), problem.expected(), strict=True))
    poison()
    found = dict(zip(("output", "h_n"), here.run(), strict=True))
    assert all(x.dtype == problem.dtype and x.device.type == DEVICE for x in found.values())
    assert_near(found, expected, TOLERANCE[problem.dtype])
    if problem.kink_margin() <= FAIR[problem.dtype]:
        return  # rounding can move an argument of f across the kink
    grads = [normal_like(x, seed + i).to(problem.dtype) for i, x in enumerate(expected.values())]
    poison()
    backward = gradients(here, *(g.to(DEVICE) for g in grads))
    expected = problem.expected_gradients(*grads)
    assert_near(backward, expected, GRADIENT_TOLERANCE[problem.dtype], problem.magnitudes())


def kinds_on_device(seed: int, *shape: int, dtype: torch.dtype, **options: Any) -> Iterator[Problem]:
    """One problem per form and nonlinearity, away from the kink."""
    for form, nonlinearity in KINDS:
        yield clear_problem(
            seed, *shape, dtype=dtype, form=form, nonlinearity=nonlinearity, margin=FAIR[dtype], **options
        )


def results(problem: Problem, seed: int = 0) -> list[Tensor]:
    """The outputs and all gradients of a call on the device."""
    leaves = problem.to(DEVICE).leaves()
    output, h_n = leaves.run()
    grads = [normal_like(x.cpu(), seed + i).to(DEVICE) for i, x in enumerate((output, h_n))]
    return [output, h_n, *torch.autograd.grad((output, h_n), list(leaves.tensors.values()), grads)]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))
        for x, y in zip(a, b, strict=True)
    )


def on_device(x: Tensor) -> Tensor:
    return moved(x, DEVICE)


def wide(problem: Problem) -> Problem:
    """The same problem in float64, for the CPU."""
    return replace(problem, **{name: x.detach().double() for name, x in problem.tensors.items()})
