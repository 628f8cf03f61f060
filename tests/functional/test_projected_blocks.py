"""Projection and recurrence as one operator, which runs in blocks of steps, compared with separate calls."""

from __future__ import annotations

import os

import pytest
import torch
from helpers import distance

from rnnkernels import LeakyRNN, functional, projected_recurrence

HIDDEN, INPUTS = 1024, 3


def leaves(rows: tuple[int, ...], batch: int) -> dict[str, torch.Tensor]:
    shapes = {
        "input": (*rows, INPUTS),
        "h0": (batch, HIDDEN),
        "weight_ih": (HIDDEN, INPUTS),
        "weight_hh": (HIDDEN, HIDDEN),
        "bias": (HIDDEN,),
        "drive": (*rows, HIDDEN),
        "decay": (HIDDEN,),
    }
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    values["weight_hh"] /= HIDDEN**0.5
    values["decay"] = torch.rand(HIDDEN, dtype=torch.float64) * 0.9
    return {name: x.requires_grad_() for name, x in values.items()}


def apart(x, batch_sizes, spec):
    pre = torch.nn.functional.linear(x["input"], x["weight_ih"], x["bias"]) + x["drive"]
    return functional.leaky_recurrence(
        pre, x["h0"], x["weight_hh"], x["decay"], batch_sizes=batch_sizes, **spec
    )


def together(x, batch_sizes, spec):
    weights = (x["weight_ih"], x["weight_hh"], x["bias"], x["decay"])
    return projected_recurrence(
        x["input"], x["h0"], *weights, drive=x["drive"], batch_sizes=batch_sizes, **spec
    )


def gradients(function, x, batch_sizes, spec, wanted):
    output, h_n = function(x, batch_sizes, spec)
    chance = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(y.shape, generator=chance, dtype=y.dtype) * y).sum() for y in (output, h_n))
    return output, h_n, *torch.autograd.grad(loss, [x[name] for name in wanted])


# 8 MiB hold 1024 rows of this many float64: 5 steps of 400 rows are blocks of 2, 2 and 1.
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["rate", "current"])
def test_blocks_of_steps_equal_one_scan(form, packed, reverse):
    batch_sizes = torch.tensor([500, 500, 400, 350, 200, 40]) if packed else None
    x = leaves((int(batch_sizes.sum()),) if packed else (5, 400), 500 if packed else 400)
    spec = {"form": form, "nonlinearity": "tanh", "reverse": reverse}
    found, expected = (gradients(f, x, batch_sizes, spec, x) for f in (together, apart))
    for name, a, b in zip(("output", "h_n", *x), found, expected, strict=True):
        assert distance(a, b) < 1e-13, name


def test_without_h0_the_first_block_starts_at_zero():
    x = leaves((5, 400), 400)
    del x["h0"]
    x_or_none = {**x, "h0": None}
    spec = {"form": "current", "nonlinearity": "relu"}
    found, expected = (gradients(f, x_or_none, None, spec, x) for f in (together, apart))
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < 1e-13


def resident(which: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(which))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux resets its peak there")
def test_backward_allocates_memory_for_one_block_of_steps():
    layer, x = LeakyRNN(INPUTS, HIDDEN, decay=0.5), torch.randn(60, 700, INPUTS)
    layer(x[:1])[0].sum().backward()  # allocates the gradients
    output, _ = layer(x)
    grad = torch.ones_like(output)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    output.backward(grad)
    assert resident("VmHWM") - before < output.numel() * 4 // 2


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["rate", "current"])
def test_opcheck_of_backward(form, packed):
    batch_sizes = torch.tensor([3, 2, 2]) if packed else None
    rows = (7,) if packed else (3, 3)
    x, chance = torch.randn(*rows, 2), torch.randn
    weights = (chance(5, 2), chance(5, 5))
    operator = torch.ops.rnnkernels.projected_recurrence
    spec = ("tanh", form, False)
    output, h_n, saved = operator(
        x, chance(3, 5), *weights, None, None, torch.tensor(0.5), batch_sizes, *spec, True
    )
    torch.library.opcheck(
        torch.ops.rnnkernels.projected_recurrence_backward.default,
        (
            *(torch.randn_like(output), torch.randn_like(h_n), output, saved, x, chance(3, 5), *weights),
            *(torch.tensor(0.5), batch_sizes, *spec, (True,) * 7),
        ),
    )
