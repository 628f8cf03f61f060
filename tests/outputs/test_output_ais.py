"""Annealed importance sampling compared with the exact sum, and the coverage of its intervals."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import pytest
import torch
from output_helpers import CONDITION, make_frames, make_model, make_state
from torch import Tensor, nn

from rnnkernels import RBM, mean_with_interval
from rnnkernels.outputs import ais

UNITS = 12


@functools.cache
def trained() -> dict[str, Tensor]:
    """Parameters that fit eight patterns; the state tells which half a pattern is from."""
    torch.manual_seed(1)
    model = RBM(UNITS, 8, CONDITION, dtype=torch.float64)
    nn.init.normal_(model.weight, std=0.3)
    patterns = (torch.rand(8, UNITS) < 0.3).double()
    state = torch.ones(8, CONDITION, dtype=torch.float64)
    state[4:] = -1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (-model.log_prob(patterns, state).mean()).backward()
        optimizer.step()
    return model.state_dict()


def make(kind: str, dtype: torch.dtype = torch.float64) -> RBM:
    if kind == "random":
        model: Any = make_model("rbm", dtype)
        return model
    model = RBM(UNITS, 8, CONDITION, dtype=torch.float64)
    model.load_state_dict(trained())
    return model.to(dtype)


def problem(model: RBM, *lead: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    v = torch.rand(*lead, model.num_visible, generator=generator) < 0.4
    return v, make_state(*lead, dtype=model.weight.dtype)


def estimate(model: RBM, v: Tensor, state: Tensor, seed: int, **options: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return model.estimate_log_prob(v, state, **options, generator=generator)


def test_the_trained_weights_are_not_small():
    assert trained()["weight"].abs().max() > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "trained"])
def test_estimates_agree_with_the_exact_sum_within_their_errors(kind, dtype):
    model = make(kind, dtype)
    v, state = problem(model, 5, 6)
    exact = make(kind).log_prob(v, state.double()).detach()
    found, error = estimate(model, v, state, 5, chains=50, temperatures=600)
    assert found.shape == error.shape == (5, 6)
    assert found.dtype == error.dtype == dtype
    assert not found.requires_grad
    assert error.max() < 0.2
    assert ((found - exact).abs() <= 4.5 * error + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "trained"])
def test_the_mean_is_inside_its_interval(kind, dtype):
    model, inside = make(kind, dtype), 0
    v, state = problem(model, 30)
    exact = make(kind).log_prob(v, state.double()).detach().mean()
    for seed in range(12):
        mean, low, high = mean_with_interval(*estimate(model, v, state, seed, chains=40, temperatures=300))
        assert low < mean < high
        assert high - low < 0.15
        inside += bool(low < exact < high)
    assert inside >= 9  # with a probability of 0.998


@pytest.mark.parametrize("kind", ["random", "trained"])
def test_intervals_have_the_right_coverage(kind):
    # Each row is a separate experiment, and so is each group of ten.
    model, rows = make(kind), 600
    v, state = problem(model, 30)
    v, state = (x.repeat(rows // 30, 1) for x in (v, state))
    exact = model.log_prob(v, state).detach()
    found, error = estimate(model, v, state, 6, chains=40, temperatures=60 if kind == "random" else 400)
    assert error.mean() > 0.01  # otherwise the test would be trivial
    inside = ((found - exact).abs() < 1.96 * error).double().mean()
    assert 0.91 < inside < 0.985  # 0.95 plus or minus 4 standard deviations of 600 draws
    groups = [mean_with_interval(p, s) for p, s in zip(found.split(10), error.split(10), strict=True)]
    held = [low < m.mean() < high for (_, low, high), m in zip(groups, exact.split(10), strict=True)]
    assert sum(held) >= 51  # of 60: with a probability of 0.999


def test_chains_reach_both_of_two_equal_patterns():
    # Two opposite patterns have the same energy; chains that start at b reach only one of them.
    model = RBM(20, 6, CONDITION, dtype=torch.float64)
    pattern = torch.where(torch.arange(20) % 3 == 0, 1.0, -1.0).double()
    with torch.no_grad():
        model.weight.copy_(pattern.expand(6, -1))
        for layer, units in ((model.visible_bias, 0), (model.hidden_bias, 1)):
            layer.weight.zero_()
            layer.bias.copy_(-model.weight.sum(units) / 2)
    v, state = problem(model, 40)
    exact = model.log_prob(v, state).detach()
    found, error = estimate(model, v, state, 13, chains=50, temperatures=300)
    assert ((found - exact).abs() < 4.5 * error).all()
    assert (found - exact).mean().abs() < 0.1


def test_the_bias_is_upwards_and_the_interval_corrects_it():
    model = make("trained")
    v, state = problem(model, 40)
    v, state = (x.repeat(50, 1) for x in (v, state))
    exact = model.log_prob(v, state).detach().mean()
    found, error = estimate(model, v, state, 7, chains=40, temperatures=60)
    mean, low, high = mean_with_interval(found, error)
    assert found.mean() > high > exact > low
    assert mean == pytest.approx((found - error.square() / 2).mean())


def test_the_estimate_of_z_is_unbiased():
    model = make("random")
    v, state = (x.expand(4000, -1) for x in problem(model, 1))
    exact = model.log_prob(v[:1], state[:1]).detach()
    found, _ = estimate(model, v, state, 8, chains=2, temperatures=3)
    ratio = torch.exp(exact - found)  # the estimate of Z over Z
    assert ratio.std() > 0.1
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(4000)


def test_more_temperatures_and_more_chains_reduce_the_error():
    model = make("trained")
    v, state = problem(model, 60)
    errors = [
        estimate(model, v, state, 9, chains=chains, temperatures=temperatures)[1].mean()
        for chains, temperatures in ((20, 20), (20, 200), (320, 20))
    ]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[0] / 2


def test_the_estimate_is_exact_if_all_chains_have_the_same_weight():
    model = make("random")
    for parameter in (model.weight, *model.visible_bias.parameters()):
        nn.init.zeros_(parameter)
    v, state = problem(model, 7)
    found, error = estimate(model, v, state, 10, chains=2, temperatures=2)
    assert torch.allclose(found, model.log_prob(v, state), rtol=1e-13)
    assert error.max() < 1e-13


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
def test_any_leading_dimensions_and_any_split_of_the_rows(lead, monkeypatch):
    model = make("random")
    v, state = problem(model, *lead)
    for values in (1, ais.MAX_CPU_VALUES):
        monkeypatch.setattr(ais, "MAX_CPU_VALUES", values)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found, error = estimate(model, v, state, 11, chains=20, temperatures=50)
        assert found.shape == error.shape == lead
        assert ((found - model.log_prob(v, state)).abs() <= 5 * error).all()


def test_half_precision_is_estimated_in_float32():
    model, v = make("random", torch.bfloat16), make_frames("rbm", 4)
    state = make_state(4, dtype=torch.bfloat16)
    found, error = estimate(model, v, state, 12, chains=50, temperatures=100)
    assert found.dtype == error.dtype == torch.float32
    assert ((found - model.log_prob(v, state)).abs() <= 4.5 * error).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chains": 1}, ValueError, "chains must be at least 2, for a standard error, got 1"),
        ({"chains": 0}, ValueError, "chains must be greater than zero, got 0"),
        ({"temperatures": 0}, ValueError, "temperatures must be greater than zero, got 0"),
        ({"temperatures": 1.5}, TypeError, "temperatures must be an int, got float"),
        ({"generator": 1}, TypeError, "generator must be a torch[.]Generator, got int"),
    ],
)
def test_bad_options_raise_errors(options, error, message):
    model = make("random")
    with pytest.raises(error, match=message):
        model.estimate_log_prob(*problem(model, 3), **options)


# --- The interval -------------------------------------------------------------------------------------


def test_the_interval_equals_its_formula():
    log_prob, error = torch.tensor([[-1.0, -2.0], [-4.0, -5.0]]), torch.tensor([[0.1, 0.2], [0.0, 0.2]])
    mean, low, high = mean_with_interval(log_prob, error)
    assert mean.item() == pytest.approx(-3 - (0.01 + 0.04 + 0.04) / 8)
    assert (high - mean).item() == pytest.approx(1.96 * 0.3 / 4, rel=1e-5)
    assert (mean - low).item() == pytest.approx(1.96 * 0.3 / 4, rel=1e-5)


def test_exact_values_have_an_interval_of_width_zero():
    mean, low, high = mean_with_interval(torch.tensor([-1.0, -3.0]), torch.zeros(2))
    assert mean == low == high == -2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], torch.ones(1)), TypeError, "log_prob must be a Tensor, got list"),
        ((torch.ones(1), 0.1), TypeError, "standard_error must be a Tensor, got float"),
        ((torch.ones(1).long(), torch.ones(1)), ValueError, "log_prob must have a floating-point dtype"),
        ((torch.ones(2), torch.ones(3)), ValueError, r"standard_error must be shaped like log_prob, \[2\]"),
        ((torch.ones(0), torch.ones(0)), ValueError, "log_prob must have at least one row, got none"),
    ],
)
def test_bad_estimates_raise_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        mean_with_interval(*arguments)
