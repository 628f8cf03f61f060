"""NumPy's integers, floats and bools are accepted wherever Python's are, and are stored as Python's."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rnnkernels
from rnnkernels import constraints, functional
from rnnkernels._checks import checked_flag, checked_size

FLOATS = (np.float16, np.float32, np.float64)
INTEGERS = (np.int8, np.uint8, np.int32, np.int64)


def same_parameters(a: nn.Module, b: nn.Module) -> bool:
    return {k: x.shape for k, x in a.state_dict().items()} == {k: x.shape for k, x in b.state_dict().items()}


def assert_plain(value: Any) -> None:
    """Assert that no NumPy number is in a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for entry in value:
            assert_plain(entry)
    assert not isinstance(value, np.generic)


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("real", FLOATS)
def test_the_layer_and_the_cell(integer, real):
    flags = {"bias": np.bool_(True), "batch_first": np.bool_(True), "bidirectional": np.bool_(True)}
    more = {"learn_h0": np.bool_(True), "learn_decay": np.bool_(False), "checkpoint_every": integer(2)}
    layer = rnnkernels.LeakyRNN(
        integer(3), integer(5), integer(2), dropout=real(0.25), decay=real(0.5), **flags, **more
    )
    plain = rnnkernels.LeakyRNN(
        3,
        5,
        2,
        dropout=0.25,
        decay=0.5,
        batch_first=True,
        bidirectional=True,
        learn_h0=True,
        checkpoint_every=2,
    )
    assert same_parameters(layer, plain)
    assert repr(layer) == repr(plain)
    assert layer.decay == 0.5
    assert_plain(vars(layer))
    assert layer(torch.randn(2, 4, 3))[0].shape == (2, 4, 10)
    layer.decay = real(0.75)
    assert layer.decay == 0.75
    layer.decay = [real(0.5), real(0.75)]
    assert layer.decay == (0.5, 0.75)
    layer.decay = np.full(5, 0.25, real)
    assert torch.equal(layer.decay, torch.full((5,), 0.25))
    cell = rnnkernels.LeakyRNNCell(integer(3), integer(5), bias=np.bool_(False), decay=real(0.5))
    assert same_parameters(cell, rnnkernels.LeakyRNNCell(3, 5, bias=False))
    assert_plain(vars(cell))


@pytest.mark.parametrize("integer", INTEGERS)
def test_the_output_models(integer):
    state, v = torch.randn(3, 4), torch.zeros(3, 8)
    models = {
        rnnkernels.NADE(integer(8), integer(6), integer(4)): rnnkernels.NADE(8, 6, 4),
        rnnkernels.RBM(integer(8), integer(6), integer(4), integer(2)): rnnkernels.RBM(8, 6, 4, 2),
        rnnkernels.Categorical(integer(8), integer(4)): rnnkernels.Categorical(8, 4),
        rnnkernels.IndependentBernoulli(integer(8), integer(4)): rnnkernels.IndependentBernoulli(8, 4),
    }
    for model, plain in models.items():
        assert same_parameters(model, plain)
        assert repr(model) == repr(plain)
        assert_plain(vars(model))
        assert model.marginals(state, samples=integer(3)).shape == (3, 8)
    rbm = next(model for model in models if isinstance(model, rnnkernels.RBM))
    assert rbm.loss(v, state, steps=integer(2)).shape == (3,)
    assert rbm.sample(state, steps=integer(2)).shape == (3, 8)
    assert rbm.estimate_log_prob(v, state, chains=integer(2), temperatures=integer(3))[0].shape == (3,)


@pytest.mark.parametrize("real", FLOATS)
def test_time_constants_penalties_and_constraints(real):
    assert rnnkernels.decay_from_tau(real(4), real(1)) == 0.75
    assert rnnkernels.decay_from_tau(np.int64(4), np.int64(1)) == 0.75
    decay = rnnkernels.draw_decay(np.int64(3), low=real(0.25), high=real(0.5), log_uniform=np.bool_(True))
    assert decay.shape == (3,)
    for scale in (rnnkernels.noise_scale(real(0.5), real(0.5)), rnnkernels.noise_scale(real(0.5), 0.5)):
        assert type(scale) is float
        assert scale == 1
    assert rnnkernels.activity_penalty(torch.ones(3), l1=real(0.5), l2=np.int64(1)) == 1.5
    assert_plain(vars(constraints.LowRank(np.int64(2))))
    assert constraints.no_self_connections(np.int64(2)).mask.shape == (2, 2)


