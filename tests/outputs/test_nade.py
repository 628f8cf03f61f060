"""The kernels of NADE: values and gradients of any order, compared with the plain loop."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import DTYPES, distance, run_python
from nade_helpers import NAMES, SHAPES, TOLERANCE, arguments, by_kernels, by_the_loop
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from rnnkernels import _C
from rnnkernels.functional import nade_log_prob, nade_sample
from rnnkernels.outputs import _nade_composite

FORWARD = torch.ops.rnnkernels.nade.default
BACKWARD = torch.ops.rnnkernels.nade_backward.default


def check(v, tensors, seed=1):
    grad = torch.randn(v.shape[:-1], generator=torch.Generator().manual_seed(seed), dtype=tensors[0].dtype)
    for found, expected in zip(by_kernels(v, tensors, grad), by_the_loop(v, tensors, grad), strict=True):
        assert found.shape == expected.shape
        assert found.dtype == tensors[0].dtype
        assert distance(found.double(), expected) < TOLERANCE[found.dtype]


def saved_in(function):
    """Return the tensors that autograd saves in a call, each once."""
    kept = {}

    def keep(x):
        kept[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        function()
    return list(kept.values())


# --- Values and first derivatives --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_loop(shape, dtype):
    for ones in (0.0, 0.05, 0.5, 1.0):
        check(*arguments(*shape, ones=ones, dtype=dtype))


@pytest.mark.parametrize("instruction_set", [name for name, runs in _C.instruction_sets().items() if runs])
def test_every_instruction_set(instruction_set):
    code = (
        "from rnnkernels import _C; from test_nade import *\n"
        f"assert _C.active_instruction_set() == {instruction_set!r}\n"
        "for dtype in DTYPES:\n"
        "    for shape in ((17, 88, 50), (260, 9, 40)): check(*arguments(*shape, dtype=dtype))\n"
    )
    done = run_python("-c", code, RNNKERNELS_ISA=instruction_set)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float16,
                                   torch.bfloat16, torch.float32, torch.float64])  # fmt: skip
def test_v_may_have_any_dtype(dtype):
    v, tensors = arguments(6, 7, 5)
    assert torch.equal(nade_log_prob(v.to(dtype), *tensors), nade_log_prob(v, *tensors))


def test_any_strides():
    v, (b, c, encoder, decoder) = arguments(6, 7, 5)
    wide = torch.zeros(6, 14, dtype=torch.bool)
    wide[:, ::2] = v
    laid = [
        b.T.contiguous().T,
        torch.cat([c, c], 1)[:, :5],
        encoder.T.contiguous().T,
        decoder.flip(0).flip(0),
    ]
    grad = torch.randn(6, dtype=torch.float64)
    expected = by_kernels(v, [b, c, encoder, decoder], grad)
    for a, b in zip(by_kernels(wide[:, ::2], laid, grad), expected, strict=True):
        assert torch.equal(a, b)


def test_expanded_biases():
    v, (b, c, encoder, decoder) = arguments(6, 7, 5)
    one_b, one_c = b[0].clone().requires_grad_(), c[0].clone().requires_grad_()
    nade_log_prob(v, one_b.expand(6, 7), one_c.expand(6, 5), encoder, decoder).sum().backward()
    _, d_b, d_c, *_ = by_the_loop(
        v, [one_b.expand(6, 7), one_c.expand(6, 5), encoder, decoder], torch.ones(6)
    )
    assert distance(one_b.grad, d_b.sum(0)) < 1e-13
    assert distance(one_c.grad, d_c.sum(0)) < 1e-13


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4)))
def test_only_tensors_that_require_gradients_get_them(wanted):
    v, tensors = arguments(6, 7, 5)
    leaves = [x.requires_grad_(want) for x, want in zip(tensors, wanted, strict=True)]
    v = v.double().requires_grad_()
    nade_log_prob(v, *leaves).sum().backward()
    expected = by_the_loop(v, tensors, torch.ones(6))[1:]
    assert v.grad is None
    for x, want, gradient in zip(leaves, wanted, expected, strict=True):
        assert (x.grad is None) is not want
        assert not want or distance(x.grad, gradient) < 1e-13


def test_the_logits_have_a_gradient_too():
    v, tensors = arguments(6, 7, 5)
    leaves = [x.requires_grad_() for x in tensors]
    grads = (torch.randn(6, dtype=torch.float64), torch.randn(6, 7, dtype=torch.float64))
    for chosen in ((0,), (1,), (0, 1)):
        made, loop = FORWARD(v, *leaves), _nade_composite.nade(v, *leaves)
        found, expected = (
            torch.autograd.grad([x[i] for i in chosen], leaves, [grads[i] for i in chosen])
            for x in (made, loop)
        )
        assert all(distance(a, b) < 1e-13 for a, b in zip(found, expected, strict=True))


def test_results_do_not_depend_on_threads():
    v, tensors = arguments(700, 88, 70, dtype=torch.float32)
    generator = torch.Generator()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append([*by_kernels(v, tensors, torch.ones(700)),
                        *nade_sample(*tensors, generator=generator.manual_seed(5))])  # fmt: skip
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_tensor_of_size_d_h_is_saved():
    v, tensors = arguments(50, 40, 30)
    leaves = [x.requires_grad_() for x in tensors]
    kept = saved_in(lambda: nade_log_prob(v, *leaves))
    assert sum(x.numel() for x in kept) <= v.numel() + sum(x.numel() for x in tensors) + 50 * 40
    assert sum(x.numel() for x in saved_in(lambda: _nade_composite.nade(v, *leaves))) > 50 * 40 * 30


def test_v_that_was_changed_after_the_call_raises():
    v, tensors = arguments(6, 7, 5)
    log_prob = nade_log_prob(v, *(x.requires_grad_() for x in tensors))
    v.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_prob.sum().backward()


# --- Extreme and nonfinite values --------------------------------------------------------------------


def test_nearly_certain_units_keep_their_digits():
    v, (b, c, encoder, decoder) = arguments(4, 6, 3, ones=1.0, dtype=torch.float32)
    b += 20
    log_prob, d_b, *_ = by_kernels(v, [b, c, encoder, decoder], torch.ones(4))
    logits = FORWARD(v, b, c, encoder, decoder)[1].double()
    assert distance(log_prob.double(), -torch.nn.functional.softplus(-logits).sum(-1)) < 1e-6
    assert distance(d_b.double(), torch.sigmoid(-logits)) < 1e-6


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", ["visible_bias", "hidden_bias"])
def test_nonfinite_values_stay_in_their_row(where, bad):
    v, tensors = arguments(40, 9, 7)
    tensors[NAMES.index(where)][3, 2] = bad
    others = torch.arange(40) != 3
    grad = torch.ones(40, dtype=torch.float64)
    found, expected = by_kernels(v, tensors, grad), by_the_loop(v, tensors, grad)
    for a, b in list(zip(found, expected, strict=True))[:3]:  # the results with one row per row of v
        assert torch.isfinite(a[others]).all()
        assert distance(a[others], b[others]) < 1e-13
        # Where the loop is finite in that row, the kernel has the same value.
        finite = torch.isfinite(b[3])
        assert torch.equal(torch.isnan(a[3]) & finite, torch.zeros_like(finite))
        assert torch.allclose(a[3][finite], b[3][finite], rtol=1e-12, atol=1e-12)
    sample, logits = torch.ops.rnnkernels.nade_sample(torch.rand_like(tensors[0]), *tensors)
    assert torch.isfinite(logits[others]).all()
    assert set(sample.unique().tolist()) <= {0, 1}
    if torch.isnan(logits).any():
        with pytest.raises(RuntimeError, match="the probabilities to draw from must not be NaN"):
            nade_sample(*tensors)
    else:
        assert set(nade_sample(*tensors)[0].unique().tolist()) <= {0, 1}


def test_weights_of_units_that_are_zero_may_be_infinite():
    v, tensors = arguments(20, 5, 4, ones=0.5)
    v[:, 2] = False
    tensors[2][2] = torch.inf  # the row of W of a unit that is never one
    grad = torch.ones(20, dtype=torch.float64)
    assert all(torch.isfinite(x).all() for x in by_kernels(v, tensors, grad))
    assert torch.isnan(by_the_loop(v, tensors)[0]).all()


def test_large_weights_cost_no_digits():
    """Backward recomputes the hidden units as forward does, and not by subtraction."""
    v, (b, c, encoder, decoder) = arguments(10, 8, 5, ones=0.5, dtype=torch.float32)
    encoder[3] *= 1e8
    check(v, [b, c, encoder, decoder])


# --- Higher derivatives ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 1, 1), (4, 3)])
def test_derivatives_of_second_order_and_forward_mode(shape):
    v, tensors = arguments(*shape, ones=0.5)
    leaves = [x.requires_grad_() for x in tensors]

    def run(*x):
        return nade_log_prob(v, *x)

    assert gradcheck(run, leaves, check_forward_ad=True)
    assert gradgradcheck(run, leaves)


def test_one_matrix_may_be_both_weights():
    v, (b, c, weight, _) = arguments(3, 5, 4, ones=0.5)
    leaves = [x.requires_grad_() for x in (b, c, weight)]
    assert gradcheck(lambda b, c, w: nade_log_prob(v, b, c, w, w), leaves)
    assert gradgradcheck(lambda b, c, w: nade_log_prob(v, b, c, w, w), leaves)


def test_gradients_with_a_graph_are_the_same():
    v, tensors = arguments(6, 7, 5)
    leaves = [x.requires_grad_() for x in tensors]
    for leave_out in (None, 0, 3):
        some = [x for i, x in enumerate(leaves) if i != leave_out]
        plain = torch.autograd.grad(nade_log_prob(v, *leaves).sum(), some)
        graph = torch.autograd.grad(nade_log_prob(v, *leaves).sum(), some, create_graph=True)
        assert all(y.requires_grad and distance(x, y) < 1e-13 for x, y in zip(plain, graph, strict=True))


def test_batched_gradients():
    v, tensors = arguments(6, 7, 5)
    leaves = [x.requires_grad_() for x in tensors]
    log_prob = nade_log_prob(v, *leaves)
    grads = torch.randn(3, 6, dtype=torch.float64)
    found = torch.autograd.grad(log_prob, leaves, grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        expected = torch.autograd.grad(log_prob, leaves, grad, retain_graph=True)
        assert all(distance(x[i], y) < 1e-13 for x, y in zip(found, expected, strict=True))


def test_transforms():
    v, tensors = arguments(6, 7, 5)
    expected = by_the_loop(v, tensors, torch.ones(6))

    def of_row(v, b, c, encoder, decoder):
        return nade_log_prob(v, b, c, encoder, decoder)

    rows = torch.func.vmap(of_row, in_dims=(0, 0, 0, None, None))(v, *tensors)
    assert distance(rows, expected[0]) < 1e-13
    found = torch.func.grad(lambda x: nade_log_prob(v, *x).sum())(tensors)
    assert all(distance(x, y) < 1e-13 for x, y in zip(found, expected[1:], strict=True))
    jacobian = torch.func.jacrev(lambda b: nade_log_prob(v, b, *tensors[1:]))(tensors[0])
    assert distance(jacobian.sum(0), expected[1]) < 1e-13
    many = torch.func.vmap(lambda b: nade_sample(b, *tensors[1:])[1], randomness="different")(
        torch.stack([tensors[0], tensors[0] + 1])
    )
    assert many.shape == (2, 6, 7)


def test_forward_mode_returns_a_tangent():
    v, (b, *others) = arguments(6, 7, 5)
    tangent = torch.randn_like(b)
    expected = (by_the_loop(v, [b, *others], torch.ones(6))[1] * tangent).sum(-1)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(nade_log_prob(v, forward_ad.make_dual(b, tangent), *others)).tangent
    assert distance(found, expected) < 1e-13
