"""The interface of torch optimizers: closures, groups, hooks, saving and loading."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from optimizer_helpers import clip_and_step, one
from torch._dynamo.testing import CompileCounter
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from rnnkernels import ClippedAdamW, ClippedNesterov

CLASSES = [ClippedNesterov, ClippedAdamW]


def model(dtype=torch.float32):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2)).to(dtype)


def train(net, optimizer, steps, seed=0, clip=None):
    chance = torch.Generator().manual_seed(seed)
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(9, 5, generator=chance).to(dtype)).square().sum().backward()
        if clip is None:
            optimizer.step()
        else:
            clip_and_step(optimizer, clip)


def values(net):
    return [p.detach().clone() for p in net.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)  # weights_only=True is the default


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masters", [False, True])
def test_training_continues_after_a_state_dict_round_trip(cls, dtype, masters):
    net = model(dtype)
    optimizer = cls(net.parameters(), lr=0.01, master_weights=masters)
    train(net, optimizer, 3)
    other = model(dtype)
    other.load_state_dict(net.state_dict())
    loaded = cls(other.parameters(), lr=0.5, master_weights=masters)
    loaded.load_state_dict(through_file(optimizer.state_dict()))
    for p in net.parameters():
        p.grad = None
    for o in (optimizer, loaded):
        o.param_groups[0]["lr"] = 0.02
    train(net, optimizer, 3, seed=5)
    train(other, loaded, 3, seed=5)
    assert same(values(net), values(other))
    assert int(loaded.taken_steps) == 6
    velocity = next(iter(loaded.state.values()))[cls.state_names[0]]
    assert velocity.dtype == torch.float32


@pytest.mark.parametrize("cls", CLASSES)
def test_loading_copies(cls):
    net = model()
    optimizer = cls(net.parameters())
    train(net, optimizer, 1)
    state = optimizer.state_dict()
    other = cls(model().parameters())
    other.load_state_dict(state)
    kept = copy.deepcopy(other.state_dict())
    train(net, optimizer, 1)
    for a, b in zip(other.state_dict()["state"].values(), kept["state"].values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in b)
    assert torch.equal(other.state_dict()["record"], kept["record"])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_deep_copy_and_pickle(cls, how):
    net = model()
    optimizer = cls(net.parameters(), lr=0.01, norm_type=1.0, nonfinite="raise")
    train(net, optimizer, 2)
    net2, optimizer2 = how((net, optimizer))
    train(net, optimizer, 2, seed=3)
    assert int(optimizer2.taken_steps) == 2
    train(net2, optimizer2, 2, seed=3)
    assert same(values(net), values(net2))
    assert (optimizer2.norm_type, optimizer2.nonfinite) == (1.0, "raise")


def test_the_state_of_torch_adamw_can_be_loaded():
    net, other = model(), model()
    theirs = torch.optim.AdamW(net.parameters(), lr=0.01)
    train(net, theirs, 3, clip=0.5)
    other.load_state_dict(net.state_dict())
    ours = ClippedAdamW(other.parameters(), max_norm=0.5)
    ours.load_state_dict(theirs.state_dict())
    train(net, theirs, 3, seed=2, clip=0.5)
    train(other, ours, 3, seed=2)
    for a, b in zip(values(net), values(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3.0, dtype=torch.float64)])
def test_a_step_count_of_another_type_can_be_loaded(step):
    """Old files have numbers; with a default dtype of float64, torch counts in float64."""
    param = torch.nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    theirs = torch.optim.AdamW([param])
    theirs.step()
    state = theirs.state_dict()
    state["state"][0]["step"] = step
    ours = ClippedAdamW([param])
    ours.load_state_dict(state)
    ours.step()
    assert float(ours.state[param]["step"]) == 4


def test_loading_amsgrad_states_raises_an_error():
    param = torch.nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    theirs = torch.optim.AdamW([param], amsgrad=True)
    theirs.step()
    with pytest.raises(ValueError, match=r"that of a ClippedAdamW, .* has 'max_exp_avg_sq'"):
        ClippedAdamW([param]).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("masters", [False, True])
def test_loading_makes_or_drops_master_copies_as_configured(cls, masters):
    net = model(torch.bfloat16)
    optimizer = cls(net.parameters(), master_weights=not masters)
    train(net, optimizer, 2)
    loaded = cls(net.parameters(), master_weights=masters)
    loaded.load_state_dict(optimizer.state_dict())
    for param in net.parameters():
        assert ("master" in loaded.state[param]) == masters
        assert not masters or torch.equal(loaded.state[param]["master"], param.float())


def test_loading_another_rule_with_the_same_state_names_raises_an_error():
    net = model()
    adam = torch.optim.Adam(net.parameters(), weight_decay=0.1)
    train(net, adam, 1)
    with pytest.raises(ValueError, match=r"decoupled weight decay, got weight_decay=0\.1 and .* in group 0"):
        ClippedAdamW(net.parameters()).load_state_dict(adam.state_dict())
    adam.param_groups[0]["weight_decay"] = 0.0  # without weight decay the rules are the same
    ClippedAdamW(net.parameters()).load_state_dict(adam.state_dict())
    adam.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="without amsgrad, got it in group 0"):
        ClippedAdamW(net.parameters()).load_state_dict(adam.state_dict())


def test_a_hook_may_convert_the_state_of_another_optimizer():
    net = model()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    train(net, sgd, 1)

    def convert(_, given):
        states = {i: {"velocity": -0.1 * state["momentum_buffer"]} for i, state in given["state"].items()}
        return {**given, "state": states}

    ours = ClippedNesterov(net.parameters())
    ours.register_load_state_dict_pre_hook(convert)
    ours.load_state_dict(sgd.state_dict())
    for param in net.parameters():
        assert torch.equal(ours.state[param]["velocity"], -0.1 * sgd.state[param]["momentum_buffer"])


@pytest.mark.parametrize("previous", [0.9, torch.tensor([0.9])])
def test_a_previous_momentum_of_another_type_can_be_loaded(previous):
    param, ours = one((4,), dtype=torch.float64)
    ours.step()
    state = ours.state_dict()
    state["param_groups"][0]["previous_momentum"] = previous
    ours.load_state_dict(state)
    velocity = ours.state[param]["velocity"].clone()
    ours.param_groups[0]["lr"] = 0.0
    ours.step()
    torch.testing.assert_close(ours.state[param]["velocity"], 0.9 * velocity, rtol=1e-7, atol=0)


def test_loading_the_state_of_another_optimizer_raises_an_error():
    net = model()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    train(net, sgd, 1)
    with pytest.raises(ValueError, match=r"that of a ClippedNesterov, .* lacks 'velocity' and has"):
        ClippedNesterov(model().parameters()).load_state_dict(sgd.state_dict())


def test_training_continues_after_from_sgd_and_to_sgd():
    """Convert from SGD and back, with a learning rate that changed before the conversion."""
    net, other = model(torch.float64), model(torch.float64)
    theirs = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    train(net, theirs, 3, clip=1.0)
    theirs.param_groups[0]["lr"] = 0.03
    other.load_state_dict(net.state_dict())
    params = dict(zip(net.parameters(), other.parameters(), strict=True))
    twin = torch.optim.SGD(other.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=0.01)
    for p, q in params.items():
        twin.state[q]["momentum_buffer"] = theirs.state[p]["momentum_buffer"].clone()
    ours = ClippedNesterov.from_sgd(twin, max_norm=1.0)
    train(net, theirs, 3, seed=1, clip=1.0)
    train(other, ours, 3, seed=1)
    for a, b in zip(values(net), values(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    back = ours.to_sgd()
    assert type(back) is torch.optim.SGD
    train(net, theirs, 3, seed=2, clip=1.0)
    train(other, back, 3, seed=2, clip=1.0)
    for a, b in zip(values(net), values(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_to_sgd_takes_the_same_next_step_with_changed_settings():
    param, ours = one((20,), dtype=torch.float64, lr=0.1, max_norm=None)
    ours.step()
    ours.param_groups[0].update(lr=0.02, momentum=0.5)
    twin = torch.nn.Parameter(param.detach().clone())
    sgd = ours.to_sgd()
    sgd = copy.deepcopy(sgd)
    sgd.param_groups[0]["params"][0].grad = param.grad.clone()
    twin = sgd.param_groups[0]["params"][0]
    sgd.step()
    ours.step()
    torch.testing.assert_close(twin, param, rtol=1e-14, atol=1e-15)


def test_from_and_to_sgd_with_settings_that_are_tensors():
    params = [torch.nn.Parameter(torch.tensor(2.0)) for _ in "ab"]  # zero-dimensional
    theirs = torch.optim.SGD(params[:1], lr=torch.tensor([0.1]), momentum=0.9, nesterov=True)
    judge = torch.optim.SGD(params[1:], lr=0.1, momentum=0.9, nesterov=True)
    ours = None
    for step in range(6):
        for param in params:
            param.grad = torch.tensor(1.0 + step)
        if step == 2:
            ours = ClippedNesterov.from_sgd(theirs, max_norm=None)
            ours.param_groups[0]["momentum"] = torch.tensor([0.9])
        if step == 4:
            theirs, ours = ours.to_sgd(), None
        (ours or theirs).step()
        judge.step()
        torch.testing.assert_close(*params)


@pytest.mark.parametrize("options", [{"nesterov": False}, {"dampening": 0.1}])
def test_from_sgd_with_another_rule_raises_an_error(options):
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9, **options)
    with pytest.raises(ValueError, match="sgd must have nesterov=True and dampening=0"):
        ClippedNesterov.from_sgd(sgd)


def test_to_sgd_with_lr_zero_raises_an_error():
    _, optimizer = one()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match="lr must be positive to convert"):
        optimizer.to_sgd()


def test_a_replaced_or_cleared_state_is_used():
    param, optimizer = one((3,), lr=1.0, max_norm=None)
    optimizer.step()
    optimizer.state[param] = {"velocity": torch.zeros(3)}
    before = param.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - param, 1.9 * param.grad)
    optimizer.state.clear()
    before = param.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - param, 1.9 * param.grad)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_empty_state_made_by_a_lookup_is_filled(cls):
    """A look-up in torch's `state` makes an empty entry."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = cls([param])
    assert optimizer.state[param] == {}
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    assert set(cls.state_names) <= set(optimizer.state[param])
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert int(optimizer.taken_steps) == 1


