"""Calls of NADE: samples, dtypes and devices, bad input, registration and compiling."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from helpers import DTYPES, distance
from nade_helpers import NAMES, SHAPES, TOLERANCE, arguments, by_kernels, by_the_loop
from torch.utils.flop_counter import FlopCounterMode

from rnnkernels import _devices
from rnnkernels.functional import nade_log_prob, nade_sample
from rnnkernels.outputs import _nade_composite

FORWARD = torch.ops.rnnkernels.nade.default
BACKWARD = torch.ops.rnnkernels.nade_backward.default
SAMPLE = torch.ops.rnnkernels.nade_sample.default


@pytest.fixture
def no_kernels(monkeypatch):
    """No device has kernels, and the warning has been given."""
    monkeypatch.setattr(_devices, "_DEVICES", dict.fromkeys(_devices._DEVICES, ()))
    monkeypatch.setattr(_devices, "_warned", {_devices.LOOP})


# --- Samples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_samples_come_with_their_logits(shape, dtype):
    for shift in (-4.0, 0.0, 9.0):
        _, tensors = arguments(*shape, dtype=dtype)
        tensors[0] += shift
        v, logits = nade_sample(*tensors)
        assert v.dtype == torch.uint8
        assert v.shape == logits.shape == tensors[0].shape
        expected = _nade_composite.nade(v, *(x.double() for x in tensors))[1]
        assert distance(logits.double(), expected) < TOLERANCE[dtype]


def test_a_unit_is_one_if_its_uniform_value_is_below_its_probability():
    _, tensors = arguments(50, 30, 9, dtype=torch.float32)
    uniform = torch.rand(50, 30)
    v, logits = SAMPLE(uniform, *tensors)
    p = torch.sigmoid(logits)
    sure = (uniform - p).abs() > 1e-6
    assert torch.equal(v.bool()[sure], (uniform < p)[sure])
    assert sure.float().mean() > 0.99


def test_frequencies_equal_the_probabilities():
    _, (b, c, encoder, decoder) = arguments(1, 3, 4, dtype=torch.float32)
    n = 200_000
    v, _ = nade_sample(b.expand(n, 3), c.expand(n, 4), encoder, decoder)
    every = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    p = nade_log_prob(every, b.expand(8, 3), c.expand(8, 4), encoder, decoder).double().exp()
    assert abs(float(p.sum()) - 1) < 1e-6
    found = torch.bincount(v.long() @ torch.tensor([4, 2, 1]), minlength=8) / n
    assert bool(((found - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all())


def test_a_bad_generator_raises_an_error():
    _, tensors = arguments(3, 4, 2)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got int"):
        nade_sample(*tensors, generator=1)


def test_samples_follow_the_generator_and_have_no_gradient():
    _, tensors = arguments(20, 9, 5)
    leaves = [x.requires_grad_() for x in tensors]
    draws = [nade_sample(*leaves, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not torch.equal(draws[0][0], draws[2][0])
    assert not any(x.requires_grad for x in draws[0])


# --- Half precision, autocast, other devices ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_storage_only(dtype):
    v, tensors = arguments(6, 7, 5, dtype=dtype)
    leaves = [x.requires_grad_() for x in tensors]
    log_prob = nade_log_prob(v, *leaves)
    assert log_prob.dtype == torch.float32
    log_prob.sum().backward()
    expected = by_the_loop(v, tensors, torch.ones(6))
    assert distance(log_prob.double(), expected[0]) < 4e-6
    for x, y in zip(leaves, expected[1:], strict=True):
        assert x.grad.dtype == dtype
        assert distance(x.grad.double(), y) < torch.finfo(dtype).eps
    v, logits = nade_sample(*tensors)
    assert (v.dtype, logits.dtype) == (torch.uint8, torch.float32)


@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
def test_autocast_mixes_dtypes(weights):
    v, tensors = arguments(6, 7, 5, dtype=torch.bfloat16)
    tensors[2:] = [x.to(weights) for x in tensors[2:]]
    with torch.autocast("cpu", torch.bfloat16):
        log_prob, (_, logits) = nade_log_prob(v, *tensors), nade_sample(*tensors)
    assert log_prob.dtype == logits.dtype == weights
    assert distance(log_prob.double(), by_the_loop(v, tensors)[0]) < 4e-6


def test_meta_tensors_give_shapes():
    v, tensors = arguments(2, 3, 7, 5, dtype=torch.float32, device="meta")
    assert nade_log_prob(v, *tensors).shape == (2, 3)
    assert [x.shape for x in nade_sample(*tensors)] == [(2, 3, 7)] * 2


def test_without_kernels_the_loop_is_used(monkeypatch):
    monkeypatch.setattr(_devices, "_DEVICES", dict.fromkeys(_devices._DEVICES, ()))
    monkeypatch.setattr(_devices, "_warned", set())
    v, tensors = arguments(6, 7, 5)
    with pytest.warns(UserWarning, match="a loop of torch operations, many times slower") as caught:  # noqa: PT031  (one warning of two calls)
        found = by_kernels(v, tensors, torch.ones(6, dtype=torch.float64))
        nade_sample(*tensors)
    assert len(caught) == 1
    assert all(torch.equal(x, y) for x, y in zip(found, by_the_loop(v, tensors, torch.ones(6)), strict=True))


# --- Bad input ---------------------------------------------------------------------------------------


def changed(**changes):
    """Return valid arguments, except for the changed ones."""
    v, tensors = arguments(4, 6, 5, dtype=torch.float32)
    return {"v": v, **dict(zip(NAMES, tensors, strict=True)), **changes}


SHAPES_REFUSED = [
    (lambda: changed(v=torch.zeros(4, 5)), ValueError,
     r"v must have the shape of visible_bias, [4, 6], got [4, 5]"),
    (lambda: changed(visible_bias=torch.zeros(())), ValueError,
     "visible_bias must be [..., D], got a scalar"),
    (lambda: changed(hidden_bias=torch.zeros(3, 5)), ValueError,
     "hidden_bias must be [4, H], as visible_bias is, got [3, 5]"),
    (lambda: changed(hidden_bias=torch.zeros(())), ValueError,
     "hidden_bias must be [4, H], as visible_bias is, got []"),
    (lambda: changed(encoder=torch.zeros(5, 6)), ValueError, "encoder must be [D, H] = [6, 5], got [5, 6]"),
    (lambda: changed(decoder=torch.zeros(6)), ValueError, "decoder must be [D, H] = [6, 5], got [6]"),
    (lambda: changed(v=torch.zeros(4, 0), visible_bias=torch.zeros(4, 0)), ValueError,
     "visible_bias must have at least one visible unit, got "),
    (lambda: changed(hidden_bias=torch.zeros(4, 0)), ValueError,
     "hidden_bias must have at least one hidden unit, got "),
    (lambda: changed(decoder=torch.zeros(6, 5).double()), ValueError,
     "decoder must have the dtype of visible_bias, "),
    (lambda: changed(visible_bias=torch.zeros(4, 6).int()), ValueError,
     "visible_bias must be float32 or float64, got "),
    (lambda: changed(encoder=torch.zeros(6, 5, device="meta")), ValueError,
     "encoder must be on the device of visible_bias, cpu, got meta"),
    (lambda: changed(v=[0, 1]), TypeError, "v must be a Tensor, got list"),
    (lambda: changed(decoder=None), TypeError, "decoder must be a Tensor, got NoneType"),
    (lambda: changed(encoder=torch.zeros(6, 5).to_sparse()), ValueError,
     "encoder must be a dense tensor, got layout "),
]  # fmt: skip


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(("make", "error", "message"), SHAPES_REFUSED)
def test_bad_input_is_named(make, error, message, kernels, request):
    if not kernels:
        request.getfixturevalue("no_kernels")
    with pytest.raises(error, match="^" + re.escape(message)):
        nade_log_prob(**make())
    others = make()
    del others["v"]
    if not message.startswith("v "):
        with pytest.raises(error, match="^" + re.escape(message)):
            nade_sample(**others)


@pytest.mark.parametrize(("bad", "text"), [(2, "2"), (0.5, "0.5"), (-1, "-1"), (torch.nan, "-?nan")])
def test_values_other_than_zero_and_one_are_named(bad, text):
    v = torch.zeros(4, 6)
    v[2, 3] = bad
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
        if v.to(dtype)[2, 3] == 0 or (bad != bad and not dtype.is_floating_point):
            continue
        with pytest.raises(ValueError, match=f"^v must hold zeros and ones, got {text} at row 2, unit 3$"):
            nade_log_prob(**changed(v=v.to(dtype)))


def test_operators_name_bad_input():
    v, tensors = arguments(4, 6, 5, dtype=torch.float32)
    b, c, encoder, decoder = tensors
    with pytest.raises(ValueError, match=r"^v must be bool, uint8, .* or float64, got ComplexFloat"):
        FORWARD(v.to(torch.complex64), *tensors)
    with pytest.raises(ValueError, match=r"^visible_bias must be \[N, D\], got \[6\]"):
        FORWARD(v[0], b[0], c, encoder, decoder)
    with pytest.raises(ValueError, match=r"^uniform must be \[N, D\] = \[4, 6\], got \[4, 5\]"):
        SAMPLE(torch.rand(4, 5), *tensors)
    wanted = (True,) * 4
    with pytest.raises(ValueError, match=r"^grad_log_prob must be \[N\] = \[4\], got \[5\]"):
        BACKWARD(torch.ones(5), None, v, b, c, encoder, decoder, wanted)
    with pytest.raises(ValueError, match=r"^grad_logits must be \[N, D\] = \[4, 6\], got \[4\]"):
        BACKWARD(None, torch.ones(4), v, b, c, encoder, decoder, wanted)
    with pytest.raises(ValueError, match=r"^v must be \[N, D\] = \[4, 6\], got \[3, 6\]"):
        BACKWARD(torch.ones(4), None, v[:3], b, c, encoder, decoder, wanted)


# --- Registration, compiling -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6, 5), (0, 6, 5), (1, 1, 1)])
def test_opcheck(shape):
    v, tensors = arguments(*shape)
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    torch.library.opcheck(FORWARD, (v, *leaves))
    torch.library.opcheck(FORWARD, (v.double().requires_grad_(), *leaves))
    torch.library.opcheck(SAMPLE, (torch.rand(shape[:2], dtype=torch.float64), *tensors))
    b, c, encoder, decoder = tensors
    grads = torch.ones(shape[0], dtype=torch.float64), torch.ones_like(b)
    for grad, of_logits in ((grads[0], None), (None, grads[1]), grads, (None, None)):
        for wanted in ((True,) * 4, (True, False, False, False), (False, False, True, False)):
            torch.library.opcheck(BACKWARD, (grad, of_logits, v, b, c, encoder, decoder, wanted))


def test_backward_without_gradients_is_zero():
    v, (b, c, encoder, decoder) = arguments(4, 6, 5)
    found = BACKWARD(None, None, v, b, c, encoder, decoder, (True,) * 4)
    assert [x.shape for x in found] == [b.shape, c.shape, encoder.shape, decoder.shape]
    assert not any(x.any() for x in found)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_it_compiles_without_a_graph_break(dtype):
    torch._dynamo.reset()

    def loss(v, *tensors):
        return -nade_log_prob(v, *tensors).mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 9):
        v, tensors = arguments(rows, 6, 5)
        leaves = [x.requires_grad_() for x in tensors]
        found, expected = (torch.autograd.grad(f(v.to(dtype), *leaves), leaves) for f in (compiled, loss))
        assert all(distance(x, y) < 1e-13 for x, y in zip(found, expected, strict=True))
    sample = torch.compile(nade_sample, fullgraph=True, backend="aot_eager")
    v, logits = sample(*tensors)
    assert distance(logits, _nade_composite.nade(v, *tensors)[1]) < 1e-13
    torch._dynamo.reset()


def test_flops_count_the_products():
    v, tensors = arguments(4, 6, 5)
    leaves = [x.requires_grad_() for x in tensors]
    with FlopCounterMode(display=False) as counter:
        nade_log_prob(v, *leaves).sum().backward()
        nade_sample(*tensors)
    assert counter.get_total_flops() == (1 + 2 + 1) * 2 * 4 * 6 * 5