@pytest.mark.parametrize("real", FLOATS)
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (rnnkernels.ClippedNesterov, {"momentum": 0.5}),
        (rnnkernels.ClippedAdamW, {"betas": (0.5, 0.75), "eps": 0.125}),
    ],
)
def test_the_optimizers(optimizer, options, real):
    def stepped(number: Any, flag: Any) -> tuple[Any, torch.Tensor]:
        p = nn.Parameter(torch.ones(3))
        given = {k: tuple(map(number, v)) if isinstance(v, tuple) else number(v) for k, v in options.items()}
        steps = optimizer(
            [{"params": [p], "weight_decay": number(0.25)}], lr=number(0.5), max_norm=number(2), **given,
            norm_type=number(2), maximize=flag(False), master_weights=flag(False),
        )  # fmt: skip
        p.grad = torch.ones(3)
        steps.step()
        steps.param_groups[0]["lr"] = number(0.25)  # as a schedule of NumPy's numbers does
        steps.step()
        return steps, p.detach()

    steps, found = stepped(real, np.bool_)
    _, expected = stepped(float, bool)
    assert torch.equal(found, expected)
    steps.param_groups[0]["lr"] = 0.25
    for group in (steps.defaults, *steps.param_groups):
        assert_plain({k: x for k, x in group.items() if k != "params"})
    file = io.BytesIO()
    torch.save(steps.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)  # refuses NumPy's numbers


def test_schedules():
    assert rnnkernels.paper_momentum(np.int64(250), np.float32(0.875)) == 0.75
    assert type(rnnkernels.paper_momentum(np.int64(250), np.float32(0.875))) is float
    optimizer = rnnkernels.ClippedNesterov([nn.Parameter(torch.ones(3))])
    schedule = rnnkernels.MomentumSchedule(optimizer, mu_max=np.float32(0.25))
    assert optimizer.param_groups[0]["momentum"] == 0.25
    assert_plain(schedule.state_dict())


def test_functions():
    pre, weight = torch.randn(4, 2, 3), torch.eye(3)
    found = functional.leaky_recurrence(pre, None, weight, np.float32(0.5))[0]
    assert torch.equal(found, functional.leaky_recurrence(pre, None, weight, 0.5)[0])
    checkpointed = functional.projected_recurrence(
        pre, None, weight, weight, None, np.float64(0.5), checkpoint_every=np.int64(2)
    )
    assert checkpointed[0].shape == (4, 2, 3)
    layer = rnnkernels.LeakyRNN(3, 3)
    assert len(list(rnnkernels.truncated_bptt(layer, pre, np.int64(2)))) == 2


@pytest.mark.parametrize("wrong", [2.0, np.float64(2), True, np.bool_(True), "2", None, [2]], ids=repr)
def test_a_size_is_an_integer(wrong):
    with pytest.raises(TypeError, match=f"size must be an int, got {type(wrong).__name__}"):
        checked_size("size", wrong)


@pytest.mark.parametrize("wrong", [0, 1, np.int64(1), 1.0, "True", None], ids=repr)
def test_a_flag_is_a_bool(wrong):
    with pytest.raises(TypeError, match=f"flag must be a bool, got {type(wrong).__name__}"):
        checked_flag("flag", wrong)


def test_an_integer_of_any_other_kind_is_a_size():
    class Five:
        def __index__(self) -> int:
            return 5

    assert checked_size("size", Five()) == 5
    assert type(checked_size("size", np.int64(5))) is int
    with pytest.raises(ValueError, match="size must be greater than zero, got 0"):
        checked_size("size", np.int64(0))
