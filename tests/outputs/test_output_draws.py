"""Draws from NaN raise an error, as those of torch do."""

from __future__ import annotations

import math

import pytest
import torch
from output_helpers import BINARY, CONDITION, HIDDEN, MODELS, VISIBLE, make_frames, make_model, make_state

from rnnkernels import functional

MESSAGE = "^the probabilities to draw from must not be NaN"


def nan_states():
    """Yield states of three rows in which one value is NaN."""
    for row, unit in ((0, 0), (2, 1)):
        state = make_state(3)
        state[row, unit] = math.nan
        yield state


def test_torch_raises_the_same_error():
    for draw in (torch.bernoulli, lambda p: torch.multinomial(p, 1)):
        with pytest.raises(RuntimeError):
            draw(torch.tensor([0.5, math.nan]))


@pytest.mark.parametrize("name", MODELS)
def test_samples_of_a_nan_state(name):
    model = make_model(name)
    for state in nan_states():
        with pytest.raises(RuntimeError, match=MESSAGE):
            model.sample(state)


@pytest.mark.parametrize("name", MODELS)
def test_samples_of_nan_parameters(name):
    for parameter in dict(make_model(name).named_parameters()):
        model = make_model(name)
        with torch.no_grad():
            model.get_parameter(parameter).view(-1)[0] = math.nan
        with pytest.raises(RuntimeError, match=MESSAGE):
            model.sample(make_state(500))  # a NADE reads the row of a unit only if that unit is one


def test_every_draw_of_the_estimates():
    nade, rbm = make_model("nade"), make_model("rbm")
    v = make_frames("rbm", 3)
    draws = (
        nade.marginals,
        rbm.marginals,
        lambda s: rbm.gibbs(v, s),
        lambda s: rbm.loss(v, s),
        lambda s: rbm.estimate_log_prob(v, s, chains=2, temperatures=3),
    )
    for draw in draws:
        for state in nan_states():
            with pytest.raises(RuntimeError, match=MESSAGE):
                draw(state)


def test_a_persistent_chain_stays_as_it_was():
    model, v = make_model("rbm"), make_frames("rbm", 3)
    for state in nan_states():
        chain = make_frames("rbm", 3, seed=8)
        before = chain.clone()
        with pytest.raises(RuntimeError, match=MESSAGE):
            model.loss(v, state, chain=chain)
        assert torch.equal(chain, before)
        model.loss(v, make_state(3), chain=chain)  # training goes on


def test_the_function_for_samples_of_a_nade():
    b, c = torch.zeros(3, VISIBLE), torch.zeros(3, HIDDEN)
    weights = torch.zeros(VISIBLE, HIDDEN)
    functional.nade_sample(b, c, weights, weights)
    b[1, -1] = math.nan
    with pytest.raises(RuntimeError, match=MESSAGE):
        functional.nade_sample(b, c, weights, weights)


@pytest.mark.parametrize("name", MODELS)
def test_under_vmap_and_in_a_compiled_function(name):
    model = make_model(name)
    compiled = torch.compile(model.sample, fullgraph=True, backend="aot_eager")
    for draw in (torch.vmap(model.sample, randomness="different"), compiled):
        assert draw(make_state(3)).shape == model.sample(make_state(3)).shape
        for state in nan_states():
            with pytest.raises(RuntimeError, match=MESSAGE):
                draw(state)


@pytest.mark.parametrize("name", BINARY)
def test_infinite_biases_decide_and_are_no_error(name):
    model = make_model(name)
    with torch.no_grad():
        model.visible_bias.bias[0], model.visible_bias.bias[1] = math.inf, -math.inf
    sample = model.sample(make_state(50))
    assert (sample[:, 0] == 1).all()
    assert (sample[:, 1] == 0).all()


def test_a_class_with_an_infinite_bias():
    model = make_model("categorical")
    with torch.no_grad():
        model.visible_bias.bias[2] = -math.inf
    assert (model.sample(make_state(50)) != 2).all()
    with torch.no_grad():
        model.visible_bias.bias[2] = math.inf  # the probability is inf / inf
    with pytest.raises(RuntimeError, match=MESSAGE):
        model.sample(make_state(50))


@pytest.mark.parametrize("name", MODELS)
def test_no_rows_are_no_error(name):
    assert len(MODELS[name]().sample(torch.zeros(0, CONDITION))) == 0
