"""LeakyRNN beyond nn.RNN: decay, form, drive, copies and errors."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from helpers import KINDS, distance
from layers import DECAYS, composed, problem_of, unpacked
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from rnnkernels import LeakyRNN, LeakyRNNCell, functional


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


def test_a_loaded_decay_out_of_range_is_refused_at_the_call():
    layer = LeakyRNN(3, 5, decay=torch.zeros(5))
    state = layer.state_dict()
    state["decay"] = torch.tensor([0, 0, 0, 1.5, 0])
    layer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.5 at unit 3"):
        layer(torch.randn(4, 2, 3))


# --- As a module -------------------------------------------------------------------------------------


@pytest.fixture(params=list(DECAYS.values()), ids=list(DECAYS))
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
def test_a_copy_computes_the_same_with_its_own_parameters(layer, copied):
    other = copied(layer)
    x = torch.randn(4, 2, 3)
    assert torch.equal(layer(x)[0], other(x)[0])
    assert repr(layer) == repr(other)
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert layer.weight_hh_l0.any()


def test_double_converts_everything_and_computes_in_float64(layer):
    x = torch.randn(4, 2, 3)
    single = layer(x)[0]
    layer.double()
    if isinstance(layer.decay, Tensor):
        assert layer.decay.dtype == torch.float64
    output, h_n = layer(x.double())
    assert output.dtype == h_n.dtype == torch.float64
    assert 0 < distance(single, output) < 1e-6


def test_double_keeps_all_digits_of_a_decay_given_as_a_number():
    layer = LeakyRNN(1, 1, decay=0.1).double()
    hx = torch.ones(1, 1, 1, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    assert layer(torch.zeros(1, 1, 1, dtype=torch.float64), hx)[0].item() == 0.1


def test_extra_repr_shows_arguments_that_differ_from_the_defaults():
    assert LeakyRNN(3, 5).extra_repr() == "3, 5"
    assert LeakyRNN(3, 5, decay=torch.zeros(5)).extra_repr() == "3, 5, decay=[H]"
    changed = LeakyRNN(3, 5, nonlinearity="tanh", bias=False, batch_first=True, decay=0.3, form="current")
    assert changed.extra_repr() == (
        "3, 5, nonlinearity='tanh', bias=False, batch_first=True, form='current', decay=0.3"
    )
    assert repr(LeakyRNN(3, 5)) == "LeakyRNN(3, 5)"
    deep = LeakyRNN(
        3, 5, 2, bidirectional=True, decay=[0, 0.5], learn_h0=True, checkpoint_every=9, dropout=0.1
    )
    assert deep.extra_repr() == (
        "3, 5, num_layers=2, dropout=0.1, bidirectional=True, learn_h0=True, checkpoint_every=9, "
        "decay=(0, 0.5)"
    )
    assert LeakyRNN(3, 5, learn_decay=True).extra_repr() == "3, 5, learn_decay=True"
    assert LeakyRNN(3, 5, decay=torch.zeros(1, 5)).extra_repr() == "3, 5, decay=[N, H]"


# --- Decay, form and drive ---------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_the_layer_equals_projection_and_recurrence(form, nonlinearity, decay, batch_first, batched):
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
    # A drive is not broadcast, because a forgotten dimension would go unnoticed.
    with pytest.raises(RuntimeError, match=r"drive must be shaped like the output, \[4, 2, 5\]"):
        LeakyRNN(3, 5)(torch.randn(4, 2, 3), drive=torch.randn(shape))


def test_a_drive_of_another_dtype_is_refused():
    with pytest.raises(RuntimeError, match=r"drive must have the dtype"):
        LeakyRNN(3, 5)(torch.randn(4, 2, 3), drive=torch.randn(4, 2, 5).double())


def test_no_steps_and_no_rows_give_empty_results():
    layer = LeakyRNN(3, 5, decay=0.5)
    hx = torch.randn(1, 2, 5)
    output, h_n = layer(torch.randn(0, 2, 3), hx)
    assert output.shape == (0, 2, 5)
    assert torch.equal(h_n, hx)
    output, h_n = layer(torch.randn(4, 0, 3))
    assert (output.shape, h_n.shape) == ((4, 0, 5), (1, 0, 5))


@pytest.mark.parametrize("form", ["rate", "current"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_many_layers_with_all_options_that_nn_rnn_lacks(form, bidirectional, batch_first):
    layer = LeakyRNN(
        3, 5, 3, "tanh", batch_first=batch_first, bidirectional=bidirectional, decay=[0.1, 0.5, 0.9],
        form=form, dtype=torch.float64,
    )  # fmt: skip
    directions = 2 if bidirectional else 1
    input, hx = torch.randn(4, 2, 3).double(), torch.randn(3 * directions, 2, 5).double()
    drive = torch.randn(4, 2, 5 * directions).double()
    output, h_n = composed(layer, input, hx, drive)
    if batch_first:
        input, drive, output = (x.transpose(0, 1) for x in (input, drive, output))
    found = layer(input, hx, drive=drive)
    assert distance(found[0], output) < 1e-14
    assert distance(found[1], h_n) < 1e-14


@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("packed_drive", [True, False])
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_a_packed_batch_equals_its_sequences_one_by_one(enforce_sorted, packed_drive, checkpoint_every):
    layer = LeakyRNN(
        3, 5, 2, bidirectional=True, decay=torch.linspace(0, 0.9, 20).view(4, 5), form="current",
        checkpoint_every=checkpoint_every, dtype=torch.float64,
    )  # fmt: skip
    lengths = [4, 2, 1] if enforce_sorted else [2, 1, 4]
    alone = [torch.randn(n, 3, dtype=torch.float64) for n in lengths]
    drives = [torch.randn(n, 10, dtype=torch.float64) for n in lengths]
    hx = torch.randn(4, 3, 5, dtype=torch.float64)
    packed = pack_sequence(alone, enforce_sorted)
    drive = pack_sequence(drives, enforce_sorted)
    output, h_n = layer(packed, hx, drive=drive if packed_drive else drive.data)
    for b, sequence in enumerate(unpacked(output)):
        expected = composed(layer, alone[b][:, None], hx[:, b : b + 1], drives[b][:, None])
        assert distance(sequence, expected[0][:, 0]) < 1e-14
        assert distance(h_n[:, b], expected[1][:, 0]) < 1e-14


def test_a_packed_batch_is_never_padded():
    rows = []

    class Rows(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "rnnkernels" in str(function):
                rows.append(args[0].shape[0])
            return function(*args, **(kwargs or {}))

    with Rows():
        LeakyRNN(3, 5, 2)(pack_sequence([torch.randn(n, 3) for n in (9, 2, 1)]))
    assert rows == [12, 12]


def test_a_drive_packed_differently_than_the_input_is_refused():
    layer = LeakyRNN(3, 5)
    packed = pack_sequence([torch.randn(n, 3) for n in (2, 4)], enforce_sorted=False)
    for drive in (
        pack_sequence([torch.randn(n, 5) for n in (4, 2)]),
        pack_sequence([torch.randn(n, 5) for n in (4, 2)], enforce_sorted=False),
        pack_sequence([torch.randn(n, 5) for n in (3, 3)], enforce_sorted=False),
    ):
        with pytest.raises(RuntimeError, match="drive must be packed as the input is"):
            layer(packed, drive=drive)
        with pytest.raises(RuntimeError, match="drive must be packed as the input is"):
            layer(torch.randn(4, 2, 3), drive=drive)
    with pytest.raises(RuntimeError, match=r"drive must be shaped like the output, \[6, 5\]"):
        layer(packed, drive=torch.randn(4, 2, 5))


# --- A learned initial state -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "batch_first", "unbatched", "packed"])
def test_a_learned_initial_state_is_used_and_trained_if_hx_is_none(layout):
    layer = LeakyRNN(3, 5, 2, bidirectional=True, batch_first=layout == "batch_first", learn_h0=True)
    assert layer.h0.shape == (4, 5)
    assert not layer.h0.any()
    with torch.no_grad():
        layer.h0.normal_()
    input = torch.randn(4, 2, 3)
    if layout == "unbatched":
        input = input[:, 0]
    elif layout == "packed":
        input = pack_sequence([torch.randn(n, 3) for n in (2, 4)], enforce_sorted=False)
    hx = layer.h0.detach() if layout == "unbatched" else layer.h0.detach()[:, None].repeat(1, 2, 1)
    if layout == "batch_first":
        hx = layer.h0.detach()[:, None].repeat(1, 4, 1)  # the batch is the first dimension
    hx.requires_grad_()
    h_n, expected = layer(input)[1], layer(input, hx)[1]
    assert torch.equal(h_n, expected)
    (given,) = torch.autograd.grad((expected**2).sum(), hx)
    (learned,) = torch.autograd.grad((h_n**2).sum(), layer.h0)
    assert distance(learned, given if layout == "unbatched" else given.sum(1)) < 1e-6
    layer.reset_parameters()
    assert not layer.h0.any()


def test_a_learned_initial_state_is_in_the_state_dict_and_may_be_missing_when_loading():
    layer = LeakyRNN(3, 5, learn_h0=True)
    with torch.no_grad():
        layer.h0.fill_(0.5)
    layer.load_state_dict(nn.RNN(3, 5).state_dict())
    assert (layer.h0 == 0.5).all()
    other = LeakyRNN(3, 5, learn_h0=True)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.h0, layer.h0)
    assert "h0" not in LeakyRNN(3, 5).state_dict()


# --- Autocast ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("module", [LeakyRNN, LeakyRNNCell])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_projection_is_bfloat16_and_the_recurrence_float32(
    module, input_dtype, checkpoint_every
):
    rnn = module(3, 5, nonlinearity="tanh", decay=torch.linspace(0, 0.9, 5))
    x, hx = torch.randn(4, 3), torch.randn(4, 5)
    drive = torch.randn(4, 5)
    if module is LeakyRNN:
        rnn.checkpoint_every = checkpoint_every
        x, hx, drive = x[:, None], hx[None, :1], drive[:, None]
    x = x.to(input_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = rnn(x, hx.bfloat16(), drive=drive)
    output = output if module is LeakyRNNCell else output[0]
    assert output.dtype == torch.float32
    found = torch.autograd.grad(output.sum(), list(rnn.parameters()))

    cells = LeakyRNN(3, 5, nonlinearity="tanh", decay=torch.linspace(0, 0.9, 5))
    names = {name.replace("_l0", ""): value for name, value in rnn.state_dict().items()}
    weight, bias = names["weight_ih"].bfloat16(), (names["bias_ih"] + names["bias_hh"]).bfloat16()
    pre = nn.functional.linear(x.bfloat16(), weight, bias).float() + drive
    h0 = hx.bfloat16().float()
    if module is LeakyRNNCell:
        pre = pre[None]
    expected, _ = functional.leaky_recurrence(
        pre, h0.view(pre.shape[1], 5), names["weight_hh"], cells.decay, nonlinearity="tanh"
    )
    assert torch.equal(output, expected.view(output.shape))
    assert all(g.dtype == torch.float32 for g in found)


# --- Hooks -------------------------------------------------------------------------------------------


def test_hooks_of_modules_and_of_parameters_are_called():
    layer, seen = LeakyRNN(3, 5, 2), []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, results: seen.append("after"))
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("backward"))
    layer.weight_hh_l1.register_hook(lambda grad: seen.append("gradient"))
    layer(torch.randn(4, 2, 3, requires_grad=True))[0].sum().backward()
    assert sorted(seen) == ["after", "backward", "before", "gradient"]
    assert seen[:2] == ["before", "after"]


@pytest.mark.parametrize("arguments", [{"decay": 0.999}, {"learn_decay": True, "decay": 0.5}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_trains_and_is_near_float32(dtype, arguments):
    layer = LeakyRNN(3, 5, 2, bidirectional=True, dtype=dtype, **arguments)
    x = torch.randn(6, 2, 3, dtype=dtype)
    output, h_n = layer(x)
    assert (output.dtype, h_n.dtype) == (dtype, dtype)
    output.square().mean().backward()
    for name, p in layer.named_parameters():
        assert p.grad.dtype == (torch.float32 if name == "decay_logit" else dtype), name
        assert p.grad.isfinite().all(), name
    expected, _ = copy.deepcopy(layer).float()(x.float())
    assert distance(output, expected) < 16 * torch.finfo(dtype).eps


# --- Errors ------------------------------------------------------------------------------------------


def test_meta_tensors_give_meta_results_of_the_right_shapes():
    layer = LeakyRNN(3, 5, decay=torch.full((5,), 0.5), device="meta")
    assert layer.decay.is_meta
    output, h_n = layer(torch.randn(4, 2, 3, device="meta"), torch.randn(1, 2, 5, device="meta"))
    assert output.is_meta
    assert h_n.is_meta
    assert (output.shape, h_n.shape) == ((4, 2, 5), (1, 2, 5))


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
        ({"nonlinearity": "gelu"}, ValueError, "nonlinearity must be one of 'relu', 'tanh', .*got 'gelu'"),
        ({"form": "leaky"}, ValueError, "form must be one of 'rate', 'current', got 'leaky'"),
        ({"dropout": 1.5}, ValueError, r"dropout must be a number in \[0, 1\], got 1.5"),
        ({"dropout": "no"}, ValueError, "dropout must be a number"),
        ({"decay": 1.0}, ValueError, r"decay must lie in \[0, 1\), got 1.0"),
        ({"decay": -0.5}, ValueError, "decay must lie in"),
        ({"decay": math.nan}, ValueError, "decay must lie in"),
        ({"decay": torch.tensor([0.5, 0.5, 0.5, 1.0, 0.5])}, ValueError, "decay must lie in"),
        ({"decay": torch.full((4,), 0.5)}, ValueError, r"decay must be a number or \[H\] = \[5\] or "),
        ({"decay": torch.full((2, 5), 0.5)}, ValueError, "decay must be a number or"),
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


@pytest.mark.parametrize("value", [None, [[1.0]], 3])
def test_an_input_that_is_not_a_tensor_is_refused_by_name(value):
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
