"""rnnkernels::product against torch's own in float64: sizes, strides, threads, derivatives, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import DTYPES, TOLERANCE, distance, normal_like
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

import rnnkernels  # noqa: F401  (registers the operators)

PRODUCT = torch.ops.rnnkernels.product.default

# Around the tile's rows, the blocks' columns and the parts of the depth.
SIZES = st.one_of(st.integers(0, 70), st.sampled_from([255, 256, 257, 511, 512, 513, 1000]))
LAYOUTS = ("plain", "transposed", "sliced", "sliced transposed", "offset", "same row", "same column", "one")


def matrix(rows: int, columns: int, layout: str, dtype: torch.dtype) -> Tensor:
    """Random numbers that lie as `layout` says."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    match layout:
        case "transposed":
            return draw(columns, rows).T
        case "sliced":
            return draw(2 * rows, 3 * columns)[::2, ::3]
        case "sliced transposed":
            return draw(3 * columns, 2 * rows).T[1::2, 2::3]
        case "offset":
            return draw(rows * columns + 3)[3:].view(rows, columns)
        case "same row":
            return draw(1, columns).expand(rows, columns)
        case "same column":
            return draw(rows, 1).expand(rows, columns)
        case "one":
            return draw(1, 1).expand(rows, columns)
    return draw(rows, columns)


@given(
    SIZES, SIZES, SIZES, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.sampled_from(DTYPES),
    st.booleans(),
)  # fmt: skip
def test_it_is_torch_s_product_and_the_same_bits_for_any_number_of_threads(
    rows, depth, columns, left_layout, right_layout, dtype, with_bias
):
    left, right = matrix(rows, depth, left_layout, dtype), matrix(depth, columns, right_layout, dtype)
    bias = matrix(columns, 1, "sliced", dtype)[:, 0] if with_bias else None
    found = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.append(PRODUCT(left, right, bias))
    for other in found[1:]:
        assert torch.equal(found[0], other)
    add = torch.zeros(columns, dtype=torch.float64) if bias is None else bias.double()
    expected = left.double() @ right.double() + add
    # What rounding of a chain of additions can come to; equal numbers round alike and do come near it.
    rounding = torch.finfo(dtype).eps * (2 + depth)
    magnitude = left.double().abs() @ right.double().abs() + add.abs()
    assert found[0].shape == expected.shape
    assert ((found[0] - expected).abs() <= rounding * magnitude).all()


@pytest.mark.parametrize("shape", [(5,), (0, 5), (3, 0, 5), (2, 3, 4, 5)], ids=str)
def test_any_number_of_leading_dimensions(shape):
    left, right, bias = torch.randn(shape), torch.randn(5, 7), torch.randn(7)
    found = PRODUCT(left, right, bias)
    assert found.shape == (*shape[:-1], 7)
    assert distance(found, left @ right + bias) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["left", "right", "bias"])
def test_nan_and_infinity_spoil_what_they_meet_and_nothing_else(which, value, dtype):
    # No multiple of a block, so that they lie beside lanes that hold nothing.
    arguments = {"left": torch.randn(7, 19, dtype=dtype), "right": torch.randn(19, 21, dtype=dtype),
                 "bias": torch.randn(21, dtype=dtype)}  # fmt: skip
    arguments[which].flatten()[-1] = value
    found = PRODUCT(*arguments.values())
    expected = arguments["left"] @ arguments["right"] + arguments["bias"]
    for pattern in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(pattern(found), pattern(expected))
    assert not found.isfinite().all()
    assert found.isfinite().any()


# --- Derivatives and registration --------------------------------------------------------------------


def drawn(shape: tuple[int, ...] = (4, 3), with_bias: bool = True) -> list[Tensor | None]:
    sizes = [shape, (shape[-1], 5), (5,)]
    tensors: list[Tensor | None] = [
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes
    ]
    return tensors if with_bias else [*tensors[:2], None]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (0, 3), (4, 0), (2, 4, 3)], ids=str)
