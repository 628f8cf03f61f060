"""The NumPy reference compared with finite differences and with a plain RNN."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers import FORMS, KINDS, NONLINEARITIES, clear_problem, make_problem

from rnnkernels import _C
from rnnkernels import testing as reference


def test_nonlinearities_are_those_of_the_cpp_list_in_order():
    assert list(reference.NONLINEARITIES) == _C.nonlinearities()


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_slope_is_the_derivative_of_value(name):
    f = reference.NONLINEARITIES[name]
    z = np.linspace(-3, 3, 40)  # an even number of points, so that zero, the kink of ReLU, is not one of them
    eps = 1e-6
    differences = (f.value(z + eps) - f.value(z - eps)) / (2 * eps)
    np.testing.assert_allclose(f.slope(z), differences, rtol=0, atol=1e-9)


def test_relu_has_slope_zero_at_zero_as_in_torch():
    assert reference.NONLINEARITIES["relu"].slope(np.zeros(1)) == 0


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("decay", ["scalar", "unit"])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_gradients_equal_central_differences(form, nonlinearity, decay, packed, reverse):
    eps = 1e-6
    problem = clear_problem(
        3, 4, 3, 3, form=form, nonlinearity=nonlinearity, decay=decay, packed=packed, reverse=reverse,
        margin=1e-3,  # eps, amplified by the recurrence, must not cross the kink
    )  # fmt: skip
    arguments = problem.arrays()
    random = np.random.default_rng(0)
    output, h_n = reference.leaky_recurrence(**arguments)
    grad_output, grad_h_n = random.standard_normal(output.shape), random.standard_normal(h_n.shape)

    def loss(name, values):
        output, h_n = reference.leaky_recurrence(**(arguments | {name: values}))
        return (grad_output * output).sum() + (grad_h_n * h_n).sum()

    found = reference.leaky_recurrence_backward(grad_output, grad_h_n, **arguments)._asdict()
    for name, gradient in found.items():
        # The gradient of a scalar decay also has one value per unit, so perturb one unit at a time.
        point = np.broadcast_to(arguments[name], gradient.shape).copy()
        differences = np.zeros_like(point)
        for index in np.ndindex(*point.shape):
            moved = [point.copy(), point.copy()]
            moved[0][index] += eps
            moved[1][index] -= eps
            differences[index] = (loss(name, moved[0]) - loss(name, moved[1])) / (2 * eps)
        np.testing.assert_allclose(gradient, differences, rtol=0, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_the_rate_form_without_decay_equals_a_plain_rnn(nonlinearity):
    problem = make_problem(0, 6, 2, 5, nonlinearity=nonlinearity)
    arguments = problem.arrays() | {"decay": 0.0}
    f = {
        "relu": lambda z: z * (z > 0),
        "tanh": np.tanh,
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
        "softplus": lambda z: np.log(1 + np.exp(z)),
    }[nonlinearity]
    h, states = arguments["h0"], []
    for p in arguments["pre"]:
        h = f(p + np.einsum("ij,bj->bi", arguments["weight_hh"], h))
        states.append(h)
    output, h_n = reference.leaky_recurrence(**arguments)
    np.testing.assert_allclose(output, np.stack(states), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(h_n, output[-1])


@pytest.mark.parametrize("form", FORMS)
def test_one_step_of_one_unit_follows_the_equation(form):
    p, h, w, d = 0.3, 0.8, -1.5, 0.25
    arguments = ([[[p]]], [[h]], [[w]], d)
    output, _ = reference.leaky_recurrence(*arguments, nonlinearity="tanh", form=form)
    expected = {
        "rate": d * h + (1 - d) * np.tanh(p + w * h),
        "current": d * h + (1 - d) * (p + w * np.tanh(h)),
    }
    assert output.item() == pytest.approx(expected[form], rel=1e-15)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_packed_row_equals_that_row_alone(form, reverse):
    problem = make_problem(2, 5, 4, 3, form=form, packed=True, reverse=reverse)
    arguments = problem.arrays()
    output, h_n = reference.leaky_recurrence(**arguments)
    sizes = arguments.pop("batch_sizes")
    assert len(set(sizes)) > 1
    starts = [0, *itertools.accumulate(sizes)]
    for row, h0 in enumerate(arguments["h0"]):
        at = [start + row for start, n in zip(starts, sizes, strict=False) if row < n]
        alone = arguments | {"pre": arguments["pre"][at][:, None], "h0": h0[None]}
        output_alone, h_n_alone = reference.leaky_recurrence(**alone)
        np.testing.assert_allclose(output[at], output_alone[:, 0], rtol=0, atol=1e-14)
        np.testing.assert_allclose(h_n[row], h_n_alone[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_reverse_equals_a_scan_over_reversed_steps(form):
    arguments = make_problem(4, form=form).arrays()
    output, h_n = reference.leaky_recurrence(**(arguments | {"reverse": True}))
    turned, turned_h_n = reference.leaky_recurrence(**(arguments | {"pre": arguments["pre"][::-1]}))
    np.testing.assert_array_equal(output, turned[::-1])
    np.testing.assert_array_equal(h_n, turned_h_n)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form must be"):
        reference.leaky_recurrence(np.zeros((1, 1, 1)), None, np.eye(1), 0.5, form="leaky")
