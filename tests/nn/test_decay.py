"""The decay of several layers, and learned decays."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import DTYPES, distance
from layers import composed
from torch import nn

from rnnkernels import LeakyRNN, LeakyRNNCell

UNITS = torch.linspace(0, 0.9, 5)

# The argument for two bidirectional layers, and the decay of each of the four scans.
GIVEN = {
    "number": (0.5, [0.5] * 4),
    "scalar tensor": (torch.tensor(0.5), [0.5] * 4),
    "units": (UNITS, [UNITS] * 4),
    "numbers": ([0.25, 0.5], [0.25, 0.25, 0.5, 0.5]),
    "tuple of numbers": ((0.25, 0.5), [0.25, 0.25, 0.5, 0.5]),
    "number and units": ([0.25, UNITS], [0.25, 0.25, UNITS, UNITS]),
    "everything": (torch.arange(20.0).view(4, 5) / 20, list(torch.arange(20.0).view(4, 5) / 20)),
}


@pytest.mark.parametrize("learn_decay", [False, True])
@pytest.mark.parametrize("name", GIVEN)
def test_every_layer_and_direction_has_its_decay(name, learn_decay):
    given, expected = GIVEN[name]
    layer = LeakyRNN(
        3, 5, 2, "tanh", bidirectional=True, decay=given, learn_decay=learn_decay, dtype=torch.float64
    )
    rows = torch.stack([torch.as_tensor(d, dtype=torch.float64).expand(5) for d in expected])
    twin = LeakyRNN(3, 5, 2, "tanh", bidirectional=True, dtype=torch.float64)
    twin.load_state_dict({k: v for k, v in layer.state_dict().items() if "decay" not in k})
    twin._given_decay = rows.clamp(min=1e-3) if learn_decay else rows  # the form that `composed` reads
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


def test_the_decay_cannot_be_assigned():
    with pytest.raises(AttributeError, match="decay"):
        LeakyRNN(3, 5, decay=0.5).decay = 0.9
