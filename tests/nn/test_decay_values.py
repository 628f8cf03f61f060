"""Where the values of decays come from and stay: default devices, the meta device, half precision."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import distance
from layers import GIVEN_DECAYS, UNITS, every_decay
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import skip_init
from torch.utils._python_dispatch import TorchDispatchMode

from rnnkernels import (
    ClippedAdamW,
    ClippedNesterov,
    LeakyRNN,
    LeakyRNNCell,
    constraints,
    decay_from_tau,
    draw_decay,
    draw_tau,
    noise_scale,
)

# --- Any default device ------------------------------------------------------------------------------


class NoFloat64(TorchDispatchMode):
    """A default device without float64, as Apple's MPS: the meta device, with an error for float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for x in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(x, torch.Tensor) and x.is_meta and x.dtype == torch.float64:
                raise TypeError(f"{func} makes a float64 tensor")
        return results


@pytest.fixture(params=["context", "global"])
def on_meta(request):
    """The meta device without float64 as the default device."""
    if request.param == "context":
        with NoFloat64(), torch.device("meta"):
            yield
        return
    torch.set_default_device("meta")
    try:
        with NoFloat64():
            yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("decay", [0.5, (0.25, 0.5), [0.25, UNITS], UNITS], ids=str)
@pytest.mark.parametrize("learn_decay", [False, True])
@pytest.mark.usefixtures("on_meta")
def test_modules_are_made_on_any_default_device(decay, learn_decay):
    layer = LeakyRNN(3, 5, 2, decay=decay, learn_decay=learn_decay, learn_h0=True)
    assert all(x.is_meta for x in (*layer.parameters(), *layer.buffers()))
    layer.decay = decay
    layer.reset_parameters()
    repr(layer)
    if not isinstance(decay, (tuple, list)):
        LeakyRNNCell(3, 5, decay=decay, learn_decay=learn_decay)
    with torch.device("cpu"):
        assert every_decay(LeakyRNN(3, 5, 2, decay=decay, learn_decay=learn_decay)).sum() > 0


@pytest.mark.usefixtures("on_meta")
def test_time_constants_and_constraints_work_on_any_default_device():
    assert decay_from_tau(0.1, 0.02) == 0.8
    assert decay_from_tau(0.1, 0.02, exact=True) == pytest.approx(0.8187, abs=1e-4)
    for drawn in (draw_decay(5), draw_decay(5, log_uniform=True), draw_tau(5, low=1.0, high=2.0)):
        assert drawn.is_meta
        assert noise_scale(0.1, drawn).shape == (5,)
    assert decay_from_tau(draw_tau(5, low=1.0, high=2.0), 0.5).is_meta
    assert noise_scale(0.1, 0.5) == pytest.approx(0.2)
    layer = LeakyRNN(3, 5)
    for constraint in (constraints.DaleLaw(torch.ones(5)), constraints.no_self_connections(5)):
        nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", constraint)
    assert layer.weight_hh_l0.shape == (5, 5)


def test_a_default_device_does_not_matter_where_all_tensors_have_another_one():
    layer = LeakyRNN(3, 5, decay=UNITS, nonlinearity="tanh")
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    expected = layer(packed)[0].data
    with torch.device("meta"):
        found = layer(packed)[0].data
        weights = list(layer.parameters())
        first = torch.autograd.grad((found * found).sum(), weights, create_graph=True)
        torch.autograd.grad(sum((x * x).sum() for x in first), weights)
    assert torch.equal(found, expected)


def test_a_decay_without_values_is_refused():
    for make in (LeakyRNN, LeakyRNNCell):
        for learn_decay in (False, True):
            with pytest.raises(ValueError, match="decay must have values, got a tensor on meta without"):
                make(3, 5, decay=torch.empty(5, device="meta"), learn_decay=learn_decay)
            with FakeTensorMode(), pytest.raises(ValueError, match="decay must have values"):
                make(3, 5, decay=torch.full((5,), 0.5), learn_decay=learn_decay)
    with FakeTensorMode():
        LeakyRNN(3, 5, decay=[0.5], learn_decay=True)
        draw_decay(5)


