"""Half precision is for storage: the kernels widen values as they read and round them as they write."""

from __future__ import annotations

import os

import pytest
import torch
from test_projected_blocks import resident

HIDDEN = 512
FORWARD = torch.ops.rnnkernels.leaky_recurrence.default
BACKWARD = torch.ops.rnnkernels.leaky_recurrence_backward.default


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux resets its peak there")
def test_no_sequence_is_copied_to_float32():
    pre, h0 = torch.randn(72, 4096, HIDDEN).bfloat16(), torch.randn(4096, HIDDEN).bfloat16()
    weight, decay = (torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5).bfloat16(), torch.rand(HIDDEN).mul(0.9)
    output = 2 * pre.numel()

    def peak(call):
        call()
        before = resident("VmRSS")
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
        kept = call()
        return resident("VmHWM") - before, kept

    taken, (h, _, bits) = peak(lambda: FORWARD(pre, h0, weight, decay, None, "relu", "rate", False, True))
    assert taken < 1.2 * output  # the output, its bits, and the state
    grad = torch.randn_like(h)
    spec = ("relu", "rate", False)
    taken, _ = peak(lambda: BACKWARD(grad, None, h, bits, h0, weight, decay, None, *spec, (True,) * 4))
    assert taken < 1.3 * output
