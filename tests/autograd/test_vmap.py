"""torch.vmap over any arguments equals a loop; over weights it is one kernel call."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from helpers import FORMS, distance, make_problem, normal_like
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from rnnkernels import LeakyRNN, LeakyRNNCell

COUNT = 3
NAMES = ("pre", "h0", "weight_hh", "decay")
# All subsets of arguments that may have examples.
SOME = [names for n in range(1, 5) for names in itertools.combinations(NAMES, n)]


class Calls(TorchDispatchMode):
    """Counts the calls of this package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "rnnkernels":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def examples(problem, names, dim: int):
    """Return arguments, with COUNT examples along `dim` in those named, and the single problems."""
    many, single = dict(problem.tensors), [dict(problem.tensors) for _ in range(COUNT)]
    for name in names:
        x = problem.tensors[name]
        stack = [x * 0.5**i if name == "decay" else x + 0.1 * normal_like(x, i) for i in range(COUNT)]
        many[name] = torch.stack(stack, min(dim, x.dim()))
        for i in range(COUNT):
            single[i][name] = stack[i]
    dims = {
        name: (min(dim, problem.tensors[name].dim()) if name in names else None) for name in problem.tensors
    }
    return many, dims, single


def loss(problem, tensors: dict[str, Tensor]) -> Tensor:
    output, h_n = replace(problem, **tensors).run()
    return (output**2).sum() + h_n.sin().sum()


