"""The RBM compared with the sum over all states, and contrastive divergence with the exact gradient."""

from __future__ import annotations

import pytest
import torch
from helpers import distance
from output_helpers import (
    CONDITION,
    HIDDEN,
    VISIBLE,
    array,
    assert_drawn_from,
    biases,
    every_frame,
    frequencies,
    half_width,
    make_frames,
    make_model,
    make_state,
)
from torch import nn

from rnnkernels import RBM
from rnnkernels.outputs import _rbm, rbm
from rnnkernels.testing import outputs as reference


def joint(model, state):
    """Return ``p(v, h)`` of the first row."""
    b, c = biases(model, state)
    return torch.from_numpy(reference.rbm_joint(b[:1], c[:1], array(model.weight))[0])


@pytest.mark.parametrize("sizes", [(5, 4), (4, 5), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_probabilities_equal_the_reference_whichever_side_is_smaller(sizes, block, monkeypatch):
    monkeypatch.setattr(_rbm, "MAX_VALUES", block)
    model = RBM(*sizes, CONDITION, dtype=torch.float64)
    nn.init.normal_(model.weight)
    state, v = make_state(3, 2), torch.rand(3, 2, sizes[0]) < 0.5
    b, c = biases(model, state)
    rows = array(v).reshape(-1, sizes[0])
    expected = torch.from_numpy(reference.rbm_log_prob(rows, b, c, array(model.weight)))
    assert distance(model.log_prob(v, state).reshape(-1), expected) < 1e-13


def test_the_free_energy_equals_the_sum_over_hidden_states():
    model, state, v = make_model("rbm"), make_state(3), make_frames("rbm", 3)
    b, c = biases(model, state)
    log_z = torch.from_numpy(reference.rbm_log_partition(b, c, array(model.weight)))
    assert distance(-model.free_energy(v, state) - log_z, model.log_prob(v, state)) < 1e-13


def test_conditionals_of_a_gibbs_step_equal_the_joint_distribution():
    draws = 40_000
    model, state = make_model("rbm", scale=0.7), make_state(1)
    p = joint(model, state)
    b, c = (torch.from_numpy(x) for x in biases(model, state))
    start = make_frames("rbm", 1).double()
    number = int((start.long() << torch.arange(VISIBLE)).sum())
    given_start = p[number] / p[number].sum()  # p(h | v)
    given_h = p / p.sum(0)  # p(v | h)
    v, logits = _rbm.gibbs(start.expand(draws, -1), b, c, model.weight, 1, torch.Generator().manual_seed(3))
    assert_drawn_from(frequencies(v), given_h @ given_start, draws)
    on = given_h.T @ every_frame("rbm")  # p(v_i = 1 | h) for every h
    found = torch.sigmoid(logits)
    nearest = (found.unsqueeze(1) - on).abs().sum(-1).min(1).values
    assert nearest.max() < 1e-12


def test_a_gibbs_step_leaves_the_distribution_invariant():
    draws = 40_000
    model, state = make_model("rbm"), make_state(1)
    p = joint(model, state).sum(1)
    generator = torch.Generator().manual_seed(4)
    start = every_frame("rbm")[torch.multinomial(p, draws, True, generator=generator)]
    end = model.gibbs(start, state.expand(draws, -1), 1, generator=generator)
    assert end.dtype == state.dtype
    assert not torch.equal(end, start)
    assert_drawn_from(frequencies(end), p, draws)


def test_gibbs_takes_gibbs_steps_by_default():
    model, state, v = make_model("rbm", gibbs_steps=3), make_state(50), make_frames("rbm", 50)
    ends = [
        model.gibbs(v, state, *steps, generator=torch.Generator().manual_seed(1))
        for steps in ((), (3,), (2,))
    ]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


# --- Contrastive divergence ---------------------------------------------------------------------------


def test_the_loss_is_the_difference_of_free_energies():
    model, state, v = make_model("rbm"), make_state(6), make_frames("rbm", 6)
    seeds = [torch.Generator().manual_seed(7) for _ in range(2)]
    end = model.gibbs(v, state, 4, generator=seeds[0])
    expected = model.free_energy(v, state) - model.free_energy(end, state)
    found = model.loss(v, state, steps=4, generator=seeds[1])
    assert torch.equal(found, expected)
    leaves = list(model.parameters())
    pairs = zip(*(torch.autograd.grad(x.sum(), leaves) for x in (found, expected)), strict=True)
    assert all(distance(a, b) < 1e-13 for a, b in pairs)


@pytest.mark.parametrize("persistent", [False, True])
def test_the_gradient_of_a_long_chain_is_that_of_the_log_probability(persistent):
    copies = 20_000
    model = make_model("rbm", scale=0.5)
    state, v = make_state(2).requires_grad_(), make_frames("rbm", 2)
    leaves = [state, *model.parameters()]
    expected = torch.autograd.grad(-model.log_prob(v, state).sum(), leaves)
    many = v.expand(copies, 2, -1), state.expand(copies, 2, -1)
    options = {"generator": torch.Generator().manual_seed(8)}
    if persistent:  # twenty calls with one step each, with the same chain
        options |= {"chain": many[0].clone(), "steps": 1}
        for _ in range(19):
            model.loss(*many, **options)
    else:
        options |= {"steps": 20}
    found = torch.autograd.grad(model.loss(*many, **options).sum() / copies, leaves)
    for a, b in zip(found, expected, strict=True):
        # Each value sums, over two rows, a difference between a frame and a sample, times states up to 3.
        assert (a - b).abs().max() < 2 * 3 * half_width(copies)


def test_a_persistent_chain_continues_where_it_ended():
    model, state, v = make_model("rbm"), make_state(30), make_frames("rbm", 30)
    chain = torch.zeros(30, VISIBLE, dtype=torch.uint8)
    ends = []
    for seed in range(3):
        begin = chain.clone()
        model.loss(v, state, steps=1, chain=chain, generator=torch.Generator().manual_seed(seed))
        expected = model.gibbs(begin, state, 1, generator=torch.Generator().manual_seed(seed))
        assert chain.dtype == torch.uint8
        assert torch.equal(chain.double(), expected)
        ends.append(chain.clone())
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])