def test_groups_added_later_closures_and_hooks():
    first, second = (torch.nn.Parameter(torch.randn(4)) for _ in "ab")
    optimizer = ClippedNesterov([first], lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))

    def closure():
        optimizer.zero_grad()
        loss = (first**2).sum() + (second**2).sum()
        loss.backward()
        seen.append("closure")
        return loss

    loss = optimizer.step(closure)
    assert loss.requires_grad
    assert seen == ["pre", "closure", "post"]
    optimizer.add_param_group({"params": [second], "lr": 0.0, "max_norm": 0.5})
    before = [first.detach().clone(), second.detach().clone()]
    optimizer.step(closure)
    assert torch.equal(second, before[1])
    assert not torch.equal(first, before[0])
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in (first, second)))
    assert float(optimizer.last_grad_norm) == pytest.approx(norm, rel=1e-14)
    expected = -0.5 / (norm + 1e-6) * second.grad  # v = -lr c g with lr = 1
    optimizer.param_groups[1]["lr"] = 1.0
    optimizer.step()
    torch.testing.assert_close(optimizer.state[second]["velocity"], expected)


def test_all_hooks_and_a_profiler_see_the_step():
    _, optimizer = one()
    seen = []
    hooks = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(("own", o, len(args)))),
        register_optimizer_step_pre_hook(lambda o, args, kwargs: seen.append(("pre", o, len(args)))),
        register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append(("post", o, len(args)))),
    ]
    for hook in hooks:
        optimizer.step()
        hook.remove()
    optimizer.step()
    names = ["pre", "own", "post", "pre", "post", "post"]
    assert seen == [(name, optimizer, 1) for name in names]
    assert int(optimizer.taken_steps) == 4
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert any(event.name == "Optimizer.step#ClippedNesterov.step" for event in profile.events())


@pytest.mark.parametrize("cls", CLASSES)
def test_a_compiled_step_equals_the_step(cls):
    """The step is not traced, so a schedule does not cause recompilation."""
    compiled = CompileCounter()
    (net, ours), (other, judge) = [(m, cls(m.parameters())) for m in (model(), model())]
    step = torch.compile(ours.step, backend=compiled)
    for number in range(12):
        for optimizer, m in ((ours, net), (judge, other)):
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
            optimizer.zero_grad()
            m(torch.full((9, 5), math.nan if number == 4 else 0.1 * number)).square().sum().backward()
        step()
        judge.step()
    assert same(values(net), values(other))
    assert (int(ours.taken_steps), int(ours.skipped_steps)) == (11, 1)
    assert compiled.frame_count == 0


def test_autograd_detects_the_in_place_update():
    param, optimizer = one((3,))
    loss = (param * param).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_a_gradient_there_is_no_state_and_no_change():
    used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in "ab")
    used.grad = torch.ones(2)
    optimizer = ClippedNesterov([unused, used])
    optimizer.step()
    assert list(optimizer.state) == [used]
    assert torch.equal(unused, torch.ones(2))
    optimizer.zero_grad()
    assert used.grad is None
    optimizer.step()  # no parameter has a gradient
