"""Errors for invalid settings, parameters and gradients; each names the argument."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from optimizer_helpers import one

from rnnkernels import ClippedAdamW, ClippedNesterov, MomentumSchedule, paper_momentum

CLASSES = [ClippedNesterov, ClippedAdamW]
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


NUMPY = [np.float32(0.5), np.float64(0.5), np.float16(0.5), np.int64(0), np.int32(0)]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("number", NUMPY)
@pytest.mark.parametrize("later", [False, True])
def test_settings_may_be_numpy_scalars(cls, number, later):
    """They may be set later, too; those of the constructor are saved as Python's numbers."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in "ab"]
    for param, value in zip(params, (number, float(number)), strict=True):
        param.grad = torch.ones(2)
        settings = {"lr": value, "max_norm": 1 + value, "weight_decay": value}
        settings |= {"momentum": value} if cls is ClippedNesterov else {"betas": (value, value), "eps": value}
        optimizer = cls([param], norm_type=1 + value, **({} if later else settings))
        if later:
            optimizer.param_groups[0].update(settings)
        optimizer.step()
        if not later:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            torch.load(file)  # weights_only=True, the default, refuses NumPy's numbers
    assert torch.equal(*params)


def test_schedules_accept_numpy_scalars():
    _, optimizer = one()
    schedule = MomentumSchedule(optimizer, mu_max=np.float32(0.25))
    assert {type(value) for value in schedule.state_dict().values()} == {int, float}
    assert type(paper_momentum(np.int64(250), np.float32(0.9))) is float
    assert paper_momentum(np.int64(250), np.float32(0.9)) == 0.75


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
    named = r"the state 'velocity' of parameter \(params\[1\] of group 0, shape \[2, 2\]\)"
    with pytest.raises(ValueError, match=named + r" must be torch\.float32 on cpu .*, got torch\.bfloat16"):
        optimizer.step()
    optimizer.state[second] = {"velocity": torch.zeros(3)}
    with pytest.raises(ValueError, match=named + r" must have its shape, got \[3\]"):
        optimizer.step()
    assert torch.equal(first, torch.ones(2, 2))


def take_steps(net, optimizer, steps=1):
    chance = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for param in net.parameters():
            param.grad = torch.randn(param.shape, generator=chance).to(param)
        optimizer.step()


@pytest.mark.parametrize(("cls", "state"), [(ClippedNesterov, "velocity"), (ClippedAdamW, "exp_avg")])
@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("before", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("after", [torch.float32, torch.bfloat16, torch.float64])
def test_a_model_that_is_converted_between_two_steps(cls, state, masters, before, after):
    """The states of all dtypes but float64 are float32. The error for the others says how to convert them."""
    net = torch.nn.Linear(3, 2, dtype=before)
    names = [f"layer.{name}" for name, _ in net.named_parameters()]
    optimizer = cls(zip(names, net.parameters(), strict=True), lr=0.1, master_weights=masters)
    take_steps(net, optimizer)
    net.to(after)
    values = [param.detach().clone() for param in net.parameters()]
    if (before == torch.float64) != (after == torch.float64):
        wanted = "float64" if after == torch.float64 else "float32"
        message = (
            rf"^the state '{state}' of parameter 'layer\.weight' \(params\[0\] of group 0, shape \[2, 3\]\)"
            rf" must be torch\.{wanted} on cpu for a parameter of {after}, got .*: after a conversion of the"
            r" model, optimizer\.load_state_dict\(optimizer\.state_dict\(\)\) converts the states$"
        )
        with pytest.raises(ValueError, match=message):
            take_steps(net, optimizer)
        assert all(map(torch.equal, values, net.parameters()))
        optimizer.load_state_dict(optimizer.state_dict())
    take_steps(net, optimizer, 2)
    assert int(optimizer.taken_steps) == 3
    for param in net.parameters():
        saved = optimizer.state[param]
        assert saved[state].dtype == (torch.float64 if after == torch.float64 else torch.float32)
        if masters and after == torch.bfloat16:
            assert torch.equal(param, saved["master"].bfloat16())
            assert not torch.equal(param.float(), saved["master"])


@pytest.mark.parametrize("cls", CLASSES)
def test_a_parameter_with_a_new_shape_is_named(cls):
    params = [torch.nn.Parameter(torch.ones(3)) for _ in "ab"]
    optimizer = cls([{"params": params[:1]}, {"params": params[1:]}])
    for param in params:
        param.grad = torch.ones(3)
    optimizer.step()
    params[1].grad = None
    params[1].data = torch.ones(2, 4)
    params[1].grad = torch.ones(2, 4)
    before = params[0].detach().clone()
    message = (
        r"of parameter \(params\[0\] of group 1, shape \[2, 4\]\) must have its shape, got \[3\]: .*"
        r" del optimizer\.state\[param\]"
    )
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(params[0], before)
    del optimizer.state[params[1]]
    optimizer.step()
    assert int(optimizer.taken_steps) == 2


def test_a_state_on_another_device_is_named():
    param, optimizer = one()
    optimizer.step()
    optimizer.state[param]["velocity"] = torch.zeros_like(param, device="meta")
    with pytest.raises(ValueError, match=r"must be torch\.float32 on cpu .*, got torch\.float32 on meta: "):
        optimizer.step()


def test_max_norm_as_a_tensor():
    params = [torch.nn.Parameter(torch.ones(3))]
    with pytest.raises(ValueError, match="max_norm must be a number or have one element, got shape"):
        ClippedNesterov(params, max_norm=torch.ones(2))
    for unlimited in (torch.tensor(torch.inf), torch.inf, None):
        param = torch.nn.Parameter(torch.zeros(3))
        param.grad = torch.full((3,), 100.0)
        ClippedNesterov([param], lr=1.0, momentum=0.0, max_norm=unlimited).step()
        assert torch.equal(param.detach(), torch.full((3,), -100.0))
