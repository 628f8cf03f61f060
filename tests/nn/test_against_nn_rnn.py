"""LeakyRNN without decay compared with nn.RNN: results, names, errors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers import DTYPES, RNN_NONLINEARITIES, distance, normal_like
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layers import NEAR_RNN, pair, problem_of, trained
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from rnnkernels import LeakyRNN


@settings(max_examples=200)
@given(
    steps=st.integers(1, 12),
    batch=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 60)),
    nonlinearity=st.sampled_from(RNN_NONLINEARITIES),
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
    torch.set_num_threads(1)  # nn.RNN is ten times as slow with more threads, because its products are small
    torch.manual_seed(seed)
    options = {"nonlinearity": nonlinearity, "bias": bias, "batch_first": batch_first}
    layer, plain = pair(*sizes, **options, dtype=dtype)
    batch = batch if batched else 1
    input = torch.randn(steps, batch, sizes[0], dtype=dtype)
    inputs = [input] + ([torch.randn(1, batch, sizes[1], dtype=dtype)] if with_hx else [])
    # If rounding can switch a unit on or off, two correct results differ; see KINK_MARGIN.
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
        # A gradient is a sum of terms of order one, which may cancel.
        off = distance(found[name], value, 0.0 if name in ("output", "h_n") else 1.0)
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


def test_reset_parameters_draws_again():
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


def test_loading_a_state_dict_of_nn_rnn_keeps_the_decays():
    decay = torch.linspace(0, 0.9, 5)
    net = nn.ModuleDict({"rnn": LeakyRNN(3, 5, decay=decay)})
    plain = nn.ModuleDict({"rnn": nn.RNN(3, 5)})
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net["rnn"].decay, decay)
    assert torch.equal(net["rnn"].weight_hh_l0, plain["rnn"].weight_hh_l0)


def test_flatten_parameters_does_nothing():
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


# --- All arguments and kinds of input of nn.RNN -----------------------------------------------------

LAYOUTS = ("padded", "batch_first", "unbatched", "packed", "packed unsorted", "packed batch_first")


def sequences(layout: str, features: int, dtype: torch.dtype) -> Tensor | PackedSequence:
    """Three sequences of up to four steps."""
    if layout == "unbatched":
        return torch.randn(4, features, dtype=dtype)
    lengths = {"packed": [4, 3, 1], "packed unsorted": [2, 4, 3], "packed batch_first": [3, 4, 4]}.get(layout)
    batch_first = "batch_first" in layout
    data = torch.randn(*((3, 4) if batch_first else (4, 3)), features, dtype=dtype)
    if lengths is None:
        return data
    return pack_padded_sequence(data, torch.tensor(lengths), batch_first, enforce_sorted=layout == "packed")


def tensors_of(values: tuple[Any, ...]) -> list[Tensor]:
    return [x.data if isinstance(x, PackedSequence) else x for x in values]


def run_and_differentiate(module: nn.Module, input: Any, hx: Tensor | None, seed: int) -> dict[str, Tensor]:
    """Return the outputs, and the gradients of the input, hx and all parameters."""
    torch.manual_seed(seed)  # dropout
    data = tensors_of((input,))[0].detach().requires_grad_()
    leaf = input._replace(data=data) if isinstance(input, PackedSequence) else data
    state = None if hx is None else hx.detach().requires_grad_()
    results = module(leaf, state)
    if isinstance(input, PackedSequence):
        assert isinstance(results[0], PackedSequence)
        for ours, theirs in zip(results[0][1:], input[1:], strict=True):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    outputs = tensors_of(results)
    named = {"input": data} | ({} if state is None else {"hx": state}) | dict(module.named_parameters())
    grads = [normal_like(x, seed + i) for i, x in enumerate(outputs)]
    found = torch.autograd.grad(outputs, list(named.values()), grads)
    return dict(zip(["output", "h_n", *named], [x.detach() for x in outputs] + list(found), strict=True))


@pytest.mark.parametrize("with_hx", [True, False], ids=["hx", "no hx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("nonlinearity", "dtype"), [("relu", torch.float64), ("tanh", torch.float32)], ids=["relu", "tanh"]
)
def test_all_arguments_and_kinds_of_input(
    nonlinearity, dtype, layout, num_layers, bidirectional, bias, with_hx
):
    layer, plain = pair(
        3, 5, num_layers, nonlinearity=nonlinearity, bias=bias, batch_first="batch_first" in layout,
        dropout=0.4 if num_layers > 1 else 0.0, bidirectional=bidirectional, dtype=dtype,
    )  # fmt: skip
    input = sequences(layout, 3, dtype)
    rows = num_layers * (2 if bidirectional else 1)
    shape = (rows, 5) if layout == "unbatched" else (rows, 3, 5)
    hx = torch.randn(shape, dtype=dtype) if with_hx else None
    for training in (True, False):  # the same seed gives the same dropout
        plain.train(training), layer.train(training)
        expected = run_and_differentiate(plain, input, hx, 5)
        found = run_and_differentiate(layer, input, hx, 5)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert found[name].shape == value.shape, name
            off = distance(found[name], value)
            assert off <= NEAR_RNN[dtype], f"{name} is off by {off:.3g}, training={training}"


def test_dropout_acts_between_layers_and_in_training_only():
    layer = LeakyRNN(3, 5, 2, dropout=0.5)
    x = torch.randn(4, 2, 3)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    layer.train().dropout = 1.0
    bottom = LeakyRNN(5, 5)
    bottom.load_state_dict({k[:-1] + "0": v for k, v in layer.state_dict().items() if k.endswith("l1")})
    assert torch.equal(layer(x)[0], bottom(torch.zeros(4, 2, 5))[0])


DEEP = [{"num_layers": 2}, {"bidirectional": True}, {"num_layers": 3, "bidirectional": True, "bias": False}]


@pytest.mark.parametrize("arguments", DEEP, ids=str)
def test_parameters_of_many_layers_have_the_names_order_and_initial_values_of_nn_rnn(arguments):
    modules = []
    for kind in (LeakyRNN, nn.RNN):
        torch.manual_seed(7)
        modules.append(kind(3, 5, **arguments))
    layer, plain = modules
    for (name, a), (other, b) in zip(layer.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    assert [len(w) for w in layer.all_weights] == [len(w) for w in plain.all_weights]
    for ours, theirs in zip(layer.all_weights, plain.all_weights, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    plain.reset_parameters()
    layer.load_state_dict(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), plain.parameters(), strict=True))
    layer.reset_parameters()
    plain.load_state_dict(layer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), plain.parameters(), strict=True))


# --- from_rnn ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"batch_first": True, "dropout": 0.1}, *DEEP], ids=str)
def test_from_rnn_computes_the_same_and_keeps_all_settings(arguments):
    arguments = {"num_layers": 2} | arguments
    plain = nn.RNN(3, 5, nonlinearity="relu", dtype=torch.float64, **arguments).eval()
    plain.weight_hh_l0.requires_grad_(False)
    layer = LeakyRNN.from_rnn(plain)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert distance(layer(x)[0], plain(x)[0]) <= NEAR_RNN[torch.float64]
    assert not layer.training
    assert not layer.weight_hh_l0.requires_grad
    assert layer.weight_ih_l0.requires_grad
    for name in ("num_layers", "nonlinearity", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(layer, name) == getattr(plain, name), name
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    assert plain.weight_hh_l0.any()


def tied_rnn():
    """Return an nn.RNN whose layers and directions share weights, and biases within a layer."""
    plain = nn.RNN(5, 5, 2, nonlinearity="relu", bidirectional=True)
    plain.weight_hh_l1 = plain.weight_hh_l0_reverse = plain.weight_hh_l0
    plain.bias_hh_l0 = plain.bias_ih_l0
    return plain


@pytest.mark.parametrize("share", [False, True])
def test_from_rnn_keeps_parameters_shared(share):
    plain = tied_rnn()
    layer = LeakyRNN.from_rnn(plain, share=share)
    assert layer.weight_hh_l1 is layer.weight_hh_l0_reverse is layer.weight_hh_l0
    assert layer.bias_hh_l0 is layer.bias_ih_l0
    assert layer.weight_hh_l1_reverse is not layer.weight_hh_l0
    names = [[name for name, _ in module.named_parameters()] for module in (plain, layer)]
    assert names[0] == names[1]
    assert all(isinstance(p, nn.Parameter) for p in layer.parameters())
    x = torch.randn(4, 2, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x)[0].square().mean().backward()
    optimizer.step()
    layer(x)[0].sum().backward()
    assert (layer(x)[0] != LeakyRNN.from_rnn(tied_rnn())(x)[0]).any()


def test_from_rnn_shares_parameters_with_other_modules_on_request():
    plain, readout = nn.RNN(3, 5), nn.Linear(3, 5)
    readout.weight = plain.weight_ih_l0
    layer = LeakyRNN.from_rnn(plain, share=True)
    assert layer.weight_ih_l0 is readout.weight
    assert all(a is b for a, b in zip(layer.parameters(), plain.parameters(), strict=True))
    assert LeakyRNN.from_rnn(plain).weight_ih_l0 is not readout.weight
    with pytest.raises(TypeError, match="share must be a bool, got int"):
        LeakyRNN.from_rnn(plain, share=1)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda rnn: parametrize.register_parametrization(rnn, "weight_hh_l0", nn.Identity()),
        lambda rnn: prune.l1_unstructured(rnn, "weight_hh_l0", amount=0.5),
        lambda rnn: nn.utils.weight_norm(rnn, "weight_hh_l0"),
    ],
    ids=["parametrization", "pruning", "weight norm"],
)
def test_from_rnn_refuses_weights_that_are_computed(change):
    plain = nn.RNN(3, 5)
    change(plain)
    with pytest.raises(ValueError, match=r"^rnn.weight_hh_l0 must be a parameter, got a tensor that a param"):
        LeakyRNN.from_rnn(plain)


def test_from_rnn_takes_the_arguments_that_nn_rnn_lacks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dropout in one layer
        plain = nn.RNN(3, 5, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = LeakyRNN.from_rnn(plain, decay=0.25, form="current", learn_h0=True)
    assert (layer.decay, layer.form, layer.learn_h0, layer.dropout) == (0.25, "current", True, 0.5)
    with pytest.raises(TypeError, match=r"rnn must be a torch.nn.RNN, got LSTM"):
        LeakyRNN.from_rnn(nn.LSTM(3, 5))
    with pytest.raises(TypeError, match=r"rnn must be a torch.nn.RNN, got LeakyRNN"):
        LeakyRNN.from_rnn(layer)


# --- Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_layers": 0},
        {"num_layers": 1.5},
        {"num_layers": "2"},
        {"hidden_size": 0},
        {"input_size": 0},
        {"input_size": 3.0},
        {"hidden_size": "5"},
        {"dropout": 1.5},
        {"dropout": -0.1},
        {"dropout": True},
        {"bias": 1},
        {"batch_first": None},
        {"nonlinearity": "gelu"},
    ],
    ids=str,
)
def test_a_wrong_argument_raises_the_type_of_error_of_nn_rnn(arguments):
    given_arguments = {"input_size": 3, "hidden_size": 5, "nonlinearity": "relu"} | arguments
    with pytest.raises((TypeError, ValueError)) as expected:
        nn.RNN(**given_arguments)
    with pytest.raises((TypeError, ValueError), match=next(iter(arguments))) as found:
        LeakyRNN(**given_arguments)
    assert found.type is expected.type


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


PACKED = pack_sequence([torch.ones(4, 3), torch.ones(2, 3)])
DEEP_CALLS = {
    "hx of one layer": lambda m: m(torch.randn(4, 2, 3), torch.randn(1, 2, 5)),
    "hx of one layer, unbatched": lambda m: m(torch.randn(4, 3), torch.randn(1, 5)),
    "hx with a batch beside unbatched input": lambda m: m(torch.randn(4, 3), torch.randn(4, 1, 5)),
    "hx of another batch, packed": lambda m: m(PACKED, torch.randn(4, 3, 5)),
    "hx of another size, packed": lambda m: m(PACKED, torch.randn(4, 2, 4)),
    "hx without a batch, packed": lambda m: m(PACKED, torch.randn(4, 5)),
    "hx of another dtype, packed": lambda m: m(PACKED, torch.randn(4, 2, 5).double()),
    "input of another size, packed": lambda m: m(PACKED._replace(data=torch.randn(6, 4))),
    "input of another dtype, packed": lambda m: m(PACKED._replace(data=PACKED.data.double())),
    "input of 3 dimensions, packed": lambda m: m(PACKED._replace(data=torch.randn(6, 1, 3))),
}


@pytest.mark.parametrize("what", DEEP_CALLS)
def test_a_wrong_call_of_many_layers_is_refused_with_nn_rnn_s_type_of_error(what):
    layer, plain = pair(3, 5, 2, bidirectional=True)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        DEEP_CALLS[what](plain)
    with pytest.raises((ValueError, RuntimeError), match="hx" if "hx" in what else "input") as found:
        DEEP_CALLS[what](layer)
    assert found.type is expected.type
