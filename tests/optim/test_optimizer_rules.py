"""The update rules for random trees of tensors, compared with torch and the float64 reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizer_helpers import (
    Judge,
    Tree,
    assert_near,
    clip_and_step,
    difference,
    draw_gradients,
    make_groups,
    one,
    set_gradients,
    trees,
)

import rnnkernels
from rnnkernels import ClippedAdamW, ClippedNesterov, MomentumSchedule, paper_momentum

DTYPES = st.sampled_from([torch.float32, torch.float64])
MAX_NORMS = st.sampled_from([0.05, 1.0, 30.0, None, math.inf])
NORM_TYPES = st.sampled_from([2.0, 1.0, 3.0, math.inf])
STEPS = 5


def pair(tree: Tree, dtype, options, make, **torch_options):
    """The same groups for ours and for torch; the second group has its own lr."""
    both = []
    for cls, extra in ((make[0], options), (make[1], torch_options)):
        groups = make_groups(tree, dtype)
        settings: list[dict[str, Any]] = [{"params": group} for group in groups]
        if len(settings) > 1:
            settings[1]["lr"] = 0.05
        both.append(([p for group in groups for p in group], cls(settings, **extra)))
    return both


@given(trees, DTYPES, MAX_NORMS, NORM_TYPES, st.sampled_from([0.0, 0.1]), st.booleans())
def test_nesterov_equals_clip_grad_norm_and_sgd_with_constant_settings(
    tree, dtype, max_norm, norm_type, weight_decay, maximize
):
    common = {"lr": 0.1, "momentum": 0.9, "weight_decay": weight_decay, "maximize": maximize}
    ours, theirs = pair(
        tree,
        dtype,
        {**common, "max_norm": max_norm, "norm_type": norm_type},
        (ClippedNesterov, torch.optim.SGD),
        nesterov=True,
        **common,
    )
    for step in range(STEPS):
        grads = draw_gradients(tree, ours[0], step)
        set_gradients(ours[0], grads, tree.layout)
        set_gradients(theirs[0], grads)
        ours[1].step()
        clip_and_step(theirs[1], max_norm, norm_type)
        for param, grad in zip(ours[0], grads, strict=True):  # gradients are not changed
            assert grad is None or torch.equal(param.grad, grad)
    assert_near(ours[0], theirs[0], dtype, STEPS)


@given(trees, DTYPES, MAX_NORMS, st.sampled_from([0.0, 0.1]), st.booleans())
def test_adamw_equals_clip_grad_norm_and_torch_adamw(tree, dtype, max_norm, weight_decay, maximize):
    common = {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": weight_decay, "maximize": maximize}
    ours, theirs = pair(
        tree, dtype, {**common, "max_norm": max_norm}, (ClippedAdamW, torch.optim.AdamW), **common
    )
    for step in range(STEPS):
        grads = draw_gradients(tree, ours[0], step)
        set_gradients(ours[0], grads, tree.layout)
        set_gradients(theirs[0], grads)
        ours[1].step()
        clip_and_step(theirs[1], max_norm)
    # The division by a root amplifies rounding errors where all gradients of an element are small.
    assert_near(ours[0], theirs[0], dtype, 5 * STEPS)


# Values of a group's settings at a step, besides max_norm.
COMMON = {"lr": [0.0, 0.01, 0.2], "weight_decay": [0.0, 0.01]}
SETTINGS = {
    ClippedNesterov: COMMON | {"momentum": [0.0, 0.5, 0.9, 0.99]},
    ClippedAdamW: COMMON | {"betas": [(0.9, 0.999), (0.0, 0.9), (0.3, 0.99)], "eps": [1e-8, 1e-3]},
}
MIXTURES = st.sampled_from(
    [
        (torch.float32,),
        (torch.float64,),
        (torch.float32, torch.float64, torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float16),
    ]
)


def on_device(value):
    if isinstance(value, tuple):
        return tuple(map(on_device, value))
    return value if value is None else torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("cls", SETTINGS)
@given(trees, MIXTURES, NORM_TYPES, st.booleans(), st.booleans(), st.booleans(), st.data())
def test_steps_equal_the_reference_under_schedules(
    cls, tree, dtypes, norm_type, maximize, masters, as_tensors, data
):
    groups = make_groups(tree, *dtypes)
    params = [p for group in groups for p in group]
    optimizer = cls(
        [{"params": g} for g in groups], norm_type=norm_type, maximize=maximize, master_weights=masters
    )
    judge = Judge(optimizer)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            settings = {name: data.draw(st.sampled_from(some)) for name, some in SETTINGS[cls].items()}
            settings["max_norm"] = data.draw(MAX_NORMS)
            group.update({k: on_device(v) if as_tensors else v for k, v in settings.items()})
        set_gradients(params, draw_gradients(tree, params, step), tree.layout)
        judge.step()
        optimizer.step()
        assert float(optimizer.last_grad_norm) == pytest.approx(judge.norm, rel=1e-12, abs=1e-300)
        # The division by a root amplifies rounding errors where all gradients of an element are small.
        judge.check((step + 1) * (5 if cls is ClippedAdamW else 1))
    assert int(optimizer.taken_steps) == STEPS


@pytest.mark.parametrize("scheduled", ["lr", "momentum"])
def test_torch_differs_from_the_paper_when_either_is_scheduled(scheduled):
    param = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    other = torch.nn.Parameter(param.detach().clone())
    ours = ClippedNesterov([param], lr=0.1, momentum=0.9, max_norm=None)
    theirs = torch.optim.SGD([other], lr=0.1, momentum=0.9, nesterov=True)
    judge = Judge(ours)
    for step in range(4):
        grad = torch.randn(50, dtype=torch.float64)
        for p, optimizer in ((param, ours), (other, theirs)):
            optimizer.param_groups[0][scheduled] *= 0.7
            p.grad = grad.clone()
        judge.step()
        ours.step()
        theirs.step()
        far = difference(other, judge.theta[param])
        # All agree at the first step, because there is no velocity yet.
        assert far < 1e-14 if step == 0 else far > 1e-2
    judge.check(1)


def check_scheduled(name: str, settings: dict[str, object], steps: int) -> int:
    """Check steps under one of torch's schedulers; return the number of different settings."""
    param, optimizer = one((20,), dtype=torch.float64, max_norm=2.0, lr=0.1)
    judge = Judge(optimizer)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **settings)
    seen = set()
    for step in range(steps):
        if step > 0:
            scheduler.step()
        group = optimizer.param_groups[0]
        seen.add((group["lr"], group["momentum"]))
        param.grad = torch.randn(20, dtype=torch.float64)
        judge.step()
        optimizer.step()
    judge.check(steps)
    return len(seen)


