"""NADE: the loop over units and the module, compared with the reference and with brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import distance
from output_helpers import (
    VISIBLE,
    array,
    biases,
    every_frame,
    make_frames,
    make_model,
    make_state,
)

from rnnkernels import NADE
from rnnkernels.outputs import _nade_composite
from rnnkernels.testing import outputs as reference

D, H = 7, 5


def problem(*lead, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    v = torch.rand(*lead, D, generator=generator) < 0.4
    return v, normal(*lead, D), normal(*lead, H), normal(D, H), normal(D, H)


def arrays(v, b, c, encoder, decoder):
    return (
        array(v).reshape(-1, D),
        array(b).reshape(-1, D),
        array(c).reshape(-1, H),
        array(encoder),
        array(decoder),
    )


@pytest.mark.parametrize("lead", [(), (1,), (4, 3), (0,), (2, 0)], ids=str)
def test_the_loop_equals_the_reference(lead):
    arguments = problem(*lead)
    found = _nade_composite.nade(*arguments)
    for x, expected, shape in zip(found, reference.nade(*arrays(*arguments)), ((), (D,), (H,)), strict=True):
        assert x.shape == (*lead, *shape)
        assert distance(x.reshape(expected.shape), torch.from_numpy(expected)) < 1e-14


def test_the_gradients_of_the_loop_equal_the_reference():
    arguments = problem(4, 3)
    log_prob, logits, _ = _nade_composite.nade(*arguments)
    grads = torch.randn_like(log_prob), torch.randn_like(logits)
    found = torch.autograd.grad([log_prob, logits], arguments[1:], grads)
    expected = reference.nade_backward(
        array(grads[0]).reshape(-1), array(grads[1]).reshape(-1, D), *arrays(*arguments)
    )
    for x, y in zip(found, expected, strict=True):
        assert distance(x.reshape(y.shape), torch.from_numpy(y)) < 1e-13


def test_the_loop_has_derivatives_of_second_order_in_all_modes():
    v, *leaves = problem(2)

    def function(*leaves):
        return _nade_composite.nade(v, *leaves)

    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_samples_of_the_loop_equal_the_reference():
    _, *parameters = problem(50, 4)
    uniform = torch.rand(50, 4, D, dtype=torch.float64)
    v, logits = _nade_composite.nade_sample(uniform, *parameters)
    assert v.dtype == torch.uint8
    assert v.shape == logits.shape == (50, 4, D)
    assert not logits.requires_grad
    rows, *others = arrays(uniform, *parameters)
    expected, expected_logits = reference.nade_sample(rows, *others)
    np.testing.assert_array_equal(v.reshape(-1, D), expected)
    assert distance(logits.reshape(-1, D), torch.from_numpy(expected_logits)) < 1e-14


def test_the_logits_of_a_sample_are_those_of_its_frame():
    _, *parameters = problem(6)
    v, logits = _nade_composite.nade_sample(torch.rand(6, D), *parameters)
    assert distance(logits, _nade_composite.nade(v, *parameters)[1]) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_storage_only(dtype):
    v, *leaves = problem(6, dtype=dtype)
    wide = [x.detach().float() for x in leaves]
    for found, expected in zip(_nade_composite.nade(v, *leaves), _nade_composite.nade(v, *wide), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
    uniform = torch.rand(6, D)
    pairs = zip(*(_nade_composite.nade_sample(uniform, *x) for x in (leaves, wide)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_loop_under_autocast_and_vmap():
    v, *leaves = problem(6, dtype=torch.float32)
    expected = _nade_composite.nade(v, *leaves)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(_nade_composite.nade(v, *leaves)[0], expected)
    b, c, encoder, decoder = leaves
    each = torch.func.vmap(lambda v, b, c: _nade_composite.nade(v, b, c, encoder, decoder)[0])(v, b, c)
    assert distance(each, expected) < 1e-6


def test_the_module_equals_the_reference():
    model, state, v = make_model("nade"), make_state(4, 3), make_frames("nade", 4, 3)
    expected, _, _ = reference.nade(
        array(v).reshape(-1, VISIBLE), *biases(model, state), array(model.encoder), array(model.decoder)
    )
    assert distance(model.log_prob(v, state).reshape(-1), torch.from_numpy(expected)) < 1e-14


def test_each_conditional_is_a_ratio_of_sums_over_the_later_units():
    model, state = make_model("nade"), make_state(1)
    frames = every_frame("nade")
    p = model.log_prob(frames, state.expand(len(frames), -1)).exp()
    b, c = biases(model, state)
    for row in frames[::5].numpy():
        _, logits, _ = reference.nade(row[None], b, c, array(model.encoder), array(model.decoder))
        for i in range(VISIBLE):
            begins = (frames[:, :i] == torch.from_numpy(row[:i])).all(1)
            share = p[begins & (frames[:, i] == 1)].sum() / p[begins].sum()
            assert share.item() == pytest.approx(reference.sigmoid(logits[0, i]).item(), abs=1e-12)


def test_marginals_of_the_first_unit_are_exact():
    model, state = make_model("nade"), make_state(3)
    b, c = biases(model, state)
    expected = reference.sigmoid(b[:, 0] + reference.sigmoid(c) @ array(model.decoder)[0])
    assert distance(model.marginals(state, samples=1)[:, 0], torch.from_numpy(expected)) < 1e-13


def test_an_impossible_frame_has_a_finite_log_probability():
    model, state = make_model("nade", scale=100.0), make_state(4)
    log_prob = model.log_prob(make_frames("nade", 4), state)
    assert log_prob.isfinite().all()
    assert log_prob.min() < -100
    log_prob.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_initial_weights_have_the_documented_standard_deviation():
    torch.manual_seed(0)
    model = NADE(100, 400, 3)
    for weight in (model.encoder, model.decoder):
        assert weight.shape == (100, 400)
        assert weight.abs().max() <= 0.2
        # Truncation at two standard deviations reduces the standard deviation to 0.88 of it.
        assert weight.std().item() == pytest.approx(0.088, rel=0.02)
