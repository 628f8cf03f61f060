"""Edge cases: no steps, no rows, one unit; NaN and infinity propagate as in nn.RNN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import DTYPES, FORMS, KINDS, distance, make_problem
from torch import Tensor, nn

from rnnkernels import LeakyRNN, functional

# --- Small sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_h0", [True, False])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_no_steps_return_h0(form, nonlinearity, given_h0):
    problem = make_problem(0, 0, h0=given_h0, form=form, nonlinearity=nonlinearity)
    output, h_n = problem.run()
    assert output.shape == (0, 3, 4)
    assert torch.equal(h_n, problem.h0 if given_h0 else torch.zeros(3, 4, dtype=problem.dtype))
    assert not given_h0 or h_n.data_ptr() != problem.h0.data_ptr()


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_no_rows_give_empty_results_and_zero_gradients(form, nonlinearity):
    problem = make_problem(0, batch=0, form=form, nonlinearity=nonlinearity).leaves()
    output, h_n = problem.run()
    assert (output.shape, h_n.shape) == ((5, 0, 4), (0, 4))
    (output.sum() + h_n.sum()).backward()
    for name, x in problem.tensors.items():
        assert x.grad.shape == x.shape, name
        assert not x.grad.any(), name


@pytest.mark.parametrize("form", FORMS)
def test_one_unit_one_row_and_one_step(form):
    problem = make_problem(0, 1, 1, 1, form=form)
    for found, expected in zip(problem.run(), problem.expected(), strict=True):
        assert found.shape == expected.shape
        assert distance(found, expected) < 1e-15


# --- NaN and infinity --------------------------------------------------------------------------------

SPECIAL = [math.nan, math.inf, -math.inf]


def assert_same_pattern(found: Tensor, expected: Tensor, what: str) -> None:
    """Assert NaN and infinities in the same places, and equal finite values up to rounding."""
    for pattern in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(pattern(found), pattern(expected)), f"{what}: {pattern.__name__}"
    finite = expected.isfinite()
    assert distance(found[finite], expected[finite]) < 1e-5, what


def spoilt(where: str, value: float, dtype: torch.dtype, nonlinearity: str) -> tuple[Any, ...]:
    """Return a layer without decay, an equal nn.RNN, an input and an initial state; one entry is `value`."""
    layer = LeakyRNN(3, 20, nonlinearity=nonlinearity, dtype=dtype)
    input, hx = torch.randn(6, 5, 3, dtype=dtype), torch.randn(1, 5, 20, dtype=dtype)
    with torch.no_grad():
        {
            "input": input[2, 1],
            "hx": hx[0, 3],
            "weight_ih": layer.weight_ih_l0[7],
            "weight_hh": layer.weight_hh_l0[7],
            "bias": layer.bias_ih_l0,
        }[where][1] = value
    plain = nn.RNN(3, 20, nonlinearity=nonlinearity, dtype=dtype)
    plain.load_state_dict(layer.state_dict())
    return layer, plain, input, hx


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("where", ["input", "hx", "weight_ih", "weight_hh", "bias"])
def test_nan_and_infinity_propagate_as_in_nn_rnn(where, value, nonlinearity, dtype):
    layer, plain, input, hx = spoilt(where, value, dtype, nonlinearity)
    results = []
    for module in (layer, plain):
        leaves = [input.clone().requires_grad_(), hx.clone().requires_grad_()]
        output, h_n = module(*leaves)
        named = dict(zip(("input", "hx"), leaves, strict=True)) | dict(module.named_parameters())
        grads = torch.autograd.grad((output.sum(), h_n.sum()), list(named.values()))
        results.append({"output": output, "h_n": h_n} | dict(zip(named, grads, strict=True)))
    found, expected = results
    for name, x in expected.items():
        assert_same_pattern(found[name].detach(), x.detach(), name)


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("which", ["output", "h_n"])
def test_a_gradient_of_nan_or_infinity_propagates_as_in_nn_rnn(which, value, nonlinearity):
    layer, plain, input, hx = spoilt("hx", 0.0, torch.float64, nonlinearity)
    results = []
    for module in (layer, plain):
        leaf = input.clone().requires_grad_()
        output, h_n = module(leaf, hx)
        incoming = torch.ones_like(output), torch.ones_like(h_n)
        incoming[which == "h_n"][-1, 2, 4] = value
        named = {"input": leaf} | dict(module.named_parameters())
        grads = torch.autograd.grad((output, h_n), list(named.values()), incoming)
        results.append(dict(zip(named, grads, strict=True)))
    for name, expected in results[1].items():
        assert_same_pattern(results[0][name], expected, name)


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("name", ["pre", "h0", "weight_hh"])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_nan_and_infinity_propagate_through_leaky_units_as_in_the_reference(form, nonlinearity, name, value):
    problem = make_problem(0, 6, 5, 20, form=form, nonlinearity=nonlinearity)
    problem.tensors[name][1, 1] = value  # all units of one row, or one entry
    for what, found, expected in zip(("output", "h_n"), problem.run(), problem.expected(), strict=True):
        assert_same_pattern(found, expected, what)


def test_a_unit_with_zero_decay_drops_an_infinite_state():
    problem = make_problem(0, 3, 1, 4, dtype=torch.float32)
    problem.decay = torch.tensor([0.0, 0.5, 0.0, 0.5])
    problem.weight_hh = torch.zeros(4, 4)
    problem.h0 = torch.full((1, 4), 1e38) * 10
    assert problem.h0.isinf().all()
    problem.pre[:] = 1
    output, _ = problem.run()
    # The matrix product contains 0 * inf = NaN in any implementation; only the kept state is dropped.
    assert output.isnan().all()
    output, _ = functional.leaky_recurrence(
        problem.pre, problem.h0, problem.weight_hh, problem.decay, nonlinearity="tanh", form="current"
    )
    assert output[:, 0].isfinite().tolist() == [[True, False, True, False]] * 3
