"""The activity penalty: value, derivatives and memory."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import LAYOUTS, NONLINEARITIES, distance, relaid
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_sequence
from torch.profiler import ProfilerActivity, profile

from rnnkernels import LeakyRNN, activity_penalty
from rnnkernels.training import penalty

FUNCTIONS = {
    None: lambda h: h,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
}
WEIGHTS = ({"l1": 0.3}, {"l2": 0.7}, {"l1": 0.3, "l2": 0.7})


def expected(h, l1=0.0, l2=0.0, nonlinearity=None):
    a = FUNCTIONS[nonlinearity](h)
    return l1 * a.abs().mean() + l2 * (a * a).mean()


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(penalty, "PIECE", 16)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("nonlinearity", FUNCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_and_gradient_equal_the_formula(layout, nonlinearity, weights, small_pieces):
    assert set(FUNCTIONS) == {None, *NONLINEARITIES}
    h = relaid(torch.randn(5, 3, 7, dtype=torch.float64), layout).requires_grad_()
    ours, theirs = (f(h, **weights, nonlinearity=nonlinearity) for f in (activity_penalty, expected))
    assert ours.shape == ()
    assert distance(ours, theirs) < 1e-14
    scale = torch.tensor(1.7, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(x, h, scale)[0] for x in (ours, theirs))
    assert distance(found, wanted) < 1e-14


@pytest.mark.parametrize(
    "shape", [(), (40,), (3, 1, 50), (50, 4), (0, 2, 5), (1, 1, 1), (2, 3, 5, 7)], ids=str
)
def test_any_number_of_dimensions_is_accepted(shape, small_pieces):
    h = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours = activity_penalty(h, l1=0.3, l2=0.7)
    theirs = expected(h, 0.3, 0.7) if h.numel() else 0 * h.sum()
    assert distance(ours, theirs) < 1e-14
    assert distance(torch.autograd.grad(ours, h)[0], torch.autograd.grad(theirs, h)[0]) < 1e-14


def test_the_gradient_of_a_silent_unit_is_zero():
    h = torch.zeros(3, 2, 4, requires_grad=True)
    activity_penalty(h, l1=1.0).backward()
    assert torch.equal(h.grad, torch.zeros_like(h))


def test_weights_of_zero_give_no_penalty():
    h = torch.randn(3, 2, 4, requires_grad=True)
    value = activity_penalty(h)
    value.backward()
    assert value == 0
    assert torch.equal(h.grad, torch.zeros_like(h))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_float32(dtype):
    h = torch.full((300, 20, 20), 2.0, dtype=dtype, requires_grad=True)
    value = activity_penalty(h, l1=1.0, l2=0.25)
    assert value.dtype == torch.float32
    assert value == 3.0
    value.backward(torch.tensor(float(h.numel())))
    assert h.grad.dtype == dtype
    assert torch.equal(h.grad, torch.full_like(h, 2.0))


def test_a_sum_of_many_pieces_in_float32_keeps_its_digits(monkeypatch):
    monkeypatch.setattr(penalty, "PIECE", 1)
    h = torch.full((20_000,), 0.1)
    assert distance(activity_penalty(h, l2=1.0), expected(h.double(), l2=1.0)) < 1e-6


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bidirectional": True}], ids=str)
def test_the_output_of_a_layer_is_penalized_in_any_layout(options):
    layer = LeakyRNN(3, 5, 2, form="current", decay=0.5, dtype=torch.float64, **options)
    output, _ = layer(torch.randn(6, 4, 3, dtype=torch.float64))
    ours = activity_penalty(output, l1=0.3, l2=0.7, nonlinearity=layer.nonlinearity)
    theirs = expected(output, 0.3, 0.7, "relu")
    parameters = list(layer.parameters())
    assert distance(ours, theirs) < 1e-14
    for a, b in zip(
        *(torch.autograd.grad(x, parameters, retain_graph=True) for x in (ours, theirs)), strict=True
    ):
        assert distance(a, b) < 1e-13


def test_a_packed_sequence_counts_its_real_steps_only():
    layer = LeakyRNN(3, 5, decay=0.5, dtype=torch.float64)
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (2, 6, 3)]
    output, _ = layer(pack_sequence(sequences, enforce_sorted=False))
    every = torch.cat([layer(x)[0] for x in sequences])
    assert distance(activity_penalty(output, l1=0.3, l2=0.7), expected(every, 0.3, 0.7)) < 1e-14


# --- Derivatives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", [None, "tanh", "softplus"])
def test_derivatives_of_second_order_in_all_modes(nonlinearity, small_pieces):
    h = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)

    def function(h):
        return activity_penalty(h, l1=0.3, l2=0.7, nonlinearity=nonlinearity)

    assert torch.autograd.gradcheck(function, h, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, h, check_fwd_over_rev=True)


def test_the_norm_of_the_gradient_has_a_gradient(small_pieces):
    layer = LeakyRNN(3, 5, nonlinearity="tanh", dtype=torch.float64)
    found = []
    for function in (activity_penalty, expected):
        x = torch.randn(
            6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        (gradient,) = torch.autograd.grad(function(layer(x)[0], l1=0.1, l2=0.7), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), layer.parameters()))
    for a, b in zip(*found, strict=True):
        assert distance(a, b) < 1e-13


def test_transforms_of_torch_func():
    h, t = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    weights = {"l1": 0.3, "l2": 0.7, "nonlinearity": "tanh"}
    for transform in (grad, hessian, lambda f: vmap(grad(f)), lambda f: lambda h: jvp(f, (h,), (t,))[1]):
        found, wanted = (transform(lambda h, f=f: f(h, **weights))(h) for f in (activity_penalty, expected))
        assert distance(found, wanted) < 1e-13
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(h, t)
        found, wanted = (
            forward_ad.unpack_dual(f(dual, **weights)).tangent for f in (activity_penalty, expected)
        )
        assert distance(found, wanted) < 1e-13


def test_vmap_over_networks_gives_a_penalty_for_each():
    layers = [LeakyRNN(3, 5, decay=0.5) for _ in range(3)]
    weights, _ = stack_module_state(layers)
    x = torch.randn(6, 4, 3)

    def cost(weights):
        return activity_penalty(functional_call(layers[0], weights, x)[0], l2=0.5)

    for found, layer in zip(vmap(cost)(weights), layers, strict=True):
        assert distance(found, activity_penalty(layer(x)[0], l2=0.5)) < 1e-6


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_without_a_graph_break(backend):
    layer = LeakyRNN(3, 5, decay=0.5, form="current")

    def loss(x):
        output, _ = layer(x)
        return output.mean() + activity_penalty(output, l1=0.3, l2=0.7, nonlinearity="relu")

    x = torch.randn(6, 4, 3, requires_grad=True)
    leaves = [x, *layer.parameters()]
    torch._dynamo.reset()
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend=backend, dynamic=True)(x), leaves)
    torch._dynamo.reset()
    for a, b in zip(found, torch.autograd.grad(loss(x), leaves), strict=True):
        assert distance(a, b) < 1e-6


# --- Memory ------------------------------------------------------------------------------------------


def largest_allocations(function) -> list[int]:
    """Return the bytes of every allocation during a call, the largest first."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    sizes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return sorted((size for size in sizes if size > 0), reverse=True)