@pytest.mark.parametrize("learn_decay", [False, True])
@pytest.mark.parametrize("name", GIVEN_DECAYS)
@pytest.mark.parametrize(
    "through",
    [
        lambda make: make(device="meta").to_empty(device="cpu"),
        lambda make: nn.Sequential(make(device="meta")).to_empty(device="cpu")[0],
        lambda make: skip_init(make.func, **make.keywords),
        lambda make: copy.deepcopy(make(device="meta")).to_empty(device="cpu"),
        lambda make: pickle.loads(pickle.dumps(make(device="cpu"))),
        lambda make: loaded_on_meta(make),
    ],
    ids=["to_empty", "to_empty of a parent", "skip_init", "deepcopy", "pickle", "load_state_dict"],
)
def test_a_given_decay_survives(through: Callable[..., LeakyRNN], name, learn_decay):
    options = {"bidirectional": True, "decay": GIVEN_DECAYS[name][0], "learn_decay": learn_decay}
    make = functools.partial(LeakyRNN, input_size=3, hidden_size=5, num_layers=2, **options)
    expected = every_decay(make(device="cpu"))
    layer = through(make)
    assert torch.equal(every_decay(layer), expected)
    layer.reset_parameters()
    assert torch.equal(every_decay(layer), expected)


def loaded_on_meta(make: Callable[..., LeakyRNN]) -> LeakyRNN:
    """The layer made on the meta device, with the tensors of a network without decays."""
    layer = make(device="meta")
    state = nn.RNN(3, 5, 2, bidirectional=True).state_dict()
    layer.load_state_dict(state, assign=True)
    assert not any(x.is_meta for x in layer.state_dict().values())
    assert layer.weight_hh_l0.data_ptr() == state["weight_hh_l0"].data_ptr()
    return layer


def test_an_initial_state_that_is_missing_on_meta_becomes_zero():
    layer = LeakyRNN(3, 5, learn_h0=True, device="meta")
    layer.load_state_dict(nn.RNN(3, 5).state_dict(), assign=True)
    assert isinstance(layer.h0, nn.Parameter)
    assert torch.equal(layer.h0, torch.zeros(1, 5))


# --- Half precision ----------------------------------------------------------------------------------