@pytest.mark.parametrize("dim", [0, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", SOME, ids="+".join)
def test_values_and_gradients_equal_a_loop(names, packed, dim):
    for form, decay, reverse in itertools.product(FORMS, ["unit", "scalar"], [False, True]):
        nonlinearity = "relu" if decay == "unit" else "softplus"
        problem = make_problem(
            0, form=form, nonlinearity=nonlinearity, packed=packed, decay=decay, reverse=reverse
        )
        many, dims, single = examples(problem, names, dim)
        output, h_n = vmap(lambda t, p=problem: replace(p, **t).run(), (dims,))(many)
        gradients = vmap(grad(lambda t, p=problem: loss(p, t)), (dims,))(many)
        for i, tensors in enumerate(single):
            expected = replace(problem, **tensors).run()
            assert torch.equal(output[i], expected[0])
            assert torch.equal(h_n[i], expected[1])
            one = grad(lambda t, p=problem: loss(p, t))(tensors)
            for name, value in one.items():
                assert gradients[name][i].shape == value.shape, name
                assert distance(gradients[name][i], value) < 1e-13, (name, form, decay)


def test_vmap_in_vmap():
    problem = make_problem(0, decay="scalar")
    pre = torch.stack([torch.stack([problem.pre * (i + j) for j in range(2)]) for i in range(3)])
    weight_hh = torch.stack(
        [torch.stack([problem.weight_hh * (i - j) / 3 for j in range(2)]) for i in range(3)]
    )
    decay = torch.tensor([0.1, 0.5, 0.9], dtype=pre.dtype)

    def value(pre: Tensor, weight_hh: Tensor, decay: Tensor) -> Tensor:
        return loss(problem, {"pre": pre, "weight_hh": weight_hh, "decay": decay})

    gradient = grad(value, argnums=(0, 1, 2))
    inner = vmap(gradient, (0, 0, None))
    for nested, dims in (
        (vmap(inner), (0, 0, 0)),
        (vmap(vmap(gradient, (None, 0, None)), (None, 0, 0)), None),
    ):
        arguments = (pre if dims else problem.pre, weight_hh, decay)
        found = nested(*arguments)
        for i, j in itertools.product(range(3), range(2)):
            expected = gradient(pre[i, j] if dims else problem.pre, weight_hh[i, j], decay[i])
            for a, b in zip(found, expected, strict=True):
                assert distance(a[i, j], b) < 1e-13


def test_forward_mode_under_and_over_vmap():
    problem = make_problem(0, nonlinearity="tanh")
    many, dims, single = examples(problem, ("pre", "weight_hh"), 0)

    def tangent(tensors: dict[str, Tensor]) -> Tensor:
        return torch.func.jvp(lambda t: loss(problem, t), (tensors,), (tensors,))[1]

    under = vmap(tangent, (dims,))(many)
    for i, tensors in enumerate(single):
        assert distance(under[i], tangent(tensors)) < 1e-13
    along = {name: torch.zeros_like(x) if dims[name] is None else x for name, x in many.items()}
    over = torch.func.jvp(vmap(lambda t: loss(problem, t), (dims,)), (many,), (along,))[1]
    for i, tensors in enumerate(single):
        still = {name: torch.zeros_like(x) if dims[name] is None else x for name, x in tensors.items()}
        assert distance(over[i], torch.func.jvp(lambda t: loss(problem, t), (tensors,), (still,))[1]) < 1e-13


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [("weight_hh",), ("pre",), ("pre", "weight_hh", "decay")], ids="+".join)
def test_vmap_is_one_call_forward_and_one_backward(names, packed):
    problem = make_problem(0, packed=packed)
    many, dims, _ = examples(problem, names, 0)
    with Calls() as calls:
        vmap(grad(lambda t: loss(problem, t)), (dims,))(many)
    assert calls.names == ["rnnkernels::leaky_recurrence", "rnnkernels::leaky_recurrence_backward"]


def test_an_ensemble_of_layers_trains_as_each_layer_alone():
    layers = [LeakyRNN(3, 5, decay=0.3, dtype=torch.float64) for _ in range(4)]
    weights, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    x = torch.randn(6, 2, 3, dtype=torch.float64)

    def value(weights, buffers) -> Tensor:
        return (functional_call(base, (weights, buffers), (x,))[0] ** 2).mean()

    gradients = vmap(grad(value))(weights, buffers)
    for i, layer in enumerate(layers):
        (layer(x)[0] ** 2).mean().backward()
        for name, weight in layer.named_parameters():
            assert distance(gradients[name][i], weight.grad) < 1e-13


def test_batch_sizes_of_each_example_are_refused():
    problem = make_problem(0, packed=True)
    with pytest.raises(ValueError, match="batch_sizes must be the same for all examples"):
        vmap(lambda sizes: replace(problem, batch_sizes=sizes).run())(torch.stack([problem.batch_sizes] * 2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["weight_hh", "decay"])
def test_vmap_over_no_networks_is_empty(form, name):
    problem = make_problem(3, form=form, decay="unit")
    many = problem.tensors[name].unsqueeze(0)[:0]

    def run(x):
        return replace(problem, **{name: x}).run()

    output, h_n = vmap(run)(many)
    assert output.shape == (0, *problem.pre.shape)
    assert h_n.shape == (0, *problem.h0.shape)


# --- No examples -------------------------------------------------------------------------------------

TRANSFORMS = {
    "values": lambda f: f,
    "grad": lambda f: grad(lambda x: f(x)[0].square().sum()),
    "jacrev": lambda f: jacrev(lambda x: f(x)[0]),
    "jacfwd": lambda f: jacfwd(lambda x: f(x)[0]),
    "hessian": lambda f: hessian(lambda x: f(x)[0].square().sum()),
    "jvp": lambda f: lambda x: jvp(lambda y: f(y)[0], (x,), (x,)),
}
LAYERS = {
    "plain": LeakyRNN(3, 4),
    "current": LeakyRNN(3, 4, form="current", nonlinearity="softplus", decay=0.5),
    "deep": LeakyRNN(
        3, 4, 2, "tanh", bidirectional=True, decay=0.5, learn_decay=True, learn_h0=True, checkpoint_every=2
    ),
}


def assert_empty_like(run) -> None:
    """Assert that ``run(0)`` has the shapes of ``run(2)``, in which only the examples have the size 2."""
    found, expected = (torch.utils._pytree.tree_leaves(run(n)) for n in (0, 2))
    shapes = [tuple(0 if size == 2 else size for size in x.shape) for x in expected]
    assert [tuple(x.shape) for x in found] == shapes
    assert any(0 in shape for shape in shapes)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_no_examples_of_an_input(name, transform):
    function = TRANSFORMS[transform](LAYERS[name])
    assert_empty_like(lambda n: vmap(function)(torch.ones(n, 6, 5, 3)))
    assert_empty_like(lambda n: vmap(function, 1)(torch.ones(6, n, 3)))  # unbatched input
    assert_empty_like(lambda n: vmap(vmap(function))(torch.ones(7, n, 6, 5, 3)))
    assert_empty_like(lambda n: vmap(vmap(function))(torch.ones(n, 7, 6, 5, 3)))


@pytest.mark.parametrize("transform", ["jacrev", "jacfwd", "hessian"])
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_of_an_empty_batch(name, transform):
    function = TRANSFORMS[transform](LAYERS[name])
    assert_empty_like(lambda n: function(torch.ones(6, n, 3)))


@pytest.mark.parametrize("transform", ["values", "grad", "hessian"])
@pytest.mark.parametrize("name", LAYERS)
def test_no_networks_of_an_ensemble(name, transform):
    layer = LAYERS[name]
    weights = {key: x.detach() for key, x in layer.named_parameters()}
    function = TRANSFORMS[transform](lambda w: functional_call(layer, w, (torch.ones(6, 5, 3),)))
    assert_empty_like(lambda n: vmap(function)({k: x.expand(n, *x.shape) for k, x in weights.items()}))


@pytest.mark.parametrize("transform", ["values", "grad", "jacfwd", "hessian"])
@pytest.mark.parametrize("shape", [(), (4,)])
@pytest.mark.parametrize(
    "names", [("decay",), ("pre", "decay"), ("h0",), ("weight_hh", "decay")], ids="+".join
)
def test_no_examples_of_other_arguments(names, shape, transform):
    problem = make_problem(0, 6, 5, 4, decay="unit", nonlinearity="tanh", form="current")
    tensors = problem.tensors | {"decay": torch.full(shape, 0.5, dtype=torch.float64)}

    def run(some):
        return replace(problem, **(tensors | some)).run()

    function = TRANSFORMS[transform](run)
    assert_empty_like(lambda n: vmap(function)({k: tensors[k].expand(n, *tensors[k].shape) for k in names}))


def test_no_examples_of_a_cell():
    cell = LeakyRNNCell(3, 4, nonlinearity="tanh", decay=0.5)
    for function in (cell, jacrev(cell), jacfwd(cell)):
        assert_empty_like(lambda n, f=function: vmap(f)(torch.ones(n, 5, 3), torch.ones(n, 5, 4)))
        assert_empty_like(lambda n, f=function: vmap(f, (1, None))(torch.ones(5, n, 3), torch.ones(5, 4)))
    assert_empty_like(lambda n: vmap(lambda h: cell(torch.ones(5, 3), h))(torch.ones(n, 5, 4)))
    assert_empty_like(lambda n: jacrev(cell)(torch.ones(n, 3)))
