"""The recurrence under autograd, torch.func and torch.compile."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import DTYPES, KINDS, Problem, clear_problem, distance, make_problem, normal_like
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from rnnkernels import LeakyRNN, functional

NAMES = ("pre", "h0", "weight_hh", "decay")


def call(problem: Problem, **tensors: Any) -> tuple[Tensor, Tensor]:
    """The problem with some of its tensors replaced."""
    return replace(problem, **tensors).run()


def loss(problem: Problem, **tensors: Any) -> Tensor:
    """Return a scalar to which every state contributes differently."""
    output, h_n = call(problem, **tensors)
    weights = torch.linspace(-1, 1, h_n.numel(), dtype=h_n.dtype).view(h_n.shape)
    return (output**2).sum() + (h_n * weights).sum()


@pytest.fixture
def problem():
    return make_problem(0, nonlinearity="tanh")


# --- Gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("decay", ["scalar", "unit"])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_gradcheck(form, nonlinearity, decay, packed, reverse):
    # The finite differences must not cross the kink of ReLU.
    problem = clear_problem(
        0, 4, 3, 5, form=form, nonlinearity=nonlinearity, decay=decay, packed=packed, reverse=reverse,
        margin=1e-3,
    ).leaves()  # fmt: skip

    def outputs(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return call(problem, **dict(zip(NAMES, tensors, strict=True)))

    assert torch.autograd.gradcheck(outputs, tuple(problem.tensors.values()))


SOME = [names for n in range(1, 5) for names in itertools.combinations(NAMES, n)]


@pytest.mark.parametrize("wanted", SOME, ids="+".join)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_any_subset_of_the_inputs_may_require_gradients(form, nonlinearity, wanted):
    problem = make_problem(0, form=form, nonlinearity=nonlinearity)
    everything = problem.leaves()
    expected = torch.autograd.grad(loss(everything), list(everything.tensors.values()))
    some = replace(problem, **{name: everything.tensors[name].detach().requires_grad_() for name in wanted})
    loss(some).backward()
    for (name, x), value in zip(some.tensors.items(), expected, strict=True):
        if name in wanted:
            assert torch.equal(x.grad, value), name
        else:
            assert x.grad is None, name


@pytest.mark.parametrize("used", ["output", "h_n"])
def test_the_gradient_of_one_result_is_that_with_zeros_for_the_other(problem, used):
    leaves = problem.leaves()
    output, h_n = leaves.run()
    tensors = list(leaves.tensors.values())
    grads = {"output": normal_like(output, 1), "h_n": normal_like(h_n, 2)}
    grads["h_n" if used == "output" else "output"].zero_()
    both = torch.autograd.grad((output, h_n), tensors, tuple(grads.values()), retain_graph=True)
    one = torch.autograd.grad(output if used == "output" else h_n, tensors, grads[used])
    for a, b in zip(one, both, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("steps", [0, 1])
def test_few_steps_pass_the_gradient_of_h_n_to_h0(steps):
    problem = make_problem(0, steps, nonlinearity="tanh").leaves()
    _, h_n = problem.run()
    found = torch.autograd.grad(h_n.sum(), list(problem.tensors.values()))
    assert [x.shape for x in found] == [x.shape for x in problem.tensors.values()]
    if steps == 0:
        assert torch.equal(found[1], torch.ones_like(h_n))
        assert not any(x.any() for x in (found[0], found[2], found[3]))


def test_a_retained_graph_gives_the_same_gradients_again(problem):
    leaves = problem.leaves()
    tensors = list(leaves.tensors.values())
    value = loss(leaves)
    first = torch.autograd.grad(value, tensors, retain_graph=True)
    second = torch.autograd.grad(value, tensors)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, tensors)


def test_backward_accumulates(problem):
    leaves = problem.leaves()
    loss(leaves).backward()
    once = {name: x.grad.clone() for name, x in leaves.tensors.items()}
    loss(leaves).backward()
    for name, x in leaves.tensors.items():
        assert torch.equal(x.grad, 2 * once[name]), name


@pytest.mark.parametrize("name", ["h0", "weight_hh", "decay"])
def test_an_input_that_was_changed_before_backward_raises(problem, name):
    leaves = problem.leaves()
    changed = leaves.tensors[name] * 1
    value = loss(leaves, **{name: changed})
    with torch.no_grad():
        changed.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_an_output_that_was_changed_before_backward_raises(problem):
    output, _ = problem.leaves().run()
    value = output.sum()
    with torch.no_grad():
        output.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    output, _ = problem.leaves().run()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.relu_().sum().backward()


def test_tensors_that_backward_does_not_need_may_be_changed(problem):
    leaves = problem.leaves()
    expected = torch.autograd.grad(loss(leaves), list(leaves.tensors.values()))
    pre = leaves.pre * 1
    value = loss(leaves, pre=pre)
    with torch.no_grad():
        pre.zero_()
    for a, b in zip(torch.autograd.grad(value, list(leaves.tensors.values())), expected, strict=True):
        assert torch.equal(a, b)


def test_no_gradients_are_computed_unless_requested(problem):
    leaves = problem.leaves()
    expected = problem.run()
    assert not any(x.requires_grad for x in expected)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            results = leaves.run()
        assert not any(x.requires_grad for x in results)
        for a, b in zip(results, expected, strict=True):
            assert torch.equal(a, b)


def test_saved_tensors_hooks_may_move_tensors(problem):
    leaves = problem.leaves()
    expected = torch.autograd.grad(loss(leaves), list(leaves.tensors.values()))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone()):
        value = loss(leaves)
    for a, b in zip(torch.autograd.grad(value, list(leaves.tensors.values())), expected, strict=True):
        assert torch.equal(a, b)


def test_checkpointing_gives_the_same_gradients(problem):
    leaves = problem.leaves()
    expected = torch.autograd.grad(loss(leaves), list(leaves.tensors.values()))
    value = checkpoint(lambda pre: loss(leaves, pre=pre), leaves.pre, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(value, list(leaves.tensors.values())), expected, strict=True):
        assert torch.equal(a, b)


def test_the_raw_operator_saves_what_backward_needs_whatever_save_says(problem):
    leaves = problem.leaves()
    gradients = []
    for save in (0, 1):
        arguments = (*leaves.tensors.values(), None, "tanh", "rate", False, save)
        output, _, saved = torch.ops.rnnkernels.leaky_recurrence(*arguments)
        assert saved.numel()
        gradients.append(torch.autograd.grad(output.sum(), list(leaves.tensors.values())))
        with torch.no_grad():
            saved = torch.ops.rnnkernels.leaky_recurrence(*arguments)[2]
        assert saved.numel() == (output.numel() if save else 0)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# --- torch.func --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_torch_func_grad_equals_autograd(form, nonlinearity):
    problem = make_problem(0, form=form, nonlinearity=nonlinearity)
    leaves = problem.leaves()
    expected = torch.autograd.grad(loss(leaves), list(leaves.tensors.values()))
    found = torch.func.grad(lambda tensors: loss(problem, **tensors))(problem.tensors)
    for name, value in zip(NAMES, expected, strict=True):
        assert torch.equal(found[name], value), name


def test_torch_func_vjp_and_jacrev_equal_autograd(problem):
    (output, _), vjp = torch.func.vjp(lambda pre: call(problem, pre=pre), problem.pre)
    grads = normal_like(output, 1), torch.zeros_like(problem.h0)
    leaf = problem.pre.clone().requires_grad_()
    (expected,) = torch.autograd.grad(call(problem, pre=leaf), leaf, grads)
    assert torch.equal(vjp(grads)[0], expected)
    jacobian = torch.func.jacrev(lambda pre: call(problem, pre=pre)[0])(problem.pre)
    assert distance(torch.tensordot(grads[0], jacobian, 3), expected) < 1e-13


def test_torch_func_functional_call_of_the_layer():
    layer, x = LeakyRNN(3, 5, decay=0.5, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    weights = dict(layer.named_parameters())
    found = torch.func.grad(lambda w: (torch.func.functional_call(layer, w, x)[0] ** 2).sum())(
        {name: w.detach() for name, w in weights.items()}
    )
    (layer(x)[0] ** 2).sum().backward()
    for name, w in weights.items():
        assert distance(found[name], w.grad) < 1e-14, name


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_any_argument_equals_a_loop(problem, name):
    many = torch.stack([problem.tensors[name] * scale for scale in (1, 0.5, 0.25)])
    output, h_n = torch.func.vmap(lambda x: call(problem, **{name: x}))(many)
    for i, x in enumerate(many):
        expected_output, expected_h_n = call(problem, **{name: x})
        assert torch.equal(output[i], expected_output)
        assert torch.equal(h_n[i], expected_h_n)


def test_autograd_through_vmap_and_batched_gradients_equal_loops(problem):
    weight_hh = problem.weight_hh.clone().requires_grad_()
    output, _ = call(problem, weight_hh=weight_hh)
    grads = torch.stack([normal_like(output.detach(), seed) for seed in range(3)])
    expected = torch.stack(
        [torch.autograd.grad(output, weight_hh, grad, retain_graph=True)[0] for grad in grads]
    )
    found = torch.autograd.grad(output, weight_hh, grads, is_grads_batched=True)[0]
    assert distance(found, expected) < 1e-14

    many = torch.stack([problem.pre * scale for scale in (1, 0.5)])
    together = torch.func.vmap(lambda pre: loss(problem, pre=pre, weight_hh=weight_hh))(many).sum()
    alone = sum(loss(problem, pre=pre, weight_hh=weight_hh) for pre in many)
    found, expected = (torch.autograd.grad(x, weight_hh)[0] for x in (together, alone))
    assert distance(found, expected) < 1e-14


def test_an_output_that_was_changed_under_torch_func_raises(problem):
    def changed(pre: Tensor) -> Tensor:
        output, _ = call(problem, pre=pre)
        return output.mul_(2).sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.func.grad(changed)(problem.pre)


def test_vmap_of_grad_equals_a_loop(problem):
    # Gradients per example are one of the main uses of torch.func.
    many = torch.stack([problem.pre * scale for scale in (1, 0.5, 0.25)])

    def gradient(pre: Tensor) -> Tensor:
        return torch.func.grad(lambda w: loss(problem, pre=pre, weight_hh=w))(problem.weight_hh)

    found = torch.func.vmap(gradient)(many)
    for i, pre in enumerate(many):
        assert distance(found[i], gradient(pre)) < 1e-14


# --- torch.compile -----------------------------------------------------------------------------------


def compiled(function, backend="aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def trained(function, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return outputs and gradients."""
    leaves = [x.detach().requires_grad_() for x in tensors.values()]
    outputs = function(*leaves)
    return (*outputs, *torch.autograd.grad([x.sum() for x in outputs], leaves))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_compiled_equals_eager_forward_and_backward(form, nonlinearity, packed):
    problem = make_problem(0, form=form, nonlinearity=nonlinearity, packed=packed)

    def function(pre, h0, weight_hh, decay):
        return functional.leaky_recurrence(pre, h0, weight_hh, decay, **problem.keywords)

    eager = trained(function, problem.tensors)
    for a, b in zip(trained(compiled(function), problem.tensors), eager, strict=True):
        assert torch.equal(a, b)


