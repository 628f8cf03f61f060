"""Second derivatives and forward mode in every nesting, compared with differences and with each other."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import KINDS, NONLINEARITIES, clear_problem, distance, make_problem, normal_like
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from rnnkernels import LeakyRNN, functional
from rnnkernels._autograd.derivatives import LinearRecurrence
from rnnkernels._autograd.time_shift import TimeShift
from rnnkernels._ops.nonlinearities import NONLINEARITIES as TORCH_NONLINEARITIES

# A difference across the kink of ReLU is not a derivative, so such problems are not drawn.
MARGIN = 1e-4
LAYOUTS = tuple(itertools.product([False, True], [False, True]))  # packed, reverse


def drawn(form: str, nonlinearity: str, packed: bool, reverse: bool, **options):
    return clear_problem(
        0,
        4,
        3,
        4,
        form=form,
        nonlinearity=nonlinearity,
        packed=packed,
        reverse=reverse,
        margin=MARGIN,
        **options,
    )


def function(problem):
    """Return the problem as a function of its tensors, in the order of their names."""
    names = list(problem.tensors)

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return replace(problem, **dict(zip(names, tensors, strict=True))).run()

    return run


def scalar(problem):
    run = function(problem)

    def loss(*tensors: Tensor) -> Tensor:
        output, h_n = run(*tensors)
        return (output**2).sum() + h_n.sin().sum()

    return loss


@pytest.mark.parametrize(("packed", "reverse"), LAYOUTS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_gradcheck_in_both_modes_and_gradgradcheck(form, nonlinearity, packed, reverse):
    problem = drawn(form, nonlinearity, packed, reverse).leaves()
    tensors = tuple(problem.tensors.values())
    assert torch.autograd.gradcheck(function(problem), tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function(problem), tensors, fast_mode=True)


@pytest.mark.parametrize("decay", ["number", "scalar"])
@pytest.mark.parametrize("h0", [False, True])
def test_gradgradcheck_without_h0_and_with_one_decay(decay, h0):
    problem = make_problem(0, 4, 2, 3, h0=h0, decay=decay, nonlinearity="tanh").leaves()
    tensors = tuple(problem.tensors.values())
    assert torch.autograd.gradcheck(function(problem), tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function(problem), tensors, check_fwd_over_rev=True)


@pytest.mark.parametrize(("packed", "reverse"), LAYOUTS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_hessian_vector_products_agree_in_all_nestings(form, nonlinearity, packed, reverse):
    problem = drawn(form, nonlinearity, packed, reverse)
    loss, point = scalar(problem), tuple(problem.tensors.values())
    along = tuple(normal_like(x, i) for i, x in enumerate(point))
    every = tuple(range(len(point)))
    gradient = torch.func.grad(loss, argnums=every)

    forward_over_reverse = torch.func.jvp(gradient, point, along)[1]
    reverse_over_forward = torch.func.grad(
        lambda *x: torch.func.jvp(loss, x, along)[1], argnums=every
    )(*point)  # fmt: skip
    reverse_over_reverse = torch.func.grad(
        lambda *x: sum((g * v).sum() for g, v in zip(gradient(*x), along, strict=True)), argnums=every
    )(*point)
    step = 1e-6
    ahead, behind = (
        gradient(*(x + sign * step * v for x, v in zip(point, along, strict=True))) for sign in (1, -1)
    )
    for i, name in enumerate(problem.tensors):
        differences = (ahead[i] - behind[i]) / (2 * step)
        assert distance(forward_over_reverse[i], differences) < 1e-7, name
        assert distance(reverse_over_forward[i], forward_over_reverse[i]) < 1e-12, name
        assert distance(reverse_over_reverse[i], forward_over_reverse[i]) < 1e-12, name


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_hessian_and_third_derivatives(nonlinearity):
    problem = drawn("rate", nonlinearity, False, False)
    pre, h0, weight_hh, decay = problem.tensors.values()
    loss = scalar(problem)
    of_h0 = lambda h0: loss(pre, h0, weight_hh, decay)  # noqa: E731
    hessian = torch.func.hessian(of_h0)(h0)
    twice = torch.func.jacrev(torch.func.jacrev(of_h0))(h0)
    assert distance(hessian, twice) < 1e-12
    third = torch.func.jvp(torch.func.hessian(of_h0), (h0,), (h0,))[1]
    step = 1e-5
    differences = (
        torch.func.hessian(of_h0)(h0 * (1 + step)) - torch.func.hessian(of_h0)(h0 * (1 - step))
    ) / (2 * step)
    assert distance(third, differences) < 1e-6


@pytest.mark.parametrize("name", ["pre", "h0", "weight_hh", "decay"])
def test_forward_mode_of_one_argument_alone(name):
    problem = drawn("rate", "tanh", False, False)
    x = problem.tensors[name]
    along = normal_like(x, 1)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return replace(problem, **{name: x}).run()

    found = torch.func.jvp(run, (x,), (along,))[1]
    with forward_ad.dual_level():
        dual = [forward_ad.unpack_dual(y).tangent for y in run(forward_ad.make_dual(x, along))]
    step = 1e-6
    for y, same, ahead, behind in zip(found, dual, run(x + step * along), run(x - step * along), strict=True):
        assert distance(y, (ahead - behind) / (2 * step)) < 1e-8
        assert torch.equal(y, same)


@pytest.mark.parametrize("steps", [0, 1])
def test_few_steps(steps):
    problem = make_problem(0, steps, nonlinearity="tanh")
    point = tuple(problem.tensors.values())
    _, tangents = torch.func.jvp(function(problem), point, tuple(map(torch.ones_like, point)))
    if steps == 0:
        assert torch.equal(tangents[1], torch.ones_like(problem.h0))
    hv = torch.func.jvp(
        torch.func.grad(scalar(problem), argnums=1), point, tuple(map(torch.ones_like, point))
    )[1]
    assert hv.shape == problem.h0.shape
    if steps == 0:
        assert distance(hv, -problem.h0.sin()) < 1e-15


def test_forward_mode_and_a_gradient_penalty_through_the_layer():
    layer, x = (
        LeakyRNN(3, 5, nonlinearity="softplus", decay=0.5, dtype=torch.float64),
        torch.randn(4, 2, 3, dtype=torch.float64),
    )
    _, tangent = torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))
    differences = (layer(x * (1 + 1e-6))[0] - layer(x * (1 - 1e-6))[0]) / 2e-6
    assert distance(tangent, differences) < 1e-8

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    (gradient**2).sum().backward()
    along = layer.weight_hh_l0.grad.clone()
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            layer.weight_hh_l0.add_(along, alpha=sign * 1e-6)
            with torch.enable_grad():
                (moved,) = torch.autograd.grad(layer(x)[0].sum(), x)
            values.append((moved**2).sum())
            layer.weight_hh_l0.sub_(along, alpha=sign * 1e-6)
    assert float((values[0] - values[1]) / 2e-6) == pytest.approx(float((along**2).sum()), rel=1e-6)


@pytest.mark.parametrize("coefficients", [False, True])
@pytest.mark.parametrize(("packed", "reverse"), LAYOUTS)
def test_the_linear_scan_equals_its_equation_and_has_derivatives(packed, reverse, coefficients):
    problem = make_problem(0, 4, 3, 4, packed=packed, reverse=reverse)
    alpha, beta = (normal_like(problem.pre, seed) if coefficients else None for seed in (1, 2))

    def run(drive, h0, weight_hh, decay, *others):
        return LinearRecurrence.apply(
            drive, h0, weight_hh, decay, *(others or (None, None)), problem.batch_sizes, reverse
        )

    inputs = (*problem.tensors.values(), *((alpha, beta) if coefficients else ()))
    # With f(z) = z, alpha = 1 and beta = 1, it is the current form, driven by (1-d) pre.
    if not coefficients:
        y = run((1 - problem.decay) * problem.pre, problem.h0, problem.weight_hh, problem.decay)
        inverse = torch.diag(1 / (1 - problem.decay))
        y_equal = run((1 - problem.decay) * problem.pre, problem.h0, inverse @ ((1 - problem.decay)[:, None]
                      * problem.weight_hh), problem.decay)  # fmt: skip
        assert distance(y, y_equal) < 1e-13
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_the_torch_functions_equal_the_kernels(name):
    z = torch.linspace(-8, 8, 401, dtype=torch.float64)
    values, _ = functional.leaky_recurrence(
        z[None, None], None, torch.zeros(401, 401, dtype=z.dtype), 0.0, nonlinearity=name
    )
    f = TORCH_NONLINEARITIES[name]
    leaf = z[z != 0].requires_grad_()
    value = f.value(leaf)
    assert distance(value, values[0, 0][z != 0]) < 1e-15
    assert distance(f.slope(value), torch.autograd.grad(value.sum(), leaf)[0]) < 1e-14


@pytest.mark.parametrize("reverse", [False, True])
def test_time_shifts_of_packed_rows_stay_on_their_device(reverse):
    with FakeTensorMode(), torch.no_grad():
        rows, state = torch.empty(6, 4, device="cuda"), torch.empty(3, 4, device="cuda")
        steps = TimeShift(rows, state, torch.tensor([3, 2, 1]), reverse)
        moved = (
            steps.previous(rows, state),
            steps.next(rows),
            steps.last(rows),
            steps.add_to_last(rows, state),
        )
    assert {x.device.type for x in moved} == {"cuda"}


def test_a_hessian_of_all_parameters_with_a_learned_initial_state():
    """The initial state is one row that is expanded over the batch."""
    layer = LeakyRNN(2, 3, nonlinearity="tanh", learn_h0=True, dtype=torch.float64)
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def value(some):
        return torch.func.functional_call(layer, some, (x,))[0].sin().sum()

    found = torch.func.hessian(value)(weights)["h0"]["weight_hh_l0"]
    step = 1e-6
    for place in ((0, 0), (2, 1)):
        moved = weights["weight_hh_l0"].clone()
        moved[place] += step
        before = torch.func.grad(value)(weights)["h0"]
        after = torch.func.grad(value)(weights | {"weight_hh_l0": moved})["h0"]
        assert torch.allclose(found[..., place[0], place[1]], (after - before) / step, atol=1e-4)