def test_opcheck_and_derivatives(shape, with_bias):
    arguments = drawn(shape, with_bias)
    torch.library.opcheck(PRODUCT, tuple(arguments))
    checks = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(PRODUCT, arguments, **checks)
    assert torch.autograd.gradgradcheck(PRODUCT, arguments, check_batched_grad=True)


@pytest.mark.parametrize("which", range(3))
def test_only_what_is_asked_for_has_a_gradient(which):
    everything = drawn()
    expected = torch.autograd.grad(PRODUCT(*everything).sin().sum(), everything)
    some = [x.detach().requires_grad_(i == which) for i, x in enumerate(everything)]
    PRODUCT(*some).sin().sum().backward()
    for i, x in enumerate(some):
        assert (x.grad is None) if i != which else distance(x.grad, expected[i]) < 1e-15


@pytest.mark.parametrize("which", range(3))
def test_forward_mode_and_torch_func_know_it(which):
    point = [x.detach() for x in drawn()]
    along = normal_like(point[which], 1)

    def run(x: Tensor) -> Tensor:
        return PRODUCT(*point[:which], x, *point[which + 1 :])

    expected = (run(point[which] + along) - run(point[which])) if which < 2 else along.expand(4, 5)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(point[which], along))).tangent
    assert distance(tangent, expected) < 1e-14
    assert distance(torch.func.jvp(run, (point[which],), (along,))[1], expected) < 1e-14
    many = torch.stack([point[which], along])
    assert distance(torch.func.vmap(run)(many), torch.stack([run(x) for x in many])) < 1e-14
    gradient = torch.func.grad(lambda x: run(x).sin().sum())(point[which])
    leaf = point[which].clone().requires_grad_()
    assert distance(gradient, torch.autograd.grad(run(leaf).sin().sum(), leaf)[0]) < 1e-14


# --- Errors ------------------------------------------------------------------------------------------


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


GOOD = {"left": zeros(5, 3), "right": zeros(3, 4), "bias": zeros(4)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"left": zeros()}, r"^left must be \[\.\.\., K\], got a scalar"),
        ({"left": zeros(5, 3, dtype=torch.float16)}, "^left must be float32 or float64, got Half"),
        ({"left": zeros(5, 3, dtype=torch.int64)}, "^left must be float32 or float64, got Long"),
        ({"left": zeros(5, 3, dtype=torch.float64)}, "^right must have the dtype of left, Double, got Float"),
        ({"left": zeros(5, 2)}, r"^right must be \[K, N\] = \[2, 4\], got \[3, 4\]"),
        ({"right": zeros(3)}, r"^right must be \[K, N\], got \[3\]"),
        ({"right": zeros(1, 3, 4)}, r"^right must be \[K, N\], got \[1, 3, 4\]"),
        ({"right": zeros(3, 5)}, r"^bias must be \[N\] = \[5\], got \[4\]"),
        ({"bias": zeros(1)}, r"^bias must be \[N\] = \[4\], got \[1\]"),
        ({"bias": zeros(4, 1)}, r"^bias must be \[N\] = \[4\], got \[4, 1\]"),
        ({"bias": zeros(4, dtype=torch.float64)}, "^bias must have the dtype of left, Float, got Double"),
    ],
    ids=str,
)
def test_errors_are_the_same_sentence_for_real_and_for_meta_tensors(wrong, message):
    values: dict[str, Any] = GOOD | wrong
    for arguments in (values, {name: x.to("meta") for name, x in values.items()}):
        with pytest.raises(ValueError, match=message):
            PRODUCT(*arguments.values())


@pytest.mark.parametrize("name", GOOD)
def test_one_meta_tensor_among_real_ones_is_refused(name):
    named = "right" if name == "left" else name
    with pytest.raises(ValueError, match=f"^{named} must be on the device of left"):
        PRODUCT(*(GOOD | {name: GOOD[name].to("meta")}).values())


def test_good_arguments_are_accepted():
    assert PRODUCT(*GOOD.values()).shape == (5, 4)
    meta = PRODUCT(*(x.to("meta") for x in GOOD.values()))
    assert (meta.is_meta, meta.shape, meta.stride()) == (True, (5, 4), (4, 1))
