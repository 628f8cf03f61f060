"""Parameters that are written between two steps: the next step starts from what was written."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer_helpers import EDITS, check_edit

from rnnkernels import ClippedAdamW, ClippedNesterov

CLASSES = [ClippedNesterov, ClippedAdamW]
HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("edit", EDITS)
def test_a_step_with_master_weights_starts_from_what_was_written(cls, dtype, edit):
    check_edit(cls, dtype, edit)


@pytest.mark.parametrize("layout", ["transposed", "sliced"])
def test_a_written_parameter_may_have_any_layout(layout):
    check_edit(ClippedNesterov, torch.bfloat16, "filled", layout)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("masters", [False, True])
def test_a_step_that_changes_nothing_keeps_what_was_written(cls, dtype, masters):
    param = torch.nn.Parameter(torch.randn(5000).to(dtype))
    optimizer = cls([param], lr=0.1, master_weights=masters)
    param.grad = torch.randn(5000).to(dtype)
    optimizer.step()
    written = torch.randn(5000).to(dtype)
    written[:4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf], dtype=dtype)
    with torch.no_grad():
        param.copy_(written)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.state[param][cls.state_names[0]].zero_()
    param.grad.zero_()
    optimizer.step()
    assert torch.equal(param, written)


@pytest.mark.parametrize(("cls", "lr"), [(ClippedNesterov, 1e-6), (ClippedAdamW, 1e-5)])
@pytest.mark.parametrize("dtype", HALVES)
def test_small_updates_add_up_beside_elements_that_are_written(cls, lr, dtype):
    """A constraint is applied after each step, to half of the elements."""
    param = torch.nn.Parameter(torch.ones(100, dtype=dtype))
    wide = torch.nn.Parameter(torch.ones(100))
    optimizer = cls([param], lr=lr, max_norm=None, weight_decay=0.0, master_weights=True)
    judge = cls([wide], lr=lr, max_norm=None, weight_decay=0.0)
    for _ in range(50):
        param.grad, wide.grad = torch.ones_like(param), torch.ones_like(wide)
        before = wide.detach().clone()
        optimizer.step()
        judge.step()
        assert (before - wide > 0).all()
        assert (before - wide < torch.finfo(dtype).eps / 8).all()  # less than half of the last place
        assert torch.equal(optimizer.state[param]["master"][:50], wide[:50])
        with torch.no_grad():
            param[50:].clamp_(min=1.0)
    assert (wide < 1 - 3e-4).all()
    assert (param[50:] == 1).all()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", HALVES)
def test_a_diverged_parameter_can_be_restored(cls, dtype):
    param = torch.nn.Parameter(torch.ones(9, dtype=dtype))
    optimizer = cls([param], lr=0.1, nonfinite="apply", master_weights=True)
    good = copy.deepcopy(param.detach())
    param.grad = torch.full_like(param, torch.nan)
    optimizer.step()
    assert param.isnan().all()
    with torch.no_grad():
        param.copy_(good)
    optimizer.state[param][cls.state_names[0]].zero_()
    if cls is ClippedAdamW:
        optimizer.state[param]["exp_avg_sq"].zero_()
    param.grad = torch.zeros_like(param)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    assert torch.equal(param, good)


def train(net, optimizer, steps, seed):
    chance = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(9, 5, generator=chance).to(torch.bfloat16)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("order", ["model first", "optimizer first", "only the optimizer", "only the model"])
def test_model_and_optimizer_are_loaded_in_any_order(cls, order):
    def make():
        torch.manual_seed(1)
        net = torch.nn.Linear(5, 3).to(torch.bfloat16)
        return net, cls(net.parameters(), lr=1e-3, master_weights=True)

    net, optimizer = make()
    train(net, optimizer, 5, seed=0)
    states = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    other, loaded = make()
    train(other, loaded, 2, seed=3)
    before = [param.detach().clone() for param in other.parameters()]
    if order in ("model first", "only the model"):
        other.load_state_dict(states[0])
    if order != "only the model":
        loaded.load_state_dict(states[1])
    if order == "optimizer first":
        other.load_state_dict(states[0])
    expected = before if order == "only the optimizer" else states[0].values()
    if order in ("model first", "optimizer first"):  # the master copies continue
        train(net, optimizer, 5, seed=9)
        train(other, loaded, 5, seed=9)
        for a, b in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(optimizer.state[a]["master"], loaded.state[b]["master"])
        return
    for param in other.parameters():
        param.grad = torch.zeros_like(param)
        loaded.state[param][cls.state_names[0]].zero_()
    loaded.param_groups[0]["lr"] = 0.0
    loaded.step()
    for param, value in zip(other.parameters(), expected, strict=True):
        assert torch.equal(param, value)


def test_float32_values_may_be_written_into_the_parameter_and_its_master_copy():
    param = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    param.grad = torch.zeros_like(param)
    optimizer = ClippedNesterov([param], master_weights=True)
    optimizer.step()
    values = torch.randn(8)
    with torch.no_grad():
        param.copy_(values)
    optimizer.state[param]["master"].copy_(values)
    optimizer.step()
    assert torch.equal(optimizer.state[param]["master"], values)
