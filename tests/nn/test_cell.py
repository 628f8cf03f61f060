"""LeakyRNNCell compared with the layer step by step, and without decay with nn.RNNCell."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import DTYPES, KINDS, RNN_NONLINEARITIES, distance
from layers import NEAR_RNN
from torch import nn

from rnnkernels import LeakyRNN, LeakyRNNCell


def pair(*args, nonlinearity="relu", **kwargs):
    """Return a cell without decay and an nn.RNNCell with the same parameters."""
    cell = LeakyRNNCell(*args, nonlinearity=nonlinearity, **kwargs)
    plain = nn.RNNCell(*args, nonlinearity=nonlinearity, **kwargs)
    plain.load_state_dict(cell.state_dict())
    return cell, plain


@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonlinearity", RNN_NONLINEARITIES)
def test_without_decay_it_equals_nn_rnn_cell(nonlinearity, dtype, bias, batched, with_hx):
    cell, plain = pair(3, 5, bias=bias, nonlinearity=nonlinearity, dtype=dtype)
    lead = (2,) if batched else ()
    x = torch.randn(*lead, 3, dtype=dtype, requires_grad=True)
    hx = torch.randn(*lead, 5, dtype=dtype, requires_grad=True) if with_hx else None
    found, expected = cell(x, hx), plain(x, hx)
    assert found.shape == expected.shape
    assert distance(found, expected) < NEAR_RNN[dtype]
    leaves = [x] + ([hx] if with_hx else [])
    ours = torch.autograd.grad((found**2).sum(), leaves + list(cell.parameters()))
    theirs = torch.autograd.grad((expected**2).sum(), leaves + list(plain.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert distance(a, b) < NEAR_RNN[dtype]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("learn_decay", [True, False])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_it_equals_the_layer_step_by_step(form, nonlinearity, learn_decay, batched):
    options = {"decay": torch.linspace(0, 0.9, 5).double(), "learn_decay": learn_decay, "form": form}
    layer = LeakyRNN(3, 5, nonlinearity=nonlinearity, dtype=torch.float64, **options)
    cell = LeakyRNNCell(3, 5, nonlinearity=nonlinearity, dtype=torch.float64, **options)
    cell.load_state_dict({k.replace("_l0", ""): v.view(-1, *v.shape[1:]) if "logit" not in k else v[0]
                          for k, v in layer.state_dict().items()})  # fmt: skip
    lead = (2,) if batched else ()
    x, drive = torch.randn(6, *lead, 3).double(), torch.randn(6, *lead, 5).double()
    hx = torch.randn(*lead, 5).double()
    output, h_n = layer(x, hx[None], drive=drive)
    states = []
    for t in range(6):
        hx = cell(x[t], hx, drive=drive[t])
        states.append(hx)
    assert distance(torch.stack(states), output) < 1e-14
    assert distance(hx, h_n[0]) < 1e-14
    torch.stack(states).square().sum().backward()
    output.square().sum().backward()
    for (name, ours), theirs in zip(cell.named_parameters(), layer.parameters(), strict=True):
        assert distance(ours.grad, theirs.grad.view(ours.shape)) < 1e-13, name


@pytest.mark.parametrize("bias", [True, False])
def test_names_initial_values_and_state_dicts_are_those_of_nn_rnn_cell(bias):
    cells = []
    for kind in (LeakyRNNCell, nn.RNNCell):
        torch.manual_seed(7)
        cells.append(kind(3, 5, bias))
    cell, plain = cells
    for (name, a), (other, b) in zip(cell.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    plain.reset_parameters()
    cell.load_state_dict(plain.state_dict())
    assert torch.equal(cell.weight_hh, plain.weight_hh)
    assert (cell.bias_ih is None) == (plain.bias_ih is None) == (not bias)
    units = LeakyRNNCell(3, 5, bias, decay=torch.full((5,), 0.5))
    units.load_state_dict(plain.state_dict())
    assert (units.decay == 0.5).all()


def test_it_can_be_copied_and_shows_its_arguments():
    cell = LeakyRNNCell(3, 5, nonlinearity="tanh", decay=torch.linspace(0, 0.9, 5), form="current")
    x = torch.randn(2, 3)
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert torch.equal(twin(x), cell(x))
        assert repr(twin) == repr(cell)
    assert repr(cell) == "LeakyRNNCell(3, 5, nonlinearity='tanh', form='current', decay=[H])"
    assert repr(LeakyRNNCell(3, 5, bias=False, decay=0.5)) == "LeakyRNNCell(3, 5, bias=False, decay=0.5)"


CALLS = {
    "input of 3 dimensions": lambda m: m(torch.randn(2, 2, 3)),
    "input of another size": lambda m: m(torch.randn(2, 4)),
    "input of another dtype": lambda m: m(torch.randn(2, 3).double()),
    "integer input": lambda m: m(torch.ones(2, 3, dtype=torch.long)),
    "hx of another batch": lambda m: m(torch.randn(2, 3), torch.randn(3, 5)),
    "hx of another size": lambda m: m(torch.randn(2, 3), torch.randn(2, 4)),
    "hx of 3 dimensions": lambda m: m(torch.randn(2, 3), torch.randn(1, 2, 5)),
    "hx with a batch": lambda m: m(torch.randn(3), torch.randn(2, 5)),
    "hx without a batch": lambda m: m(torch.randn(2, 3), torch.randn(5)),
    "hx of another dtype": lambda m: m(torch.randn(2, 3), torch.randn(2, 5).double()),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_wrong_call_is_refused_by_name_with_the_type_of_error_of_nn_rnn_cell(what):
    cell, plain = pair(3, 5)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        CALLS[what](plain)
    with pytest.raises((ValueError, RuntimeError), match="hx" if "hx" in what else "input") as found:
        CALLS[what](cell)
    assert found.type is expected.type


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"input_size": 0}, ValueError),
        ({"hidden_size": 5.0}, TypeError),
        ({"bias": 1}, TypeError),
        ({"nonlinearity": "gelu"}, ValueError),
        ({"form": "leaky"}, ValueError),
        ({"learn_decay": 1}, TypeError),
        ({"decay": 1.0}, ValueError),
        ({"decay": torch.zeros(1, 5)}, ValueError),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_by_name(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        LeakyRNNCell(**({"input_size": 3, "hidden_size": 5} | arguments))


def test_other_types_and_a_drive_of_another_shape_are_refused_by_name():
    cell, x = LeakyRNNCell(3, 5), torch.randn(2, 3)
    with pytest.raises(TypeError, match="input must be a Tensor"):
        cell([1.0])
    with pytest.raises(TypeError, match="hx must be a Tensor"):
        cell(x, 3)
    with pytest.raises(TypeError, match="drive must be a Tensor"):
        cell(x, drive=3)
    with pytest.raises(RuntimeError, match=r"drive must be \[2, 5\]"):
        cell(x, drive=torch.randn(1, 5))