def test_compiled_without_h0_and_with_a_number_for_decay():
    problem = make_problem(0, h0=False, decay="number", packed=True)

    def function(pre, weight_hh):
        return functional.leaky_recurrence(pre, None, weight_hh, problem.decay, **problem.keywords)

    eager = trained(function, problem.tensors)
    for a, b in zip(trained(compiled(function), problem.tensors), eager, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_layer_accepts_changing_shapes(dtype):
    layer = LeakyRNN(3, 5, decay=torch.linspace(0, 0.9, 5), dtype=dtype)
    counter = CompileCounterWithBackend("aot_eager")
    function, counts = compiled(layer, counter, dynamic=True), []
    for steps, batch in ((4, 2), (7, 3), (12, 6)):
        x = torch.randn(steps, batch, 3, dtype=dtype)
        for a, b in zip(trained(function, {"x": x}), trained(layer, {"x": x}), strict=True):
            assert torch.equal(a, b)
        # The float attributes of the layer make Dynamo trace the first call twice.
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1


def test_compiled_calls_raise_the_same_errors(problem):
    function = compiled(lambda pre, weight: functional.leaky_recurrence(pre, None, weight, 0.5))
    with pytest.raises(Exception, match="weight_hh must be"):
        function(problem.pre, torch.zeros(5, 5, dtype=torch.float64))
