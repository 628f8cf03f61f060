"""Autocast: dtypes as in the table of docs/layer.md."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rnnkernels import LeakyRNN


class Dtypes(TorchDispatchMode):
    """Records the dtypes in which products and recurrences run."""

    def __init__(self):
        super().__init__()
        self.projections, self.recurrences = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        noted = self.recurrences if "recurrence" in str(function) else self.projections
        if any(name in str(function) for name in ("recurrence", "mm.default")):
            noted |= {x.dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("reduced", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_of_projection_and_recurrence_under_autocast(dtype, reduced):
    layer = LeakyRNN(3, 5, 2, decay=0.5, learn_decay=True, learn_h0=True, dtype=dtype)
    projected, recurrent = (dtype, dtype) if dtype == torch.float64 else (reduced, torch.float32)
    with Dtypes() as seen:
        with torch.autocast("cpu", dtype=reduced):
            output, h_n = layer(torch.randn(4, 2, 3, dtype=dtype))
        (output.sum() + h_n.sum()).backward()
    assert output.dtype == h_n.dtype == recurrent
    assert seen.recurrences == {recurrent}
    assert seen.projections == {projected}
    of_decay = torch.promote_types(dtype, torch.float32)
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == (of_decay if name == "decay_logit" else dtype), name
