"""Errors for invalid settings, parameters and gradients; each names the argument."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from optimizer_helpers import one

from rnnkernels import ClippedAdamW, ClippedNesterov, MomentumSchedule

NAN = math.nan


@pytest.mark.parametrize(
    ("name", "bad"),
    [("lr", x) for x in (-1.0, NAN, math.inf, "1", None, torch.tensor([1.0, 2.0]), torch.tensor(-1.0))]
    + [("momentum", x) for x in (-0.1, 1.0, NAN, 2)]
    + [("max_norm", x) for x in (0, 0.0, -1.0, NAN)]
    + [("norm_type", x) for x in (0, -2.0, NAN, "2")]
    + [("weight_decay", x) for x in (-1e-3, NAN)]
    + [(name, x) for name in ("maximize", "master_weights") for x in ("no", 1, None)]
    + [("nonfinite", x) for x in ("ignore", None)],
)
def test_bad_settings_of_nesterov_are_named(name, bad):
    params = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match=rf"^{name} must"):
        ClippedNesterov(params, **{name: bad})
    optimizer = ClippedNesterov(params)
    with pytest.raises(ValueError, match=rf"^{name} (must|belongs)"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], name: bad})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("betas", (1.0, 0.9), r"betas\[0\] must"),
        ("betas", (0.9, NAN), r"betas\[1\] must"),
        ("betas", 0.9, "betas must be two"),
        ("eps", -1.0, "eps must"),
        ("lr", NAN, "lr must"),
        ("max_norm", 0.0, "max_norm must"),
    ],
)
def test_bad_settings_of_adamw_are_named(name, bad, message):
    with pytest.raises(ValueError, match=message):
        ClippedAdamW([torch.nn.Parameter(torch.zeros(2))], **{name: bad})


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.float16(0.5)])
def test_settings_may_be_numpy_scalars(number):
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in "ab"]
    for param, lr in zip(params, (number, 0.5), strict=True):
        param.grad = torch.ones(2)
        ClippedNesterov([param], lr=lr, max_norm=lr, weight_decay=lr, momentum=lr).step()
    assert torch.equal(*params)


def test_a_list_as_a_group_and_a_schedule_without_momentum_raise_errors():
    _, optimizer = one()
    with pytest.raises(ValueError, match="param_group must be a dict with 'params', got list"):
        optimizer.add_param_group([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match="optimizer must have a momentum in its groups, got a ClippedAdamW"):
        MomentumSchedule(ClippedAdamW([torch.nn.Parameter(torch.zeros(2))]))


def test_a_parameter_whose_elements_share_memory_raises_an_error():
    param = torch.nn.Parameter(torch.zeros(1).expand(4))
    param.grad = torch.ones(4)
    with pytest.raises(ValueError, match=r"parameter 0 must have memory for each element, got strides \[0\]"):
        ClippedNesterov([param]).step()


@pytest.mark.parametrize(
    ("name", "bad"),
    [("lr", NAN), ("lr", math.inf), ("momentum", 1.5), ("max_norm", 0.0)],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_setting_out_of_range_at_a_step_is_named_and_nothing_changes(name, bad, as_tensor):
    param, optimizer = one()
    before = param.detach().clone()
    optimizer.param_groups[0][name] = torch.tensor(bad) if as_tensor else bad
    with pytest.raises(ValueError, match=rf"^{name} must lie in"):
        optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("name", ["lr", "momentum", "max_norm", "weight_decay"])
def test_a_setting_that_is_a_string_at_a_step_is_named(name):
    param, optimizer = one()
    before = param.detach().clone()
    optimizer.param_groups[0][name] = "0.1"
    with pytest.raises(ValueError, match=rf"^{name} must be a number, got '0.1'"):
        optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize(("cls", "name"), [(ClippedNesterov, "velocity"), (ClippedAdamW, "step")])
def test_a_state_that_lacks_a_key_raises_an_error(cls, name):
    param, _ = one()
    optimizer = cls([param])
    optimizer.step()
    before = param.detach().clone()
    del optimizer.state[param][name]
    optimizer.state[param]["own"] = torch.zeros(())
    with pytest.raises(ValueError, match=rf"^a parameter's state must have .*, one lacks '{name}'"):
        optimizer.step()
    assert torch.equal(param, before)


def test_an_unknown_nonfinite_mode_at_a_step_is_named():
    _, optimizer = one()
    optimizer.nonfinite = "ignore"
    with pytest.raises(ValueError, match="nonfinite must be 'skip', 'raise' or 'apply', got 'ignore'"):
        optimizer.step()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, device="meta"), "meta device"),
        (torch.zeros(2, dtype=torch.complex64), "must be real"),
        (torch.zeros(2, 2).to_sparse(), "must be dense"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "must be float32"),
    ],
)
def test_bad_parameters_are_named(tensor, message):
    with pytest.raises(ValueError, match=rf"^params\[1\] of group 0 .*{message}"):
        ClippedNesterov([torch.zeros(2), tensor])


def test_invalid_gradients_and_states_are_named():
    first, second = (torch.nn.Parameter(torch.ones(2, 2)) for _ in "ab")
    optimizer = ClippedNesterov([first, second])
    first.grad = torch.ones(2, 2)
    second.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(ValueError, match="the gradient of parameter 1 must be dense, got layout Sparse"):
        optimizer.step()
    optimizer.state[second] = {"velocity": torch.zeros(2, 2, dtype=torch.bfloat16)}
    second.grad = torch.ones(2, 2)
    with pytest.raises(
        ValueError,
        match=r"the state 'velocity' of parameter \(params\[1\] of group 0, .* must be torch.float32",
    ):
        optimizer.step()
    optimizer.state[second] = {"velocity": torch.zeros(3)}
    with pytest.raises(ValueError, match="must have its shape, got"):
        optimizer.step()
    assert torch.equal(first, torch.ones(2, 2))


def test_max_norm_as_a_tensor():
    params = [torch.nn.Parameter(torch.ones(3))]
    with pytest.raises(ValueError, match="max_norm must be a number or have one element, got shape"):
        ClippedNesterov(params, max_norm=torch.ones(2))
    for unlimited in (torch.tensor(torch.inf), torch.inf, None):
        param = torch.nn.Parameter(torch.zeros(3))
        param.grad = torch.full((3,), 100.0)
        ClippedNesterov([param], lr=1.0, momentum=0.0, max_norm=unlimited).step()
        assert torch.equal(param.detach(), torch.full((3,), -100.0))
