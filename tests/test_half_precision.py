"""Half precision a block of steps at a time: the float32 walk of what is stored, rounded once."""

from __future__ import annotations

import os

import pytest
import torch
from helpers import distance
from test_projected_blocks import resident

HIDDEN = 512  # 16 MiB hold 16384 rows of this many: blocks of 4, 4 and 1 steps of 4096 rows
FORWARD = torch.ops.rnnkernels.leaky_recurrence.default
BACKWARD = torch.ops.rnnkernels.leaky_recurrence_backward.default


def problem(dtype, packed):
    sizes = torch.tensor([4096, 4096, 4000, 4000, 3000, 500, 500, 7, 7]) if packed else None
    rows = (int(sizes.sum()),) if packed else (9, 4096)
    pre = torch.randn(*rows, HIDDEN).to(dtype)
    h0, weight = torch.randn(4096, HIDDEN).to(dtype), (torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5).to(dtype)
    return pre, h0, weight, torch.rand(HIDDEN).mul(0.9), sizes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_steps_are_one_walk_in_float32(packed, reverse, dtype):
    pre, h0, weight, decay, sizes = problem(dtype, packed)
    kind = ("relu", "rate", reverse)
    wide = [x.float() for x in (pre, h0, weight)]
    found, expected = (
        FORWARD(pre, h0, weight, decay, sizes, *kind, True),
        FORWARD(*wide, decay, sizes, *kind, True),
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b.to(a.dtype))
    grad, grad_h_n = torch.randn_like(found[0]), torch.randn_like(found[1])
    everything = (True,) * 4
    back = BACKWARD(grad, grad_h_n, found[0], found[2], h0, weight, decay, sizes, *kind, everything)
    exact = BACKWARD(
        grad.float(), grad_h_n.float(), found[0].float(), found[2], *wide[1:], decay, sizes, *kind, everything
    )
    for name, a, b in zip(("pre", "h0", "weight_hh", "decay"), back, exact, strict=True):
        if name in ("pre", "h0"):  # no sum goes over blocks
            assert torch.equal(a, b.to(a.dtype)), name
        assert distance(a.double(), b.double()) < 1e-2, name


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux resets its peak there")
def test_no_sequence_is_there_in_float32():
    pre, h0, weight, decay, _ = problem(torch.bfloat16, False)
    pre = pre.repeat(8, 1, 1)
    output = 2 * pre.numel()

    def peak(call):
        call()
        before = resident("VmRSS")
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
        kept = call()
        return resident("VmHWM") - before, kept

    taken, (h, _, bits) = peak(lambda: FORWARD(pre, h0, weight, decay, None, "relu", "rate", False, True))
    assert taken < 1.7 * output  # the output, its bits, and a block of 32 MiB twice
    grad = torch.randn_like(h)
    kind = ("relu", "rate", False)
    taken, _ = peak(lambda: BACKWARD(grad, None, h, bits, h0, weight, decay, None, *kind, (True,) * 4))
    assert taken < 2 * output
