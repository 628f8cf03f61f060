"""The output models for no examples of vmap give empty results of the right shapes."""

from __future__ import annotations

import pytest
import torch
from output_helpers import CONDITION, HIDDEN, MODELS, VISIBLE, assert_empty_like, make_frames, make_model
from torch.func import functional_call, grad, hessian, jacrev, vmap

from rnnkernels import expected_accuracy, functional, mean_with_interval

LEADS = [(), (5,), (7, 5)]
DRAWS = {"randomness": "different"}


def examples(name, n, lead):
    """Return frames and states of n examples."""
    return make_frames(name, n, *lead), torch.ones(n, *lead, CONDITION, dtype=torch.float64)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("name", MODELS)
def test_no_examples_of_frames_and_states(name, lead):
    model = make_model(name)
    v, state = (x[0] for x in examples(name, 1, lead))
    for function in (model.log_prob, model):
        both, frames, states = (vmap(function, dims, **DRAWS) for dims in ((0, 0), (0, None), (None, 0)))
        assert_empty_like(lambda n, f=both: f(*examples(name, n, lead)))
        assert_empty_like(lambda n, f=frames: f(examples(name, n, lead)[0], state))
        assert_empty_like(lambda n, f=states: f(v, examples(name, n, lead)[1]))
    for function in (model.sample, model.marginals):
        assert_empty_like(lambda n, f=function: vmap(f, **DRAWS)(examples(name, n, lead)[1]))
    assert vmap(vmap(model.log_prob))(*(x[None] for x in examples(name, 0, lead))).shape == (1, 0, *lead)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("name", MODELS)
def test_derivatives_of_no_examples(name, lead):
    model = make_model(name)

    def total(state, v):
        return model.log_prob(v, state).sum()

    for function in (grad(total), hessian(total), jacrev(lambda s, v: model.log_prob(v, s))):
        assert_empty_like(lambda n, f=function: vmap(f)(*reversed(examples(name, n, lead))))
    weights = dict(model.named_parameters())
    per_example = grad(lambda w, v, s: functional_call(model, w, (v, s)).sum())
    assert_empty_like(lambda n: vmap(per_example, (None, 0, 0), **DRAWS)(weights, *examples(name, n, lead)))


@pytest.mark.parametrize("name", MODELS)
def test_no_models_of_an_ensemble(name):
    model = make_model(name)
    v, state = (x[0] for x in examples(name, 1, (5,)))

    def run(n):
        weights = {key: x.expand(n, *x.shape) for key, x in model.named_parameters()}
        return vmap(lambda w: functional_call(model, w, (v, state)), **DRAWS)(weights)

    assert_empty_like(run)


@pytest.mark.parametrize("lead", LEADS)
def test_no_examples_of_the_other_methods_of_an_rbm(lead):
    model = make_model("rbm")
    methods = (
        model.free_energy,
        lambda v, s: model.gibbs(v, s, 3),
        lambda v, s: model.estimate_log_prob(v, s, chains=3, temperatures=3),
        lambda v, s: model.loss(v, s, chain=v.clone()),
    )
    for method in methods:
        assert_empty_like(lambda n, f=method: vmap(f, **DRAWS)(*examples("rbm", n, lead)))


def test_no_examples_of_functions():
    frames, c, weights = torch.ones(5, VISIBLE), torch.ones(5, HIDDEN), torch.ones(VISIBLE, HIDDEN)

    def log_prob(v, b, encoder):
        return functional.nade_log_prob(v, b, c, encoder, weights)

    def sample(b):
        return functional.nade_sample(b, c, weights, weights)

    def many(x, n):
        return x.expand(n, *x.shape)

    assert_empty_like(lambda n: vmap(log_prob)(many(frames, n), many(frames, n), many(weights, n)))
    assert_empty_like(lambda n: vmap(lambda w: log_prob(frames, frames, w))(many(weights, n)))
    assert_empty_like(lambda n: vmap(sample, **DRAWS)(many(frames, n)))
    assert_empty_like(lambda n: vmap(expected_accuracy)(many(frames, n), many(frames, n)))
    assert_empty_like(lambda n: vmap(mean_with_interval)(many(frames[0], n), many(frames[0], n)))
