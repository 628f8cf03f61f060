"""Tests of all output models: probabilities, samples, gradients, dtypes and layouts."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from helpers import ROOT, distance
from output_helpers import (
    BINARY,
    CONDITION,
    MODELS,
    VISIBLE,
    assert_drawn_from,
    every_frame,
    frequencies,
    half_width,
    make_frames,
    make_model,
    make_state,
)
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

import rnnkernels
from rnnkernels import RBM, LeakyRNN, expected_accuracy, outputs

SHORTER = {"rbm": {"steps": 20}}  # enough for chains of so few units
EXACT = tuple(name for name in MODELS if name != "rbm")  # their loss is -log_prob


def test_all_models_are_at_the_top_of_the_package():
    for name in outputs.__all__:
        assert name == "MeanInterval" or getattr(rnnkernels, name) is getattr(outputs, name)


# --- Probabilities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_add_up_to_one_for_each_state(name):
    model, state, frames = make_model(name), make_state(6), every_frame(name)
    rows = (len(frames), *state.shape)
    v = frames.unsqueeze(1).expand(len(frames), 6, *frames.shape[1:])
    total = model.log_prob(v, state.expand(rows)).exp().sum(0)
    assert torch.allclose(total, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_sample_frequencies_equal_the_probabilities(name):
    draws = 40_000
    model, state = make_model(name), make_state(1)
    v = model.sample(
        state.expand(draws, -1), **SHORTER.get(name, {}), generator=torch.Generator().manual_seed(5)
    )
    frames = every_frame(name)
    expected = model.log_prob(frames, state.expand(len(frames), -1)).detach().exp()
    if name == "categorical":
        found = torch.bincount(v, minlength=VISIBLE) / draws
    else:
        assert set(v.unique().tolist()) == {0.0, 1.0}
        found = frequencies(v)
    assert_drawn_from(found, expected, draws)


@pytest.mark.parametrize("name", MODELS)
def test_marginals_are_sums_of_probabilities(name):
    model, state, frames = make_model(name), make_state(3), every_frame(name)
    rows = (len(frames), *state.shape)
    v = frames.unsqueeze(1).expand(len(frames), 3, *frames.shape[1:])
    p = model.log_prob(v, state.expand(rows)).exp()
    expected = p.T if name == "categorical" else torch.einsum("kn,kd->nd", p, frames)
    found = model.marginals(
        state, samples=20_000, **SHORTER.get(name, {}), generator=torch.Generator().manual_seed(6)
    )
    assert found.shape == (3, VISIBLE)
    assert found.dtype == torch.float64
    exact = name in ("independent", "categorical")
    assert (found - expected).abs().max() < (1e-14 if exact else half_width(20_000))


def test_categorical_is_cross_entropy():
    model, state, v = make_model("categorical"), make_state(4, 2), make_frames("categorical", 4, 2)
    logits = model.visible_bias(state).reshape(-1, VISIBLE)
    expected = nn.functional.cross_entropy(logits, v.reshape(-1), reduction="none")
    assert torch.allclose(model.loss(v, state), expected.reshape(4, 2))


@pytest.mark.parametrize("name", EXACT)
def test_the_loss_is_minus_the_log_probability(name):
    model, state, v = make_model(name), make_state(4), make_frames(name, 4)
    assert torch.equal(model.loss(v, state), -model.log_prob(v, state))


@pytest.mark.parametrize("name", MODELS)
def test_a_call_of_the_module_returns_the_loss(name):
    model, frames, state = make_model(name), make_frames(name, 6), make_state(6)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    options = [{"generator": torch.Generator().manual_seed(0)} if name == "rbm" else {} for _ in range(2)]
    torch.testing.assert_close(model(frames, state, **options[0]), model.loss(frames, state, **options[1]))
    assert seen == [1]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_log_probability_are_finite_differences(name):
    model, v = make_model(name), make_frames(name, 2)
    state = make_state(2).requires_grad_()
    parameters = list(model.parameters())
    names = [key for key, _ in model.named_parameters()]

    def function(state, *values):
        changed = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, changed, (v, state), tie_weights=False)

    model.forward = model.log_prob  # functional_call calls forward
    assert torch.autograd.gradcheck(function, (state, *parameters))
    assert torch.autograd.gradgradcheck(function, (state, *parameters))


# --- Layouts and dtypes ------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (2, 1, 2, 2), (0,), (3, 0)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_any_leading_dimensions(name, lead):
    model, state, v = make_model(name), make_state(*lead), make_frames(name, *lead)
    log_prob = model.log_prob(v, state)
    assert log_prob.shape == model.loss(v, state).shape == lead
    assert model.sample(state).shape == v.shape
    assert model.marginals(state, samples=2).shape == (*lead, VISIBLE)
    flat = model.log_prob(v.reshape(-1, *v.shape[len(lead) :]), state.reshape(-1, CONDITION))
    assert torch.allclose(flat.reshape(lead), log_prob, rtol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_strides_do_not_matter(name):
    model, state, v = make_model(name), make_state(4, 3), make_frames(name, 4, 3)
    batch_first = state.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.allclose(model.log_prob(v, batch_first), model.log_prob(v, state), rtol=1e-13)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_frames_of_any_dtype(name, dtype):
    model, state = make_model(name), make_state(4)
    v = make_frames(name, 4)
    assert torch.equal(model.log_prob(v.to(dtype), state), model.log_prob(v, state))


@pytest.mark.parametrize("name", BINARY)
def test_no_gradient_flows_to_the_frames(name):
    model, state = make_model(name), make_state(4)
    v = make_frames(name, 4, dtype=torch.float64).requires_grad_()
    model.loss(v, state).sum().backward()
    assert v.grad is None
    assert model.visible_bias.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_lower_precision_is_close_to_float64(name, dtype):
    model, state, v = make_model(name, dtype, scale=0.5), make_state(4, dtype=dtype), make_frames(name, 4)
    wide = copy.deepcopy(model).double()
    found, expected = model.log_prob(v, state), wide.log_prob(v, state.double())
    assert found.dtype == model.marginals(state, samples=2).dtype == torch.float32
    # Half precision rounds the biases only, which are of order one.
    assert (found - expected).abs().max() < VISIBLE * 4 * torch.finfo(dtype).eps
    drawn = model.sample(state)
    assert drawn.dtype == (torch.int64 if name == "categorical" else dtype)
    model.loss(v, state).sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_autocast(name):
    model, state, v = (
        make_model(name, torch.float32),
        make_state(4, dtype=torch.float32),
        make_frames(name, 4),
    )
    expected = model.log_prob(v, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, low = model.log_prob(v, state), model.log_prob(v, state.bfloat16())
        assert model.loss(v, state).dtype == model.marginals(state, samples=2).dtype == torch.float32
        assert model.sample(state).shape == v.shape
    assert found.dtype == low.dtype == torch.float32
    assert (found - expected).abs().max() < VISIBLE * 8 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("name", MODELS)
def test_the_same_generator_draws_the_same(name):
    model, state = make_model(name), make_state(20)
    draws = [model.sample(state, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    a, b = (model.marginals(state, samples=3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_samples_and_estimates_have_no_gradient(name):
    model, state = make_model(name), make_state(3).requires_grad_()
    assert not model.sample(state).requires_grad
    assert model.marginals(state, samples=2).requires_grad == (name in ("independent", "categorical"))


def test_marginals_of_many_samples_are_computed_in_parts(monkeypatch):
    for name in ("nade", "rbm"):
        model, state = make_model(name), make_state(4)
        monkeypatch.setattr(outputs._base, "MAX_VALUES", 4 * VISIBLE * 30)
        expected = model.marginals(state, samples=2000, **SHORTER.get(name, {}))
        monkeypatch.setattr(outputs._base, "MAX_VALUES", 1)
        found = model.marginals(state, samples=300, **SHORTER.get(name, {}))
        assert (found - expected).abs().max() < half_width(2000) + half_width(300)


# --- With a network, compiled, saved ------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_network_learns_packed_sequences(name):
    torch.manual_seed(3)
    rnn, model = LeakyRNN(VISIBLE, CONDITION, nonlinearity="tanh"), MODELS[name]()
    cycle = torch.eye(VISIBLE)  # one unit after the other
    sequences = [cycle.roll(shift, 0).repeat(3, 1)[:n] for shift, n in ((0, 9), (1, 12), (3, 6))]
    x = pack_sequence([s[:-1] for s in sequences], enforce_sorted=False)
    y = pack_sequence([s[1:] for s in sequences], enforce_sorted=False).data
    y = y.argmax(-1) if name == "categorical" else y
    optimizer = torch.optim.Adam([*rnn.parameters(), *model.parameters()], lr=0.05)
    with torch.no_grad():
        before = model.log_prob(y, rnn(x)[0].data).mean()
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(y, rnn(x)[0].data).mean().backward()
        optimizer.step()
    with torch.no_grad():
        state = rnn(x)[0].data
        after = model.log_prob(y, state).mean()
        accuracy = None if name == "categorical" else expected_accuracy(y, model.marginals(state))
    assert after > before / 3
    assert accuracy is None or accuracy > 0.6


@pytest.mark.parametrize("name", MODELS)
def test_it_compiles_without_a_graph_break(name):
    model, state, v = make_model(name), make_state(4, 2).requires_grad_(), make_frames(name, 4, 2)
    leaves = [state, *model.parameters()]
    for function in (model.log_prob, model.loss):
        if name == "rbm" and function == model.loss:
            continue  # its loss draws samples
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        found, expected = (f(v, state) for f in (compiled, function))
        assert distance(found, expected) < 1e-13
        pairs = zip(*(torch.autograd.grad(x.sum(), leaves) for x in (found, expected)), strict=True)
        assert all(distance(a, b) < 1e-12 for a, b in pairs)


def test_contrastive_divergence_compiles_too():
    model, state, v = make_model("rbm"), make_state(4), make_frames("rbm", 4)
    torch._dynamo.reset()
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    chain = v.clone()
    loss = compiled(v, state, steps=2, chain=chain)
    with torch.no_grad():
        expected = model.free_energy(v, state) - model.free_energy(chain, state)
    assert distance(loss, expected) < 1e-13


@pytest.mark.parametrize("name", MODELS)
def test_a_state_dict_round_trip(name, tmp_path):
    model, other = make_model(name), MODELS[name](dtype=torch.float64)
    state, v = make_state(3), make_frames(name, 3)
    assert not torch.equal(model.log_prob(v, state), other.log_prob(v, state))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(model.log_prob(v, state), other.log_prob(v, state))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("independent", "5, condition_size=3"),
        ("categorical", "5, condition_size=3"),
        ("nade", "5, 4, condition_size=3"),
        ("rbm", "5, 4, condition_size=3, gibbs_steps=15"),
    ],
)
def test_repr_shows_the_sizes(name, expected):
    assert MODELS[name]().extra_repr() == expected


@pytest.mark.parametrize("name", MODELS)
def test_reset_parameters_initializes_all_parameters(name):
    model = MODELS[name]()
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(9)
    model.reset_parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    torch.manual_seed(9)
    for a, b in zip(MODELS[name]().parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_code_in_the_documentation_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "outputs.md").read_text(), re.DOTALL)
    rolls = [(torch.rand(n, 88) < 0.05).float() for n in (7, 4, 9)]
    steps, batch, hidden = 3, 2, 200
    names = {
        "torch": torch, "rnnkernels": rnnkernels, "pack_sequence": pack_sequence,
        "unpack_sequence": unpack_sequence, "rolls": rolls, "epochs": 2, "batches": lambda rolls: [rolls],
        "rows": range(3), "rbm": RBM(88, 10, hidden, gibbs_steps=2), "T": steps, "B": batch, "H": hidden,
    }  # fmt: skip
    training, generating, persistent, estimating, sparse = blocks
    exec(training, names)
    exec(persistent, names)
    exec(generating, names)
    names |= {"v": rolls[0], "state": torch.randn(7, hidden)}
    exec(estimating.replace("temperatures=1000", "temperatures=10"), names)
    names |= {"loss": torch.Tensor.mean, "x": torch.randn(steps, batch, 88)}
    exec(sparse, names)
    assert not torch.equal(names["chains"][2], rolls[2].bool())
    assert names["low"] < names["mean"] < names["high"]
    assert 0 < names["gradient"] < 1


# --- The expected accuracy ----------------------------------------------------------------------------


def test_the_expected_accuracy_is_a_ratio_of_expected_counts():
    v = torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.bool)
    m = torch.tensor([[0.5, 0.25, 1.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    hits, false, missed = 0.5 + 1 + 0.5, 0.25, 0.5 + 0 + 0.5
    assert expected_accuracy(v, m).item() == pytest.approx(hits / (hits + false + missed))
    assert expected_accuracy(v, v.float()) == 1
    assert expected_accuracy(v, (~v).float()) == 0
    assert expected_accuracy(torch.zeros(2, 3), torch.zeros(2, 3)).isnan()


def test_the_expected_accuracy_is_the_accuracy_of_samples():
    random = np.random.default_rng(0)
    v, m = torch.rand(50, 20) < 0.2, torch.rand(50, 20)
    drawn = torch.from_numpy(random.random((2000, 50, 20))) < m
    hits, false, missed = ((drawn & v).sum(), (drawn & ~v).sum(), (~drawn & v).sum())
    assert abs(expected_accuracy(v, m) - hits / (hits + false + missed)) < 1e-3