def test_one_cycle_changes_lr_and_momentum():
    assert check_scheduled("OneCycleLR", {"max_lr": 0.5, "total_steps": 12}, 12) > 6


SCHEDULERS = {
    "StepLR": {"step_size": 3},
    "CosineAnnealingLR": {"T_max": 8},
    "LambdaLR": {"lr_lambda": lambda t: 1 / (1 + t)},
    "ExponentialLR": {"gamma": 0.8},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.2, "step_size_up": 3},  # changes momentum too
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_torch_schedulers_are_followed_exactly(name):
    assert check_scheduled(name, SCHEDULERS[name], 10) >= 4


@pytest.mark.parametrize("t", [0, 1, 249, 250, 251, 499, 500, 1750, 10000, 10**6])
def test_paper_momentum_equals_its_formula(t):
    formula = 1 - 2 ** (-1 - math.log2(math.floor(t / 250) + 1))
    assert paper_momentum(t, 0.995) == pytest.approx(min(0.995, formula), rel=1e-15)


def test_momentum_schedule_sets_the_groups():
    _, optimizer = one()
    schedule = MomentumSchedule(optimizer, mu_max=0.7)
    seen = []
    for _ in range(600):
        seen.append(optimizer.param_groups[0]["momentum"])
        schedule.step()
    assert seen[0] == seen[249] == 0.5
    assert seen[250] == seen[499] == 0.7  # mu_max, because 1 - 1/4 is more
    _, other = one()
    again = MomentumSchedule(other)
    again.load_state_dict(schedule.state_dict())
    assert again.t == 600
    assert other.param_groups[0]["momentum"] == 0.7
    for bad in ({"t": -1}, {"t": 3, "mu_max": 1.0}):
        with pytest.raises(ValueError, match=r"t must be|mu_max must"):
            paper_momentum(**bad)