def test_training_nearly_reaches_the_result_of_exact_gradients():
    generator = torch.Generator().manual_seed(11)
    patterns = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 1, 1, 0], [1, 0, 1, 0, 1]]).double()
    v = patterns[torch.randint(3, (300,), generator=generator)]
    state = torch.zeros(300, CONDITION, dtype=torch.float64)
    reached = {}
    for kind in ("exact", "cd", "pcd"):
        torch.manual_seed(5)
        model = RBM(VISIBLE, HIDDEN, CONDITION, gibbs_steps=5, dtype=torch.float64)
        nn.init.normal_(model.weight, std=0.3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        chain = v.clone() if kind == "pcd" else None
        for _ in range(300):
            optimizer.zero_grad()
            loss = (
                -model.log_prob(v, state)
                if kind == "exact"
                else model.loss(v, state, chain=chain, generator=generator)
            )
            loss.mean().backward()
            optimizer.step()
        reached[kind] = model.log_prob(v, state).mean().item()
    assert reached["exact"] > -1.2  # the patterns' entropy is log 3
    assert reached["cd"] > reached["exact"] - 0.5
    assert reached["pcd"] > reached["exact"] - 0.5


# --- Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be greater than zero, got 0"),
        ({"steps": 1.5}, TypeError, "steps must be an int, got float"),
        ({"chain": [0]}, TypeError, "chain must be a Tensor, got list"),
        ({"chain": torch.zeros(3, VISIBLE)}, ValueError, r"chain must be \[..., D\] = \[4, 5\]"),
        ({"chain": torch.full((4, VISIBLE), 0.5)}, ValueError, "chain must be binary"),
        (
            {"chain": torch.zeros(4, VISIBLE, requires_grad=True)},
            ValueError,
            "chain must not require gradients: it is overwritten",
        ),
        ({"generator": 3}, TypeError, "generator must be a torch[.]Generator, got int"),
    ],
)
def test_bad_options_of_the_loss_raise_errors(options, error, message):
    model = make_model("rbm")
    with pytest.raises(error, match=message):
        model.loss(make_frames("rbm", 4), make_state(4), **options)


@pytest.mark.parametrize("method", ["sample", "marginals"])
def test_bad_steps_raise_errors(method):
    with pytest.raises(ValueError, match="steps must be greater than zero, got -1"):
        getattr(make_model("rbm"), method)(make_state(4), steps=-1)


def test_log_prob_of_a_large_model_raises_an_error_that_names_the_estimate(monkeypatch):
    model = RBM(21, 22, CONDITION)
    with pytest.raises(ValueError, match="at most 20 units, got 21: estimate_log_prob estimates it"):
        model.log_prob(torch.zeros(2, 21), torch.zeros(2, CONDITION))
    monkeypatch.setattr(rbm, "MAX_ENUMERATED", 3)
    with pytest.raises(ValueError, match="at most 3 units, got 4"):
        make_model("rbm").log_prob(make_frames("rbm", 2), make_state(2))
