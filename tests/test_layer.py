"""LeakyRNN: without decay it is nn.RNN; and what it has besides."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from helpers import DTYPES, KINDS, NONLINEARITIES, Problem, distance, normal_like
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_sequence

from rnnkernels import LeakyRNN, decay_from_tau, functional

# How near to nn.RNN, relative to the largest magnitude of each tensor.
NEAR_RNN = {torch.float32: 1e-6, torch.float64: 1e-12}


def pair(*args: Any, nonlinearity: str = "relu", **kwargs: Any) -> tuple[LeakyRNN, nn.RNN]:
    """A layer without decay and an nn.RNN of the same parameters."""
    layer = LeakyRNN(*args, nonlinearity=nonlinearity, **kwargs)
    plain = nn.RNN(*args, nonlinearity=nonlinearity, **kwargs)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


def problem_of(layer: LeakyRNN, input: Tensor, hx: Tensor | None) -> Problem:
    """The recurrence that a batched, time-first call comes down to."""
    with torch.no_grad():
        bias = layer.bias_ih_l0 + layer.bias_hh_l0 if layer.bias else None
        pre = nn.functional.linear(input, layer.weight_ih_l0, bias)
        h0 = None if hx is None else hx[0]
        return Problem(pre, h0, layer.weight_hh_l0.detach(), layer.decay, layer.nonlinearity, layer.form)


def trained(module: nn.Module, inputs: list[Tensor], grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The outputs, and the gradients of the inputs and of all parameters."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = module(*leaves)
    named = dict(module.named_parameters())
    found = torch.autograd.grad(outputs, [*leaves, *named.values()], grads)
    names = ["output", "h_n", "input", "hx"][: 2 + len(leaves)] + list(named)
    return dict(zip(names, [x.detach() for x in outputs] + list(found), strict=True))


@settings(max_examples=200)
@given(
    steps=st.integers(1, 12),
    batch=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 60)),
    nonlinearity=st.sampled_from(NONLINEARITIES),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    batch_first=st.booleans(),
    batched=st.booleans(),
    with_hx=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_without_decay_it_is_nn_rnn_forward_and_backward(
    steps, batch, sizes, nonlinearity, dtype, bias, batch_first, batched, with_hx, seed
):
    torch.set_num_threads(1)  # nn.RNN's many small products take ten times as long with more
    torch.manual_seed(seed)
    options = {"nonlinearity": nonlinearity, "bias": bias, "batch_first": batch_first}
    layer, plain = pair(*sizes, **options, dtype=dtype)
    batch = batch if batched else 1
    input = torch.randn(steps, batch, sizes[0], dtype=dtype)
    inputs = [input] + ([torch.randn(1, batch, sizes[1], dtype=dtype)] if with_hx else [])
    # Where rounding can switch a unit on or off, two right answers differ: see KINK_MARGIN.
    assume(problem_of(layer, *inputs, *([] if with_hx else [None])).has_clear_slopes())
    if batched and batch_first:
        inputs[0] = inputs[0].transpose(0, 1)
    if not batched:
        inputs = [inputs[0][:, 0], *(hx[:, 0] for hx in inputs[1:])]

    expected_output, expected_h_n = plain(*inputs)
    grads = normal_like(expected_output, seed), normal_like(expected_h_n, seed + 1)
    expected, found = trained(plain, inputs, grads), trained(layer, inputs, grads)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == dtype, name
        off = distance(found[name], value)
        assert off <= NEAR_RNN[dtype], f"{name} is off by {off:.3g}"


# --- Parameters and state dicts ----------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_have_the_names_the_order_and_the_shapes_of_nn_rnn(bias):
    layer, plain = LeakyRNN(3, 5, bias=bias), nn.RNN(3, 5, bias=bias)
    names = [(name, x.shape, x.dtype) for name, x in layer.named_parameters()]
    assert names == [(name, x.shape, x.dtype) for name, x in plain.named_parameters()]
    assert list(layer.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_seed_gives_the_initial_parameters_of_nn_rnn(bias, dtype):
    modules = []
    for kind in (LeakyRNN, nn.RNN):
        torch.manual_seed(7)
        modules.append(kind(3, 5, bias=bias, dtype=dtype))
    for a, b in zip(*(m.parameters() for m in modules), strict=True):
        assert torch.equal(a, b)


def test_reset_parameters_draws_anew():
    layer = LeakyRNN(3, 50)
    before = layer.weight_hh_l0.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.weight_hh_l0)
    assert layer.weight_hh_l0.abs().max() <= 50**-0.5


@pytest.mark.parametrize("bias", [True, False])
def test_state_dicts_load_in_both_directions(bias):
    layer, plain = LeakyRNN(3, 5, bias=bias, decay=0.5), nn.RNN(3, 5, bias=bias)
    layer.load_state_dict(plain.state_dict())
    for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    other = LeakyRNN(3, 5, bias=bias, decay=0.25)
    plain.load_state_dict(other.state_dict())
    for a, b in zip(other.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_dict_with_a_wrong_shape_or_a_missing_weight_is_refused():
    layer = LeakyRNN(3, 5, decay=torch.full((5,), 0.5))
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(LeakyRNN(3, 6).state_dict())
    incomplete = nn.RNN(3, 5).state_dict()
    del incomplete["bias_hh_l0"]
    with pytest.raises(RuntimeError, match="bias_hh_l0"):
        layer.load_state_dict(incomplete)


def test_a_decay_of_one_number_is_a_setting():
    for decay in (0.3, torch.tensor(0.3, dtype=torch.float64)):
        layer = LeakyRNN(3, 5, decay=decay)
        assert isinstance(layer.decay, float)
        assert layer.decay == 0.3
        assert "decay" not in layer.state_dict()


def test_a_decay_for_each_unit_is_a_buffer_in_the_state_dict():
    decay = torch.linspace(0, 0.9, 5, dtype=torch.float64)
    layer = LeakyRNN(3, 5, decay=decay)
    assert layer.decay.dtype == torch.float32
    assert "decay" in dict(layer.named_buffers())
    assert "decay" not in dict(layer.named_parameters())
    decay.zero_()  # the layer has a copy
    assert layer.decay[-1] == torch.tensor(0.9)
    other = LeakyRNN(3, 5, decay=torch.zeros(5))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.decay, layer.decay)
    x = torch.randn(4, 2, 3)
    assert torch.equal(other(x)[0], layer(x)[0])


def test_an_nn_rnn_s_state_dict_leaves_the_decays_of_the_units_alone():
    decay = torch.linspace(0, 0.9, 5)
    net = nn.ModuleDict({"rnn": LeakyRNN(3, 5, decay=decay)})
    plain = nn.ModuleDict({"rnn": nn.RNN(3, 5)})
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net["rnn"].decay, decay)
    assert torch.equal(net["rnn"].weight_hh_l0, plain["rnn"].weight_hh_l0)


def test_a_loaded_decay_out_of_range_is_refused_at_the_call():
    layer = LeakyRNN(3, 5, decay=torch.zeros(5))
    state = layer.state_dict()
    state["decay"] = torch.tensor([0, 0, 0, 1.5, 0])
    layer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.5 at unit 3"):
        layer(torch.randn(4, 2, 3))


# --- As a module -------------------------------------------------------------------------------------

DECAYS = {"number": 0.3, "unit": [0.0, 0.1, 0.2, 0.3, 0.9]}


@pytest.fixture(params=DECAYS.values(), ids=DECAYS)
def layer(request):
    decay = request.param
    return LeakyRNN(3, 5, decay=decay if isinstance(decay, float) else torch.tensor(decay))


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def through_save(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_save])
def test_a_copy_computes_the_same_with_parameters_of_its_own(layer, copied):
    other = copied(layer)
    x = torch.randn(4, 2, 3)
    assert torch.equal(layer(x)[0], other(x)[0])
    assert repr(layer) == repr(other)
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert layer.weight_hh_l0.any()


def test_double_converts_all_and_computes_in_float64(layer):
    x = torch.randn(4, 2, 3)
    single = layer(x)[0]
    layer.double()
    if isinstance(layer.decay, Tensor):
        assert layer.decay.dtype == torch.float64
    output, h_n = layer(x.double())
    assert output.dtype == h_n.dtype == torch.float64
    assert 0 < distance(single, output) < 1e-6


def test_double_keeps_the_digits_of_a_number_for_a_decay():
    layer = LeakyRNN(1, 1, decay=0.1).double()
    hx = torch.ones(1, 1, 1, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    assert layer(torch.zeros(1, 1, 1, dtype=torch.float64), hx)[0].item() == 0.1


def test_extra_repr_shows_what_differs_from_the_defaults():
    assert LeakyRNN(3, 5).extra_repr() == "3, 5"
    assert LeakyRNN(3, 5, decay=torch.zeros(5)).extra_repr() == "3, 5, decay=[H]"
    changed = LeakyRNN(3, 5, nonlinearity="tanh", bias=False, batch_first=True, decay=0.3, form="current")
    assert changed.extra_repr() == (
        "3, 5, nonlinearity='tanh', bias=False, batch_first=True, form='current', decay=0.3"
    )
    assert repr(LeakyRNN(3, 5)) == "LeakyRNN(3, 5)"


def test_flatten_parameters_is_there_and_does_nothing():
    layer = LeakyRNN(3, 5)
    pointers = [p.data_ptr() for p in layer.parameters()]
    assert layer.flatten_parameters() is None
    assert pointers == [p.data_ptr() for p in layer.parameters()]


def test_attributes_are_those_of_nn_rnn():
    layer, plain = pair(3, 5, batch_first=True)
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
                 "nonlinearity"):  # fmt: skip
        assert getattr(layer, name) == getattr(plain, name), name


def test_dropout_in_one_layer_warns_and_does_nothing():
    with pytest.warns(UserWarning, match="dropout"):
        layer = LeakyRNN(3, 5, dropout=0.5)
    x = torch.randn(4, 2, 3)
    assert torch.equal(layer(x)[0], layer(x)[0])


# --- Decay, form and drive ---------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_the_layer_is_the_projection_and_the_recurrence(form, nonlinearity, decay, batch_first, batched):
    decay = DECAYS[decay] if decay == "number" else torch.tensor(DECAYS[decay])
    layer = LeakyRNN(
        3, 5, nonlinearity=nonlinearity, decay=decay, form=form, batch_first=batch_first, dtype=torch.float64
    )
    batch = 2 if batched else 1
    input = torch.randn(4, batch, 3, dtype=torch.float64)
    hx, drive = (torch.randn(n, batch, 5, dtype=torch.float64) for n in (1, 4))
    problem = problem_of(layer, input, hx)
    problem.pre = problem.pre + drive
    output, h_n = problem.expected()

    if not batched:
        input, hx, drive, output = input[:, 0], hx[:, 0], drive[:, 0], output[:, 0]
    elif batch_first:
        input, drive, output = (x.transpose(0, 1) for x in (input, drive, output))
    found_output, found_h_n = layer(input, hx, drive=drive)
    assert found_output.shape == output.shape
    assert found_h_n.shape == hx.shape
    assert distance(found_output, output) < 1e-14
    assert distance(found_h_n.view(h_n.shape), h_n) < 1e-14


@pytest.mark.parametrize("batch_first", [True, False])
def test_drive_has_the_gradient_of_the_pre_activation(batch_first):
    layer = LeakyRNN(3, 5, decay=0.2, nonlinearity="tanh", batch_first=batch_first, dtype=torch.float64)
    input, drive = torch.randn(4, 2, 3).double(), torch.randn(4, 2, 5).double().requires_grad_()
    (layer(input, drive=drive)[0] ** 2).sum().backward()
    step_first = (lambda x: x.transpose(0, 1)) if batch_first else (lambda x: x)
    problem = problem_of(layer, step_first(input), None)
    pre = (problem.pre + step_first(drive.detach())).requires_grad_()
    output, _ = functional.leaky_recurrence(pre, None, layer.weight_hh_l0, 0.2, nonlinearity="tanh")
    (expected,) = torch.autograd.grad((output**2).sum(), pre)
    assert distance(step_first(drive.grad), expected) < 1e-14


@pytest.mark.parametrize("shape", [(4, 2, 4), (4, 1, 5), (1, 2, 5), (2, 5), (4, 2, 5, 1), (2, 4, 5)])
def test_a_drive_that_is_not_shaped_like_the_output_is_refused(shape):
    # Not even if it could be broadcast: a forgotten dimension would go unnoticed.
    with pytest.raises(RuntimeError, match=r"drive must be shaped like the output, \[4, 2, 5\]"):
        LeakyRNN(3, 5)(torch.randn(4, 2, 3), drive=torch.randn(shape))


def test_a_drive_of_another_dtype_is_refused():
    with pytest.raises(RuntimeError, match=r"drive must have the dtype"):
        LeakyRNN(3, 5)(torch.randn(4, 2, 3), drive=torch.randn(4, 2, 5).double())


def test_no_time_and_no_batch_are_empty_results():
    layer = LeakyRNN(3, 5, decay=0.5)
    hx = torch.randn(1, 2, 5)
    output, h_n = layer(torch.randn(0, 2, 3), hx)
    assert output.shape == (0, 2, 5)
    assert torch.equal(h_n, hx)
    output, h_n = layer(torch.randn(4, 0, 3))
    assert (output.shape, h_n.shape) == ((4, 0, 5), (1, 0, 5))


class Masked(nn.Module):
    """No self-connections."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (1 - torch.eye(len(weight)))