def test_adamw_with_a_first_beta_of_zero_forgets_past_gradients():
    """A huge first gradient has no effect on later steps."""
    param, _ = one((20,))
    optimizer = ClippedAdamW([param], betas=(0.0, 0.9), max_norm=None)
    for size in (1e9, 1.0):
        param.grad = size * torch.randn(20)
        optimizer.step()
    assert torch.equal(optimizer.state[param]["exp_avg"], param.grad)


@pytest.mark.parametrize("cls", [ClippedNesterov, ClippedAdamW])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masters", [False, True])
def test_half_precision_computes_in_float32(cls, dtype, masters):
    """The parameter is rounded once per step, the states are not rounded."""
    param = torch.nn.Parameter(torch.randn(700).to(dtype))
    wide = torch.nn.Parameter(param.detach().float())
    optimizer = cls([param], lr=0.01, max_norm=0.5, master_weights=masters)
    judge = cls([wide], lr=0.01, max_norm=0.5)
    for _ in range(6):
        param.grad = torch.randn(700).to(dtype)
        if not masters:
            wide.data.copy_(param)
        wide.grad = param.grad.float()
        optimizer.step()
        judge.step()
        assert torch.equal(param, wide.to(dtype))
    state = optimizer.state[param]
    for name in cls.state_names:
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], judge.state[wide][name])
    assert ("master" in state) == masters
    if masters:
        assert torch.equal(state["master"], wide)


def assert_kept(found, expected):
    """Check that normal float32 values are unchanged; on x86, subnormal ones may become 0."""
    normal = expected.float().abs() > torch.finfo(torch.float32).tiny
    assert torch.equal(found[normal], expected[normal])
    assert ((found == expected) | (found == 0))[~normal].all()


def test_every_half_precision_value_converts_as_in_torch():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        values = values[torch.isfinite(values)]
        param = torch.nn.Parameter(values.clone())
        param.grad = torch.zeros_like(values)
        rnnkernels.ClippedNesterov([param], lr=1.0, max_norm=None).step()
        assert_kept(param, values)
        # Master copies between two values, at ties, and above the largest value are kept beside the values
        # that torch rounds them to: rounded in another way they would differ, and be replaced.
        wide = torch.cat([values.float() * (1 + k * 2.0**-12) for k in (-3, -1, 1, 2, 4)])
        wide = torch.cat([wide, torch.tensor([65519.0, 65520.0, 65536.0, 1e30, 3.3895e38, 1e-8, 2.0**-25])])
        rounded = torch.nn.Parameter(wide.to(dtype))
        rounded.grad = torch.zeros_like(rounded)
        optimizer = rnnkernels.ClippedNesterov([rounded], max_norm=None, master_weights=True)
        optimizer.step()
        rounded.data.copy_(wide)
        optimizer.state[rounded]["master"].copy_(wide)
        optimizer.step()
        assert_kept(rounded, wide.to(dtype))
        assert_kept(optimizer.state[rounded]["master"], wide)  # the kernel rounds as torch does


def test_mixed_dtypes_share_one_norm():
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    params = [torch.nn.Parameter(torch.zeros(300, dtype=dtype)) for dtype in dtypes]
    for param in params:
        param.grad = torch.randn(300).to(param.dtype)
    optimizer = ClippedNesterov(params, lr=1.0, momentum=0.0, max_norm=1.0)
    optimizer.step()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in params))
    assert float(optimizer.last_grad_norm) == pytest.approx(norm, rel=1e-13)
    for param in params:
        torch.testing.assert_close(param.detach(), (param.grad.double() / -(norm + 1e-6)).to(param.dtype))