HALF = (torch.bfloat16, torch.float16)
SLOW = torch.tensor([0.9, 0.99, 0.999, 0.9999, 0.99999])
TO_HALF = {
    "constructor": lambda make, dtype: make(dtype=dtype),
    "to": lambda make, dtype: make().to(dtype),
    "to, with a device": lambda make, dtype: make().to("cpu", dtype),
    "method": lambda make, dtype: make().bfloat16() if dtype == torch.bfloat16 else make().half(),
    "type": lambda make, dtype: make().type(dtype),
    "parent": lambda make, dtype: nn.Sequential(nn.Linear(2, 3), make()).to(dtype)[1],
    "from float64": lambda make, dtype: make().double().to(dtype),
    "meta": lambda make, dtype: make(device="meta", dtype=dtype).to_empty(device="cpu"),
    "meta, then to": lambda make, dtype: make(device="meta").to(dtype).to_empty(device="cpu"),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("through", TO_HALF)
@pytest.mark.parametrize("learn_decay", [False, True])
@pytest.mark.parametrize("kind", [LeakyRNN, LeakyRNNCell])
def test_decays_stay_in_float32_in_a_module_of_half_precision(kind, learn_decay, through, dtype):
    def make(**kwargs: Any) -> nn.Module:
        return kind(3, 5, decay=SLOW, learn_decay=learn_decay, **kwargs)

    module = TO_HALF[through](make, dtype)
    stored = module.decay_logit if learn_decay else module.decay
    assert {x.dtype for x in (*module.parameters(), *module.buffers()) if x is not stored} == {dtype}
    assert stored.dtype == module.decay.dtype == torch.float32
    taus = 1 / (1 - module.decay.detach().double().flatten())
    assert distance(taus / (1 / (1 - SLOW.double())), torch.ones(5)) < 2e-2
    module.reset_parameters()  # also of what `to_empty` left
    x = torch.randn(2, 2, 3).to(dtype)
    output = module(x if kind is LeakyRNN else x[0])
    output = output[0] if kind is LeakyRNN else output
    assert output.dtype == dtype
    output.float().sum().backward()
    if learn_decay:
        assert module.decay_logit.grad.dtype == torch.float32
        module.to(torch.float16)  # converts gradients, too
        assert module.decay_logit.dtype == module.decay_logit.grad.dtype == torch.float32
    module.double()
    assert module.decay.dtype == torch.float64
    assert (module.decay_logit if learn_decay else module.decay).dtype == torch.float64


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("learn_decay", [False, True])
def test_decays_that_were_saved_in_half_precision_become_float32(learn_decay, meta, assign):
    name = "decay_logit" if learn_decay else "decay"
    layer = LeakyRNN(3, 5, decay=UNITS, learn_decay=learn_decay, dtype=torch.bfloat16)
    state = {key: x.bfloat16() for key, x in layer.state_dict().items()}
    other = LeakyRNN(3, 5, decay=UNITS / 2, learn_decay=learn_decay, dtype=torch.bfloat16, device="meta")
    if not meta or not assign:
        other = other.to_empty(device="cpu")
    other.load_state_dict(state, assign=assign)
    stored = other.state_dict()[name]
    assert stored.dtype == torch.float32
    assert torch.equal(stored, state[name].float())
    assert isinstance(other.decay_logit, nn.Parameter) if learn_decay else name in dict(other.named_buffers())
    assert state[name].dtype == torch.bfloat16
    assert other(torch.randn(2, 2, 3).bfloat16())[0].isfinite().all()


def test_assigning_a_state_dict_leaves_the_tensors_before_it_alone():
    layer = LeakyRNN(3, 5, decay=UNITS)
    before, state = layer.state_dict(), LeakyRNN(3, 5, decay=UNITS / 2).state_dict()
    layer.load_state_dict(state, assign=True)
    assert torch.equal(before["decay"], UNITS)
    assert layer.decay is not before["decay"]
    assert torch.equal(layer.decay, UNITS / 2)
    layer.reset_parameters()
    assert torch.equal(layer.decay, UNITS)


@pytest.mark.parametrize("optimizer", [ClippedNesterov, ClippedAdamW])
@pytest.mark.parametrize("options", [{}, {"master_weights": True}], ids=str)
@pytest.mark.parametrize("dtype", HALF)
def test_an_optimizer_steps_over_both_dtypes(optimizer, options, dtype):
    layer = LeakyRNN(3, 5, decay=SLOW, learn_decay=True, nonlinearity="tanh", dtype=dtype)
    before = {name: x.detach().clone() for name, x in layer.named_parameters()}
    steps = optimizer(layer.parameters(), lr=1e-2, max_norm=None, **options)
    for _ in range(3):
        steps.zero_grad()
        layer(torch.randn(6, 2, 3).to(dtype))[0].float().square().sum().backward()
        steps.step()
    for name, x in layer.named_parameters():
        assert x.dtype == before[name].dtype
        assert x.isfinite().all()
        assert not torch.equal(x, before[name]), name
    twin = LeakyRNN(3, 5, decay=SLOW, learn_decay=True, nonlinearity="tanh", dtype=dtype)
    again = optimizer(twin.parameters(), **options)
    again.load_state_dict(steps.state_dict())


def test_a_decay_that_something_else_cast_to_half_precision_is_computed_in_float32():
    layer = LeakyRNN(3, 5, decay=0.9, learn_decay=True, dtype=torch.bfloat16)
    layer.decay_logit.data = layer.decay_logit.data.bfloat16()
    assert layer.decay.dtype == torch.float32
    assert distance(layer.decay, torch.full((1, 5), 0.9)) < 1e-3
    with torch.no_grad():
        layer.decay_logit.fill_(20.0)
    assert layer.decay.max() < 1
    assert layer(torch.randn(2, 2, 3).bfloat16())[0].isfinite().all()