@pytest.mark.parametrize("nonlinearity", [None, "tanh"])
def test_no_tensor_of_the_size_of_the_output_is_allocated_except_the_gradient(nonlinearity):
    h = torch.randn(400, 16, 128, requires_grad=True)
    size = h.numel() * h.element_size()
    weights = {"l1": 0.3, "l2": 0.7, "nonlinearity": nonlinearity}
    plain = largest_allocations(lambda: expected(h, **weights).backward())
    assert plain[2] >= size  # the plain formula allocates several
    h.grad = None
    values = []
    forward = largest_allocations(lambda: values.append(activity_penalty(h, **weights)))
    backward = largest_allocations(values[0].backward)
    assert forward[0] <= 4 * penalty.PIECE < size / 4
    assert backward[0] == size
    assert backward[1] <= 4 * penalty.PIECE


def test_backward_keeps_the_output_and_nothing_else():
    output, _ = LeakyRNN(3, 50)(torch.randn(100, 20, 3))
    kept = []

    def pack(x):
        kept.append(x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        value = activity_penalty(output, l1=0.3, l2=0.7)
    assert [x.data_ptr() for x in kept if x.numel() > 1] == [output.data_ptr()]
    value.backward()


# --- Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"output": [1.0]}, TypeError, "output must be a Tensor, got list"),
        ({"output": torch.ones(3, dtype=torch.int64)}, ValueError, "output must have a floating-point dtype"),
        ({"l1": -1.0}, ValueError, "l1 must be finite and not negative, got -1.0"),
        ({"l2": math.inf}, ValueError, "l2 must be finite and not negative, got inf"),
        ({"l2": math.nan}, ValueError, "l2 must be finite and not negative, got nan"),
        ({"l1": "0.1"}, TypeError, "l1 must be a number, got str"),
        ({"l2": True}, TypeError, "l2 must be a number, got bool"),
        ({"nonlinearity": "gelu"}, ValueError, "nonlinearity must be one of 'relu'"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        activity_penalty(**({"output": torch.ones(3)} | arguments))


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("nonlinearity", [None, "tanh"])
@pytest.mark.parametrize("shape", [(6, 5, 3), (3,), ()])
def test_no_examples_of_vmap_give_no_penalties(shape, nonlinearity, weights):
    def value(h):
        return activity_penalty(h, **weights, nonlinearity=nonlinearity)

    h = torch.zeros(0, *shape)
    assert vmap(value)(h).shape == (0,)
    assert vmap(grad(value))(h).shape == (0, *shape)
    assert vmap(hessian(value))(h).shape == (0, *shape, *shape)
    assert vmap(lambda x: jvp(value, (x,), (x,)))(h)[1].shape == (0,)
    assert vmap(vmap(value))(torch.zeros(4, 0, *shape)).shape == (4, 0)
