"""Decays from time constants, random decays, and the scale of noise."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import DTYPES

from rnnkernels import LeakyRNN, LeakyRNNCell, decay_from_tau, draw_decay, draw_tau, noise_scale


def test_decay_from_tau_is_the_euler_or_the_exponential_form():
    assert decay_from_tau(10.0, 1.0) == 0.9
    assert decay_from_tau(100, 20) == 0.8
    assert decay_from_tau(5.0, 5.0) == 0.0
    assert decay_from_tau(10.0, 1.0, exact=True) == pytest.approx(math.exp(-0.1), rel=1e-15)
    assert decay_from_tau(1.0, 2.0, exact=True) == pytest.approx(math.exp(-2), rel=1e-15)
    assert isinstance(decay_from_tau(10, 1), float)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decay_from_tau_of_a_tensor_has_its_shape_and_dtype_and_suits_the_layer(dtype, exact):
    taus = torch.tensor([20.0, 50.0, 100.0, 200.0, 1000.0], dtype=dtype)
    decay = decay_from_tau(taus, 20.0, exact=exact)
    assert (decay.shape, decay.dtype) == (taus.shape, dtype)
    for tau, d in zip(taus.tolist(), decay.tolist(), strict=True):
        assert d == pytest.approx(decay_from_tau(tau, 20.0, exact=exact), abs=1e-6)
    LeakyRNN(3, 5, decay=decay, dtype=dtype)(torch.randn(2, 2, 3, dtype=dtype))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("tau", "dt", "name"),
    [
        (0.0, 1.0, "tau"),
        (-1.0, 1.0, "tau"),
        (math.nan, 1.0, "tau"),
        (math.inf, 1.0, "tau"),
        (torch.tensor([1.0, -1.0]), 1.0, "tau"),
        (1.0, 0.0, "dt"),
        (1.0, -1.0, "dt"),
        (1.0, math.nan, "dt"),
        (1.0, math.inf, "dt"),
        (1e30, 1.0, "rounds to 1"),
        (torch.tensor([1.0, 1e9]), 1.0, "rounds to 1"),
    ],
    ids=str,
)
def test_decay_from_tau_refuses_invalid_time_constants(tau, dt, name, exact):
    with pytest.raises(ValueError, match=name):
        decay_from_tau(tau, dt, exact=exact)


def test_the_euler_step_must_not_be_longer_than_tau():
    with pytest.raises(ValueError, match="dt must be at most tau in the Euler form"):
        decay_from_tau(1.0, 1.5)
    with pytest.raises(ValueError, match="dt must be at most tau in the Euler form"):
        decay_from_tau(torch.tensor([2.0, 1.0]), 1.5)


# --- Draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("log_uniform", "median"), [(False, 0.11), (True, (0.02 * 0.2) ** 0.5)])
def test_decays_are_drawn_from_the_range_of_the_paper(log_uniform, median, dtype):
    new = 1 - draw_decay(4, 5000, log_uniform=log_uniform, dtype=dtype)
    assert (new.shape, new.dtype) == ((4, 5000), dtype)
    assert 0.02 - 1e-6 <= new.min() < 0.0205
    assert 0.195 < new.max() <= 0.2 + 1e-6
    # Each tenth of the range, or of its logarithm, has a tenth of 20000 draws, within 4 standard deviations.
    ends = torch.log(torch.tensor([0.02, 0.2])) if log_uniform else torch.tensor([0.02, 0.2])
    counts = torch.histc((new.log() if log_uniform else new).float(), 10, *ends.tolist())
    assert (counts - 2000).abs().max() < 4 * (20000 * 0.1 * 0.9) ** 0.5
    assert float(new.median()) == pytest.approx(median, rel=0.03)


def test_drawn_time_constants_give_decays_by_the_euler_form():
    taus = draw_tau(
        2000, low=100.0, high=1000.0, log_uniform=True, generator=torch.Generator().manual_seed(3)
    )
    again = draw_tau(
        2000, low=100.0, high=1000.0, log_uniform=True, generator=torch.Generator().manual_seed(3)
    )
    assert torch.equal(taus, again)
    new = 1 - decay_from_tau(taus, 20.0)
    assert new.min() >= 0.02 - 1e-6
    assert new.max() <= 0.2 + 1e-6
    assert float(new.median()) == pytest.approx((0.02 * 0.2) ** 0.5, rel=0.1)
    assert (draw_tau(7, low=5.0, high=5.0) == 5).all()
    LeakyRNN(3, 7, 2, decay=draw_decay(2, 7))(torch.randn(4, 2, 3))


@pytest.mark.parametrize("log_uniform", [False, True])
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.5), (-1.0, 0.5), (0.5, 0.2), (0.5, 1.5), (math.nan, 0.5), (0.1, math.nan)]
)
def test_an_invalid_range_is_refused(low, high, log_uniform):
    with pytest.raises(ValueError, match=r"low|high"):
        draw_decay(3, low=low, high=high, log_uniform=log_uniform)
    with pytest.raises(ValueError, match="rounds to 1"):
        draw_decay(3, low=1e-9, high=1e-9, log_uniform=log_uniform)
    with pytest.raises(ValueError, match="finite"):
        draw_tau(3, low=1.0, high=math.inf, log_uniform=log_uniform)


# --- Noise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("form", ["rate", "current"])
def test_noise_in_the_drive_gives_a_linear_unit_the_requested_deviation(form, decay):
    # The unit is linear: no recurrent weights, and in the rate form a bias that keeps ReLU active.
    layer = LeakyRNN(1, 2000, decay=decay, form=form, bias=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih_l0.fill_(100.0)
        noise = noise_scale(0.5, layer.decay) * torch.randn(400, 1, 2000)
        output, _ = layer(torch.zeros(400, 1, 1), torch.full((1, 1, 2000), 100.0), drive=noise)
    states = output[200:, 0].double() - 100
    # The estimate is from 400,000 values, which are correlated over about 1/(1-d) steps.
    assert float(states.std()) == pytest.approx(0.5 * (2 / (1 + decay)) ** 0.5, rel=0.02)


def test_noise_added_to_the_state_has_the_same_effect():
    decay = torch.tensor([0.0, 0.5, 0.95])
    cell = LeakyRNNCell(1, 3, decay=decay, form="current")
    xi, hx = torch.randn(4, 3), torch.randn(4, 3)
    x = torch.randn(4, 1)
    inside = cell(x, hx, drive=noise_scale(0.3, decay) * xi)
    outside = cell(x, hx) + noise_scale(0.3, decay, added_to="state") * xi
    assert torch.allclose(inside, outside, atol=1e-6)
    assert noise_scale(0.3, 0.5) == pytest.approx(0.3 * 2)
    assert noise_scale(0.3, 0.5, added_to="state") == pytest.approx(0.3)


def test_invalid_noise_is_refused():
    for sigma, decay, added_to in ((-1.0, 0.5, "drive"), (math.nan, 0.5, "drive"), (1.0, 1.0, "drive"),
                                   (1.0, torch.tensor([0.5, -0.1]), "state"), (1.0, 0.5, "f")):  # fmt: skip
        with pytest.raises(ValueError, match=r"sigma|decay|added_to"):
            noise_scale(sigma, decay, added_to=added_to)
