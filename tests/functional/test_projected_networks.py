"""Projection and recurrence of G networks in one call, compared with one call per network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import KINDS, normal_like
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap
from torch.utils._pytree import tree_map

from rnnkernels import projected_recurrence

PROJECTED = torch.ops.rnnkernels.projected_recurrence.default
BACKWARD = torch.ops.rnnkernels.projected_recurrence_backward.default
INPUTS = 3
NAMES = ("input", "h0", "weight_ih", "weight_hh", "bias", "drive", "decay")


def networks(
    count: int,
    steps: int,
    batch: int,
    hidden: int,
    *,
    packed: bool = False,
    decay: str = "[G, H]",
) -> tuple[dict[str, Any], Tensor | None]:
    """Return the arguments of `count` networks, and batch sizes."""
    batch_sizes = torch.tensor([batch] * (steps // 2) + [1] * (steps - steps // 2)) if packed else None
    rows = (int(batch_sizes.sum()),) if batch_sizes is not None else (steps, batch)
    shapes = {
        "input": (count, *rows, INPUTS),
        "h0": (count, batch, hidden),
        "weight_ih": (count, hidden, INPUTS),
        "weight_hh": (count, hidden, hidden),
        "bias": (count, hidden),
        "drive": (count, *rows, hidden),
    }
    tensors = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["weight_hh"] /= hidden**0.5
    shape = {"[G, H]": (count, hidden), "[H]": (hidden,), "scalar": ()}[decay]
    return tensors | {"decay": torch.rand(shape, dtype=torch.float64) * 0.9}, batch_sizes


def results(tensors: dict[str, Tensor], batch_sizes: Tensor | None, spec: tuple[Any, ...]) -> list[Tensor]:
    """Return output, h_n and all gradients."""
    output, h_n, saved = PROJECTED(*tensors.values(), batch_sizes, *spec, True)
    input, h0, weight_ih, weight_hh, _, _, decay = tensors.values()
    kept = (output, saved, input, h0, weight_ih, weight_hh, decay, batch_sizes)
    grads = BACKWARD(output.cos(), h_n.sin(), *kept, *spec, (True,) * 7)
    return [output, h_n, *grads]


# 512 KiB hold 512 rows of 128 float64, so each thread has one network at a time; 8 MiB hold 2048 of 512.
SIZES = {
    "some networks": (7, 9, 100, 128),
    "and some steps": (5, 6, 600, 512),
    "one": (1, 4, 2, 5),
    "none": (0, 4, 2, 5),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("form", "nonlinearity", "reverse"), [("rate", "relu", False), ("current", "tanh", True)]
)
def test_networks_have_the_same_bits_as_in_calls_of_their_own(form, nonlinearity, reverse, packed, sizes):
    tensors, batch_sizes = networks(*SIZES[sizes], packed=packed)
    spec = (nonlinearity, form, reverse)
    together = results(tensors, batch_sizes, spec)
    for network in range(SIZES[sizes][0]):
        alone = results({name: x[network] for name, x in tensors.items()}, batch_sizes, spec)
        for name, a, b in zip(("output", "h_n", *NAMES), together, alone, strict=True):
            assert torch.equal(a[network], b), name


# The second is large enough for torch's own sum to use several threads.
@pytest.mark.parametrize("sizes", [(7, 9, 100, 128), (2048, 1, 1, 32)])
@pytest.mark.parametrize("decay", ["[H]", "scalar"])
def test_a_decay_of_all_networks_has_the_sum_of_their_gradients(decay, sizes):
    tensors, _ = networks(*sizes, decay=decay)
    spec = ("relu", "rate", False)
    threads, found = torch.get_num_threads(), []
    for n in (1, 2):
        torch.set_num_threads(n)
        found.append(results(tensors, None, spec)[-1])
    torch.set_num_threads(threads)
    assert torch.equal(*found)
    each = tensors | {"decay": tensors["decay"].expand(sizes[0], sizes[3])}
    torch.testing.assert_close(found[0], results(each, None, spec)[-1].sum_to_size(tensors["decay"].shape))


def test_opcheck():
    for packed in (False, True):
        tensors, batch_sizes = networks(2, 4, 3, 5, packed=packed)
        spec = ("tanh", "rate", False)
        leaves = [x.requires_grad_() for x in tensors.values()]
        torch.library.opcheck(PROJECTED, (*leaves, batch_sizes, *spec, True))
        output, h_n, saved = (x.detach() for x in PROJECTED(*leaves, batch_sizes, *spec, True))
        input, h0, weight_ih, weight_hh, _, _, decay = (x.detach() for x in leaves)
        kept = (output, saved, input, h0, weight_ih, weight_hh, decay, batch_sizes)
        torch.library.opcheck(BACKWARD, (output, h_n, *kept, *spec, (True,) * 7))


# Which arguments have examples; the others are shared.
EXAMPLES = [NAMES, ("weight_ih",), ("bias",), ("input", "h0"), ("weight_hh", "decay"), ("decay",)]


def loss(spec: dict[str, Any], batch_sizes: Tensor | None, *tensors: Tensor) -> Tensor:
    *others, drive, decay = tensors
    output, h_n = projected_recurrence(*others, decay, drive=drive, batch_sizes=batch_sizes, **spec)
    return output.square().sum() + h_n.sin().sum()


@pytest.mark.parametrize("names", EXAMPLES, ids="+".join)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("form", "nonlinearity"), [KINDS[0], KINDS[-1]])
def test_vmap_of_derivatives_is_a_loop(form, nonlinearity, packed, names):
    many, batch_sizes = networks(3, 4, 2, 5, packed=packed)
    spec = {"form": form, "nonlinearity": nonlinearity}
    tensors = [x if name in names else x[0] for name, x in many.items()]
    tangents = [normal_like(x, i) for i, x in enumerate(tensors)]
    dims = [0 if name in names else None for name in many]

    def first(*tensors):
        grads, value = grad_and_value(lambda *x: loss(spec, batch_sizes, *x), tuple(range(7)))(*tensors)
        return (value, *grads)

    def forward(primals, tangents):
        return jvp(lambda *x: loss(spec, batch_sizes, *x), primals, tangents)

    def second(primals, tangents):
        gradient = grad(lambda *x: loss(spec, batch_sizes, *x), tuple(range(7)))
        return jvp(gradient, primals, tangents)[1]

    pairs, both = (tuple(tensors), tuple(tangents)), (tuple(dims), tuple(dims))
    cases = ((first, tuple(tensors), tuple(dims)), (forward, pairs, both), (second, pairs, both))
    for function, arguments, in_dims in cases:
        together = vmap(function, in_dims)(*arguments)
        for i in range(3):
            single = tree_map(
                lambda x, d, i=i: x if d is None else x[i], arguments, in_dims, is_leaf=torch.is_tensor
            )
            for a, b in zip(together, function(*single), strict=True):
                torch.testing.assert_close(a[i], b)


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (4, 0)])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("names", EXAMPLES, ids="+".join)
def test_vmap_of_no_steps_and_of_no_rows(names, nonlinearity, steps, batch):
    many, _ = networks(3, steps, batch, 5)
    tensors = [x if name in names else x[0] for name, x in many.items()]
    dims = [0 if name in names else None for name in many]
    spec = {"form": "rate", "nonlinearity": nonlinearity}
    grads = vmap(grad(lambda *x: loss(spec, None, *x), tuple(range(7))), tuple(dims))(*tensors)
    for found, x, dim in zip(grads, tensors, dims, strict=True):
        assert found.shape == (x.shape if dim == 0 else (3, *x.shape))
