"""The decay of several layers, learned decays, and decays that are set after construction."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers import DTYPES, distance
from layers import GIVEN_DECAYS, UNITS, composed, every_decay
from torch import nn
from torch._dynamo.testing import CompileCounter

from rnnkernels import LeakyRNN, LeakyRNNCell


@pytest.mark.parametrize("learn_decay", [False, True])
@pytest.mark.parametrize("name", GIVEN_DECAYS)
def test_every_layer_and_direction_has_its_decay(name, learn_decay):
    given, expected = GIVEN_DECAYS[name]
    layer = LeakyRNN(
        3, 5, 2, "tanh", bidirectional=True, decay=given, learn_decay=learn_decay, dtype=torch.float64
    )
    rows = torch.stack([torch.as_tensor(d, dtype=torch.float64).expand(5) for d in expected])
    twin = LeakyRNN(3, 5, 2, "tanh", bidirectional=True, dtype=torch.float64)
    twin.load_state_dict({k: v for k, v in layer.state_dict().items() if "decay" not in k})
    twin.decay = rows.clamp(min=1e-3) if learn_decay else rows  # the form that `composed` reads
    x, hx = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 2, 5, dtype=torch.float64)
    output, h_n = layer(x, hx)
    expected_output, expected_h_n = composed(twin, x, hx)
    assert distance(output, expected_output) < 1e-14
    assert distance(h_n, expected_h_n) < 1e-14
    entries = [key for key in layer.state_dict() if "decay" in key]
    if learn_decay:
        assert entries == ["decay_logit"]
    else:
        numbers = name in ("number", "scalar tensor", "numbers", "tuple of numbers")
        assert entries == ([] if numbers else ["decay"])


@pytest.mark.parametrize(
    ("decay", "error", "message"),
    [
        ([0.5], ValueError, "decay must have one entry for each of the 2 layers if it is a list"),
        ((0.5, 0.5, 0.5), ValueError, "decay must have one entry for each of the 2 layers if it is a tuple"),
        ([0.5, 1.0], ValueError, r"decay must lie in \[0, 1\), got 1.0"),
        ([0.5, "slow"], TypeError, "decay must be a number or a Tensor, got 'slow'"),
        ([0.5, torch.zeros(4)], ValueError, r"\[H\] = \[5\], got \[4\]"),
        (
            torch.zeros(2),
            ValueError,
            r"\[H\] = \[5\] or \[num_layers \* directions, H\] = \[4, 5\], got \[2\]",
        ),
        (torch.zeros(2, 5), ValueError, r"\[4, 5\], got \[2, 5\]"),
        (torch.zeros(4, 5, dtype=torch.long), TypeError, "decay must be floating-point"),
        (torch.full((4, 5), 1 - 1e-9, dtype=torch.float64), ValueError, "decay must lie in"),
        (torch.zeros(5, requires_grad=True), ValueError, "learn_decay=True"),
    ],
    ids=str,
)
@pytest.mark.parametrize("learn_decay", [False, True])
def test_a_decay_of_the_wrong_shape_or_value_is_refused(decay, error, message, learn_decay):
    with pytest.raises(error, match=message):
        LeakyRNN(3, 5, 2, bidirectional=True, decay=decay, learn_decay=learn_decay)


@pytest.mark.parametrize("decay", [0.5, UNITS, [0.2, UNITS]], ids=["number", "units", "mixed"])
def test_a_layer_made_on_meta_gets_its_decay_from_reset_parameters(decay):
    layer = LeakyRNN(3, 5, 2, decay=decay, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    direct = LeakyRNN(3, 5, 2, decay=decay)
    x = torch.randn(4, 2, 3)
    assert torch.equal(layer(x)[0], direct(x)[0])


# --- Learned -----------------------------------------------------------------------------------------

MODULES = {
    "layer": lambda **kwargs: LeakyRNN(3, 5, decay=UNITS, learn_decay=True, **kwargs),
    "cell": lambda **kwargs: LeakyRNNCell(3, 5, decay=UNITS, learn_decay=True, **kwargs),
}


@pytest.fixture(params=MODULES)
def make(request):
    return MODULES[request.param]


def run(module, x):
    results = module(x if isinstance(module, LeakyRNN) else x[0])
    return results[0] if isinstance(module, LeakyRNN) else results


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_learned_decay_starts_at_the_given_value(make, dtype):
    module = make(dtype=dtype)
    assert isinstance(module.decay_logit, nn.Parameter)
    assert module.decay_logit.isfinite().all()
    expected = UNITS.to(dtype).clamp(min=1e-3)
    assert distance(module.decay.flatten(), expected) < (1e-6 if dtype == torch.float32 else 1e-14)
    near = LeakyRNN(3, 5, decay=torch.tensor(1 - 2**-24, dtype=torch.float64), learn_decay=True)
    assert near.decay.min() > 1 - 2**-22
    assert near.decay.max() < 1


def test_the_gradient_of_a_learned_decay_is_that_of_the_recurrence(make):
    module = make(dtype=torch.float64)
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        module.decay_logit.normal_()

    def loss(logit):
        twin = copy.deepcopy(module)
        with torch.no_grad():
            twin.decay_logit.copy_(logit)
        return (run(twin, x) ** 2).sum().item()

    (run(module, x) ** 2).sum().backward()
    logit = module.decay_logit.detach()
    for unit in range(5):
        step = torch.zeros_like(logit)
        step[..., unit] = 1e-6
        slope = (loss(logit + step) - loss(logit - step)) / 2e-6
        assert module.decay_logit.grad[..., unit].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.Rprop])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_learned_decay_stays_in_range_under_any_optimizer(make, optimizer, sign):
    module = make()
    steps = optimizer([module.decay_logit], lr=1e6)
    x = torch.randn(3, 2, 3)
    for _ in range(5):
        steps.zero_grad()
        (sign * run(module, x).sum()).backward()
        module.decay_logit.grad.sub_(sign)  # also if the gradient of the loss is zero
        steps.step()
        assert module.decay_logit.abs().max() > 40  # from 17 on, the sigmoid is 1 in float32
        assert ((module.decay >= 0) & (module.decay < 1)).all()
    assert run(module, x).isfinite().all()  # the kernel accepts the decay
    with torch.no_grad():
        module.decay_logit.fill_(sign * torch.inf)
    assert ((module.decay >= 0) & (module.decay < 1)).all()
    assert run(module, x).isfinite().all()


def test_learning_finds_the_time_constants_of_another_network():
    slow = torch.tensor([0.1, 0.5, 0.9])
    teacher = LeakyRNN(2, 3, nonlinearity="tanh", decay=slow)
    student = LeakyRNN(2, 3, nonlinearity="tanh", decay=0.5, learn_decay=True)
    student.load_state_dict(teacher.state_dict(), strict=False)
    x = torch.randn(50, 8, 2)
    with torch.no_grad():
        target = teacher(x)[0]
    optimizer = torch.optim.Adam([student.decay_logit], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        ((student(x)[0] - target) ** 2).mean().backward()
        optimizer.step()
    assert (student.decay[0] - slow).abs().max() < 0.01


def test_a_learned_decay_survives_state_dicts_and_copies(make):
    module = make()
    with torch.no_grad():
        module.decay_logit.normal_()
    other = make()
    other.load_state_dict(module.state_dict())
    for twin in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin.decay, module.decay)
        assert twin.decay.requires_grad
    module.reset_parameters()
    assert torch.equal(module.decay, make().decay)
    module.double()
    assert module.decay.dtype == torch.float64


def test_loading_a_state_dict_of_nn_rnn_keeps_a_learned_decay():
    layer = MODULES["layer"]()
    before = layer.decay
    layer.load_state_dict(nn.RNN(3, 5).state_dict())
    assert torch.equal(layer.decay, before)


# --- Set after construction --------------------------------------------------------------------------


def layer_with(decay: Any, **kwargs: Any) -> LeakyRNN:
    return LeakyRNN(3, 5, 2, "tanh", bidirectional=True, decay=decay, **kwargs)


@pytest.mark.parametrize("learn_decay", [False, True])
@pytest.mark.parametrize("name", GIVEN_DECAYS)
@pytest.mark.parametrize("before", GIVEN_DECAYS)
def test_a_decay_that_is_set_is_that_of_the_constructor(before, name, learn_decay):
    layer = layer_with(GIVEN_DECAYS[before][0], learn_decay=learn_decay, dtype=torch.float64)
    layer.decay = GIVEN_DECAYS[name][0]
    fresh = layer_with(GIVEN_DECAYS[name][0], learn_decay=learn_decay, dtype=torch.float64)
    expected = fresh.state_dict() | {k: v for k, v in layer.state_dict().items() if "decay" not in k}
    assert torch.equal(every_decay(layer), every_decay(fresh))
    fresh.load_state_dict(expected)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert torch.equal(layer(x)[0], fresh(x)[0])
    layer.reset_parameters()
    assert torch.equal(every_decay(layer), every_decay(fresh))


def test_the_decay_of_a_cell_is_set():
    for options in ({"decay": 0.5}, {"decay": UNITS}, {"decay": UNITS, "learn_decay": True}):
        for decay in (0.25, UNITS / 2):
            cell = LeakyRNNCell(3, 5, **options)
            cell.decay = decay
            expected = torch.as_tensor(decay).clamp(min=1e-3 if cell.learn_decay else 0)
            assert distance(torch.as_tensor(cell.decay), expected) < 1e-6
            assert cell(torch.randn(2, 3)).isfinite().all()


@pytest.mark.parametrize("options", [{"decay": UNITS}, {"decay": 0.5, "learn_decay": True}], ids=str)
def test_a_tensor_of_decays_gets_new_values_in_place(options):
    layer = LeakyRNN(3, 5, **options, device="meta").to_empty(device="cpu").bfloat16()
    tensor = layer.decay_logit if layer.learn_decay else layer.decay
    memory = tensor.data_ptr()
    layer.decay = 0.25
    after = layer.decay_logit if layer.learn_decay else layer.decay
    assert after is tensor
    assert after.data_ptr() == memory
    assert after.dtype == torch.float32
    assert distance(layer.decay.flatten(), torch.full((5,), 0.25)) < 1e-6


@pytest.mark.parametrize("before", [0.5, [0.25, 0.5], UNITS], ids=["number", "numbers", "units"])
@pytest.mark.parametrize("learn_decay", [False, True])
@pytest.mark.parametrize(
    ("decay", "error", "message"),
    [
        (1.5, ValueError, r"decay must lie in \[0, 1\), got 1.5"),
        (float("nan"), ValueError, r"decay must lie in \[0, 1\)"),
        (torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0]), ValueError, r"decay must lie in \[0, 1\)"),
        (torch.zeros(4), ValueError, r"decay must be a number or \[H\] = \[5\] .*, got \[4\]"),
        ([0.5, 0.5, 0.5], ValueError, "one entry for each of the 2 layers"),
        ("slow", TypeError, "decay must be a number or a Tensor, got 'slow'"),
        (None, TypeError, "decay must be a number or a Tensor, got None"),
        (torch.zeros(5, requires_grad=True), ValueError, "learn_decay=True"),
        (nn.Parameter(torch.zeros(5)), ValueError, "learn_decay=True"),
        (torch.zeros(5, device="meta"), ValueError, "decay must have values, got a tensor on meta"),
    ],
    ids=str,
)
def test_a_decay_that_is_refused_leaves_the_layer_as_it_was(before, learn_decay, decay, error, message):
    layer = layer_with(before, learn_decay=learn_decay)
    state, values = copy.deepcopy(layer.state_dict()), every_decay(layer)
    with pytest.raises(error, match=message):
        layer.decay = decay
    assert torch.equal(every_decay(layer), values)
    layer.reset_parameters()
    assert torch.equal(every_decay(layer), values)
    assert layer.state_dict().keys() == state.keys()


def test_training_goes_on_from_a_decay_that_is_set():
    layer = LeakyRNN(3, 5, decay=0.5, learn_decay=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.decay = 0.9
    layer(torch.randn(4, 2, 3))[0].sum().backward()
    optimizer.step()
    assert 0 < distance(layer.decay, torch.full((1, 5), 0.9)) < 0.2


@pytest.mark.parametrize(
    ("decays", "frames"),
    [
        ([0.1 * i for i in range(6)], 2),  # the first change makes the number an input
        ([[0.1 * i] for i in range(6)], 6),
        ([torch.full((5,), 0.1 * i) for i in range(6)], 1),
    ],
    ids=["number", "list", "units"],
)
def test_how_often_a_decay_that_is_set_compiles_a_function_again(decays, frames):
    torch._dynamo.reset()
    counter = CompileCounter()
    layer, x = LeakyRNN(3, 5, decay=decays[0]), torch.randn(4, 2, 3)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for decay in decays:
        layer.decay = decay
        assert torch.equal(compiled(x)[0], layer(x)[0])
    assert counter.frame_count == frames
