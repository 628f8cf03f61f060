"""Decaying values become 0 instead of subnormal, with which x86 processors are slow. Nothing else changes."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor

from rnnkernels import ClippedAdamW, ClippedNesterov
from rnnkernels.functional import leaky_recurrence

flushes = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors are not slow with subnormals"
)
# Multiplying by 0.1 once gives a subnormal number of the dtype, twice a number below all subnormals.
STEPS = {torch.float32: (40, 60), torch.float64: (315, 400)}


@pytest.fixture(params=[1, 2], ids=lambda threads: f"{threads} threads")
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return request.param


def subnormal(x: Tensor) -> Tensor:
    return (x != 0) & (x.abs() < torch.finfo(x.dtype).tiny)


def silent(dtype: torch.dtype, rows: int = 128, hidden: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Return pre, h0 and weight_hh of units without input, with enough rows for several threads."""
    pre = torch.full((STEPS[dtype][1], rows, hidden), -1.0, dtype=dtype)
    return pre, torch.ones(rows, hidden, dtype=dtype), torch.zeros(hidden, hidden, dtype=dtype)


@flushes
@pytest.mark.parametrize("dtype", STEPS)
def test_the_state_of_a_silent_unit_decays_to_zero(dtype: torch.dtype, threads: int) -> None:
    pre, h0, weight = silent(dtype)
    output, h_n = leaky_recurrence(pre, h0, weight, 0.1)
    assert not subnormal(output).any()
    assert not h_n.any()
    faded = 0.1 ** torch.arange(1, STEPS[dtype][1] + 1, dtype=torch.float64)
    normal = faded > 2 * torch.finfo(dtype).tiny
    expected = faded[normal, None, None].expand_as(output[normal])
    torch.testing.assert_close(output[normal].double(), expected, rtol=1e-5, atol=0)


@flushes
@pytest.mark.parametrize("dtype", STEPS)
def test_the_gradient_of_a_silent_unit_decays_to_zero(dtype: torch.dtype, threads: int) -> None:
    pre, h0, weight = silent(dtype)
    h0.requires_grad_()
    output, _ = leaky_recurrence(pre, h0, weight, 0.1)
    for steps in (20, *STEPS[dtype]):
        (found,) = torch.autograd.grad(output[steps - 1].sum(), h0, retain_graph=True)
        assert not subnormal(found).any()
        assert bool(found.any()) == (steps == 20)


def test_the_floating_point_mode_of_the_caller_does_not_change(threads: int) -> None:
    tiny = torch.tensor([torch.finfo(torch.float32).tiny])
    leaky_recurrence(*silent(torch.float32), 0.1)
    assert (tiny * 0.5).item() > 0
    if torch.set_flush_denormal(True):
        try:
            leaky_recurrence(*silent(torch.float32), 0.1)
            assert (tiny * 0.5).item() == 0
        finally:
            torch.set_flush_denormal(False)


def test_subnormal_numbers_in_half_precision_are_kept() -> None:
    """The kernels compute in float32, in which they are normal numbers."""
    h0 = torch.full((2, 8), torch.finfo(torch.float16).smallest_normal, dtype=torch.float16)
    pre = torch.full((3, 2, 8), -1.0, dtype=torch.float16)
    output, _ = leaky_recurrence(pre, h0, torch.zeros(8, 8, dtype=torch.float16), 0.5)
    assert torch.equal(output, torch.stack([h0 / 2, h0 / 4, h0 / 8]))
    assert output.all()


@flushes
@pytest.mark.parametrize("size", [5, 300_000])
@pytest.mark.parametrize("rule", [ClippedNesterov, ClippedAdamW])
def test_optimizer_states_without_gradients_decay_to_zero(
    rule: type[ClippedNesterov | ClippedAdamW], size: int, threads: int
) -> None:
    """Rounding alone would keep a velocity, because 0.9 times the smallest number rounds to that number."""
    param = torch.nn.Parameter(torch.ones(size))
    optimizer = rule([param], 0.1)
    param.grad = torch.zeros(size)
    optimizer.step()
    states = [x for x in optimizer.state[param].values() if isinstance(x, Tensor) and x.shape == param.shape]
    assert states
    for state in states:
        state.fill_(torch.finfo(torch.float32).tiny * 1.01)
    optimizer.step()
    for state in states:
        assert not subnormal(state).any()
    assert param.isfinite().all()
    assert (torch.tensor([1e-38]) * 0.1).item() > 0