def test_a_parametrized_recurrent_weight_trains():
    layer = LeakyRNN(3, 8, nonlinearity="tanh", decay=0.5)
    parametrize.register_parametrization(layer, "weight_hh_l0", Masked())
    original = layer.parametrizations.weight_hh_l0.original
    before = original.detach().clone()
    x, target = torch.randn(6, 4, 3), torch.randn(6, 4, 8) / 4
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = ((layer(x)[0] - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    changed = (original.detach() - before) != 0
    assert torch.equal(changed, ~torch.eye(8, dtype=torch.bool))
    assert not layer.weight_hh_l0.diagonal().any()


# --- What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument",
    [{"num_layers": 2}, {"bidirectional": True}, {"learn_decay": True}],
    ids=lambda a: next(iter(a)),
)
def test_what_is_not_available_yet_is_named(argument):
    name = next(iter(argument))
    with pytest.raises(NotImplementedError, match=f"{name}={argument[name]}"):
        LeakyRNN(3, 5, **argument)


def test_a_packed_sequence_is_not_available_yet():
    packed = pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    with pytest.raises(NotImplementedError, match="PackedSequence"):
        LeakyRNN(3, 5)(packed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_not_available_yet(dtype):
    layer = LeakyRNN(3, 5, dtype=dtype)
    with pytest.raises(NotImplementedError, match="is not available yet, only float32 and float64"):
        layer(torch.randn(4, 2, 3, dtype=dtype))
    with pytest.raises(NotImplementedError), torch.autocast("cpu", dtype=torch.bfloat16):
        LeakyRNN(3, 5)(torch.randn(4, 2, 3))


def test_meta_tensors_give_meta_results_of_the_right_shapes():
    layer = LeakyRNN(3, 5, decay=torch.full((5,), 0.5), device="meta")
    assert layer.decay.is_meta
    output, h_n = layer(torch.randn(4, 2, 3, device="meta"), torch.randn(1, 2, 5, device="meta"))
    assert output.is_meta
    assert h_n.is_meta
    assert (output.shape, h_n.shape) == ((4, 2, 5), (1, 2, 5))


def test_a_gpu_is_not_available_yet():
    with FakeTensorMode():
        tensors = [torch.empty(shape, device="cuda") for shape in ((4, 2, 5), (2, 5), (5, 5))]
        with pytest.raises(NotImplementedError, match="on cuda tensors is not available yet"):
            functional.leaky_recurrence(*tensors, 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size must be greater than zero, got 0"),
        ({"hidden_size": -1}, ValueError, "hidden_size must be greater than zero, got -1"),
        ({"num_layers": 0}, ValueError, "num_layers must be greater than zero, got 0"),
        ({"input_size": 3.0}, TypeError, "input_size must be an int, got float"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an int, got bool"),
        ({"bias": 1}, TypeError, "bias must be a bool, got int"),
        ({"batch_first": None}, TypeError, "batch_first must be a bool, got NoneType"),
        ({"nonlinearity": "gelu"}, ValueError, "nonlinearity must be one of 'relu', 'tanh', got 'gelu'"),
        ({"form": "leaky"}, ValueError, "form must be one of 'rate', 'current', got 'leaky'"),
        ({"dropout": 1.5}, ValueError, r"dropout must be a number in \[0, 1\], got 1.5"),
        ({"dropout": "no"}, ValueError, "dropout must be a number"),
        ({"decay": 1.0}, ValueError, r"decay must lie in \[0, 1\), got 1.0"),
        ({"decay": -0.5}, ValueError, "decay must lie in"),
        ({"decay": math.nan}, ValueError, "decay must lie in"),
        ({"decay": torch.tensor([0.5, 0.5, 0.5, 1.0, 0.5])}, ValueError, "decay must lie in"),
        ({"decay": torch.full((4,), 0.5)}, ValueError, r"decay must be a number or \[H\] = \[5\], got \[4\]"),
        ({"decay": torch.full((1, 5), 0.5)}, ValueError, "decay must be a number or"),
        ({"decay": "slow"}, TypeError, "decay"),
        ({"decay": None}, TypeError, "decay"),
        ({"decay": 0.5j}, TypeError, "decay"),
        ({"decay": torch.full((5,), 0.5j)}, (TypeError, ValueError), "decay"),
    ],
    ids=str,
)
def test_a_wrong_argument_of_the_layer_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        LeakyRNN(**({"input_size": 3, "hidden_size": 5} | arguments))


CALLS = {
    "input of 1 dimension": lambda m: m(torch.randn(3)),
    "input of 4 dimensions": lambda m: m(torch.randn(1, 4, 2, 3)),
    "input of another size": lambda m: m(torch.randn(4, 2, 4)),
    "input of another dtype": lambda m: m(torch.randn(4, 2, 3).double()),
    "integer input": lambda m: m(torch.ones(4, 2, 3, dtype=torch.long)),
    "hx of another batch": lambda m: m(torch.randn(4, 2, 3), torch.randn(1, 3, 5)),
    "hx of another size": lambda m: m(torch.randn(4, 2, 3), torch.randn(1, 2, 4)),
    "hx of two layers": lambda m: m(torch.randn(4, 2, 3), torch.randn(2, 2, 5)),
    "hx without a batch": lambda m: m(torch.randn(4, 2, 3), torch.randn(1, 5)),
    "hx with a batch": lambda m: m(torch.randn(4, 3), torch.randn(1, 1, 5)),
    "hx of another dtype": lambda m: m(torch.randn(4, 2, 3), torch.randn(1, 2, 5).double()),
    "hx of four dimensions": lambda m: m(torch.randn(4, 2, 3), torch.randn(1, 1, 2, 5)),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_wrong_call_is_refused_by_name_with_nn_rnn_s_type_of_error(what):
    layer, plain = pair(3, 5)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        CALLS[what](plain)
    with pytest.raises((ValueError, RuntimeError), match="hx" if "hx" in what else "input") as found:
        CALLS[what](layer)
    assert found.type is expected.type


@pytest.mark.parametrize("value", [None, [[1.0]], 3])
def test_what_is_no_tensor_is_refused_by_name(value):
    layer, x = LeakyRNN(3, 5), torch.randn(4, 2, 3)
    with pytest.raises(TypeError, match="input must be a Tensor"):
        layer(value)
    if value is not None:
        with pytest.raises(TypeError, match="hx must be a Tensor"):
            layer(x, value)
        with pytest.raises(TypeError, match="drive must be a Tensor"):
            layer(x, drive=value)


def test_tensors_on_another_device_are_refused_by_name():
    layer, x = LeakyRNN(3, 5), torch.randn(4, 2, 3)
    with pytest.raises(RuntimeError, match="input must be on the device of the weights"):
        layer(x.to("meta"))
    with pytest.raises(RuntimeError, match="hx must have the dtype and device"):
        layer(x, torch.randn(1, 2, 5, device="meta"))
    with pytest.raises(RuntimeError, match="drive must have the dtype and device"):
        layer(x, drive=torch.randn(4, 2, 5, device="meta"))


# --- decay_from_tau ----------------------------------------------------------------------------------


def test_decay_from_tau_is_euler_s_or_the_exponential_s():
    assert decay_from_tau(10.0, 1.0) == 0.9
    assert decay_from_tau(100, 20) == 0.8
    assert decay_from_tau(5.0, 5.0) == 0.0
    assert decay_from_tau(10.0, 1.0, exact=True) == pytest.approx(math.exp(-0.1), rel=1e-15)
    assert decay_from_tau(1.0, 2.0, exact=True) == pytest.approx(math.exp(-2), rel=1e-15)
    assert isinstance(decay_from_tau(10, 1), float)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decay_from_tau_of_a_tensor_has_its_shape_and_dtype_and_suits_the_layer(dtype, exact):
    taus = torch.tensor([20.0, 50.0, 100.0, 200.0, 1000.0], dtype=dtype)
    decay = decay_from_tau(taus, 20.0, exact=exact)
    assert (decay.shape, decay.dtype) == (taus.shape, dtype)
    for tau, d in zip(taus.tolist(), decay.tolist(), strict=True):
        assert d == pytest.approx(decay_from_tau(tau, 20.0, exact=exact), abs=1e-6)
    LeakyRNN(3, 5, decay=decay, dtype=dtype)(torch.randn(2, 2, 3, dtype=dtype))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("tau", "dt", "name"),
    [
        (0.0, 1.0, "tau"),
        (-1.0, 1.0, "tau"),
        (math.nan, 1.0, "tau"),
        (math.inf, 1.0, "tau"),
        (torch.tensor([1.0, -1.0]), 1.0, "tau"),
        (1.0, 0.0, "dt"),
        (1.0, -1.0, "dt"),
        (1.0, math.nan, "dt"),
        (1.0, math.inf, "dt"),
        (1e30, 1.0, "rounds to 1"),
        (torch.tensor([1.0, 1e9]), 1.0, "rounds to 1"),
    ],
    ids=str,
)
def test_decay_from_tau_refuses_what_is_no_time_constant(tau, dt, name, exact):
    with pytest.raises(ValueError, match=name):
        decay_from_tau(tau, dt, exact=exact)


def test_euler_s_step_must_not_be_longer_than_tau():
    with pytest.raises(ValueError, match="dt must be at most tau in the Euler form"):
        decay_from_tau(1.0, 1.5)
    with pytest.raises(ValueError, match="dt must be at most tau in the Euler form"):
        decay_from_tau(torch.tensor([2.0, 1.0]), 1.5)
