"""rnnkernels::projected_recurrence: projection and recurrence in one operator, and its derivatives."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from helpers import DTYPES, KINDS, TOLERANCE, clear_problem, distance, make_problem, normal_like
from torch import Tensor
from torch.autograd import forward_ad

from rnnkernels import LeakyRNN
from rnnkernels.functional import projected_recurrence

PROJECTED = torch.ops.rnnkernels.projected_recurrence.default
RECURRENCE = torch.ops.rnnkernels.leaky_recurrence.default
INPUTS = 3
NAMES = ("input", "h0", "weight_ih", "weight_hh", "bias", "drive", "decay")

Arguments = dict[str, Any]


def arguments(
    inputs: int = INPUTS,
    bias: bool = True,
    drive: bool = True,
    gradients: bool = False,
    clear: bool = False,
    **options: Any,
) -> Arguments:
    """Return arguments of the operator by name. With `clear`, no unit comes near the kink of ReLU."""
    problem = clear_problem(0, margin=1e-3, **options) if clear else make_problem(0, **options)
    pre, hidden = problem.pre, problem.pre.shape[-1]
    tensors = {
        "input": normal_like(pre.new_zeros(*pre.shape[:-1], inputs), 1),
        "h0": problem.h0,
        "weight_ih": normal_like(pre.new_zeros(hidden, inputs), 2),
        "weight_hh": problem.weight_hh,
        "bias": normal_like(pre.new_zeros(hidden), 3) if bias else None,
        "drive": normal_like(pre, 6) if drive else None,
        "decay": torch.as_tensor(problem.decay, dtype=pre.dtype),
    }
    if gradients:
        tensors = {k: x if x is None else x.detach().requires_grad_() for k, x in tensors.items()}
    others = {k: problem.keywords[k] for k in ("batch_sizes", "nonlinearity", "form", "reverse")}
    return tensors | others | {"save": 1}


def leaves_of(values: Arguments) -> dict[str, Tensor]:
    return {name: values[name] for name in NAMES if values[name] is not None}


def function(values: Arguments):
    """Return the results as a function of the given tensors, in the order of NAMES."""
    names = list(leaves_of(values))
    return lambda *tensors: PROJECTED(*(values | dict(zip(names, tensors, strict=True))).values())[:2]


def composed(values: Arguments) -> tuple[Tensor, ...]:
    rest = {k: x for k, x in values.items() if k not in ("input", "weight_ih", "bias", "drive")}
    pre = torch.nn.functional.linear(values["input"], values["weight_ih"], values["bias"])
    pre = pre if values["drive"] is None else pre + values["drive"]
    return RECURRENCE(pre, *rest.values())


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float32": {"dtype": torch.float32},
    "no h0, no bias, no drive, one decay": {"h0": False, "bias": False, "drive": False, "decay": "scalar"},
    "packed": {"packed": True},
    "packed reverse, no bias": {"packed": True, "reverse": True, "bias": False},
    "reverse": {"reverse": True},
    "wide": {"hidden": 70, "batch": 2, "steps": 3, "inputs": 37},
    "one unit": {"hidden": 1, "inputs": 1},
    "a narrow layer without bias": {"hidden": 5, "steps": 6, "batch": 3, "bias": False},
    "no drive": {"drive": False},
    "no inputs": {"inputs": 0},
    "no steps": {"steps": 0},
    "no rows": {"batch": 0},
}


@pytest.mark.every(5)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_opcheck(form, nonlinearity, options):
    values = arguments(gradients=True, form=form, nonlinearity=nonlinearity, **OPTIONS[options])
    torch.library.opcheck(PROJECTED, tuple(values.values()))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_it_equals_projection_and_recurrence(form, nonlinearity, options):
    values = arguments(gradients=True, clear=True, form=form, nonlinearity=nonlinearity, **OPTIONS[options])
    near = 10 * TOLERANCE[values["input"].dtype]
    results = []
    for run in (lambda v: PROJECTED(*v.values()), composed):
        output, h_n, _ = run(values)
        grads = torch.autograd.grad(
            (output, h_n), list(leaves_of(values).values()), (normal_like(output, 4), normal_like(h_n, 5))
        )
        results.append((output, h_n, *grads))
    for name, found, expected in zip(("output", "h_n", *leaves_of(values)), *results, strict=True):
        assert found.shape == expected.shape, name
        assert distance(found.detach(), expected.detach()) < near, name
    meta = PROJECTED(*(x.to("meta") if isinstance(x, Tensor) else x for x in values.values()))
    for found, shape in zip(meta, PROJECTED(*values.values()), strict=True):
        assert (found.shape, found.dtype, found.stride()) == (shape.shape, shape.dtype, shape.stride())


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("name", NAMES)
def test_any_strides(name, layout):
    values = arguments(hidden=7, batch=7, inputs=7, dtype=torch.float64)
    x = values[name]
    values[name] = {
        "transposed": lambda: x.transpose(0, -1).contiguous().transpose(0, -1),
        "sliced": lambda: torch.stack([x, x], -1)[..., 1],
        "expanded": lambda: x[:1].expand(x.shape),
    }[layout]()
    for found, expected in zip(PROJECTED(*values.values()), composed(values), strict=True):
        assert distance(found.double(), expected.double()) < 1e-13


@pytest.mark.parametrize(
    "options", ["plain", "no h0, no bias, no drive, one decay", "packed", "reverse", "one unit"]
)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_derivatives(form, nonlinearity, options):
    chosen = {"steps": 4, "batch": 2} | OPTIONS[options]
    values = arguments(gradients=True, clear=True, form=form, nonlinearity=nonlinearity, **chosen)
    tensors = tuple(leaves_of(values).values())
    assert torch.autograd.gradcheck(function(values), tensors, fast_mode=True)
    assert torch.autograd.gradcheck(function(values), tensors, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function(values), tensors, fast_mode=True)


def test_third_derivatives():
    values = arguments(gradients=True, nonlinearity="tanh")
    tensors = tuple(leaves_of(values).values())

    def third(output: Tensor) -> tuple[Tensor, ...]:
        value = (output**2).sum()
        for _ in range(2):
            grads = torch.autograd.grad(value, tensors, create_graph=True)
            value = sum((g**2).sum() for g in grads)
        return torch.autograd.grad(value, tensors)

    for found, expected in zip(
        third(PROJECTED(*values.values())[0]), third(composed(values)[0]), strict=True
    ):
        assert distance(found, expected) < 1e-12


SOME = [names for n in (1, 2, 5) for names in itertools.combinations(NAMES, n)]


@pytest.mark.parametrize("wanted", SOME, ids="+".join)
def test_any_subset_of_the_tensors_may_require_gradients(wanted):
    values = arguments(gradients=True, nonlinearity="tanh")
    expected = torch.autograd.grad(
        PROJECTED(*values.values())[0].sin().sum(), list(leaves_of(values).values())
    )
    some = values | {k: x.detach().requires_grad_(k in wanted) for k, x in leaves_of(values).items()}
    PROJECTED(*some.values())[0].sin().sum().backward()
    for name, value in zip(NAMES, expected, strict=True):
        if name in wanted:
            assert torch.equal(some[name].grad, value), name
        else:
            assert some[name].grad is None, name


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_was_changed_before_backward_raises(name):
    values = arguments(gradients=True)
    changed = values[name] * 1
    value = PROJECTED(*(values | {name: changed}).values())[0].sum()
    with torch.no_grad():
        changed.mul_(0.5)
    if name in ("bias", "drive"):  # backward does not need them
        value.backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


# --- Transforms of backward alone: the forward call was an ordinary one -------------------------------


def both(create_graph: bool):
    """Return backward of the operator and of its parts, as functions of the gradient of the output."""
    values = arguments(gradients=True, nonlinearity="tanh")
    tensors = list(leaves_of(values).values())
    output, parts = PROJECTED(*values.values())[0], composed(values)[0]
    for result in (output, parts):
        yield lambda grad, result=result: torch.autograd.grad(
            result, tensors, grad, retain_graph=True, create_graph=create_graph
        )


def gradient_of_output(count: int = 0) -> Tensor:
    output = arguments()["input"].new_zeros(*([count] if count else []), 5, 3, 4)
    return normal_like(output, 6)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_tangent_of_the_gradient_goes_through_backward(create_graph):
    grad, along = gradient_of_output(), gradient_of_output() * 2 + 1
    tangents = []
    for backward in both(create_graph):
        with forward_ad.dual_level():
            found = backward(forward_ad.make_dual(grad, along))
            tangents.append([forward_ad.unpack_dual(x).tangent for x in found])
        # Backward is linear in the incoming gradient.
        for tangent, expected in zip(tangents[-1], backward(along), strict=True):
            assert distance(tangent, expected.detach()) < 1e-13


@pytest.mark.parametrize("transform", ["jvp", "grad", "vmap"])
def test_torch_func_over_backward(transform):
    results = []
    for backward in both(create_graph=transform == "grad"):
        if transform == "jvp":
            results.append(torch.func.jvp(backward, (gradient_of_output(),), (gradient_of_output(),))[1])
        elif transform == "grad":
            loss = lambda g, f=backward: sum((x**2).sum() for x in f(g))  # noqa: E731
            results.append([torch.func.grad(loss)(gradient_of_output())])
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="There is a performance drop")
                results.append(torch.func.vmap(backward)(gradient_of_output(3)))
    for found, expected in zip(*results, strict=True):
        assert distance(found.detach(), expected.detach()) < 1e-12
    if transform == "vmap":
        for i, grad in enumerate(gradient_of_output(3)):
            for many, one in zip(results[0], backward(grad), strict=True):
                assert distance(many[i], one) < 1e-13


@pytest.mark.parametrize("mode", ["reverse-mode", "forward-mode"])
def test_a_hessian_in_one_call(mode):
    values = arguments(nonlinearity="tanh")
    tensors = tuple(leaves_of(values).values())

    def loss(*tensors: Tensor) -> Tensor:
        return (function(values)(*tensors)[0] ** 2).sum()

    if mode == "forward-mode":  # the path of the layer, which supports tangents

        def loss(*tensors: Tensor) -> Tensor:
            *first, drive, decay = tensors
            return (projected_recurrence(*first, decay, drive=drive, nonlinearity="tanh")[0] ** 2).sum()

    hessian = torch.autograd.functional.hessian
    found = hessian(loss, tensors, vectorize=True, outer_jacobian_strategy=mode)
    expected = hessian(loss, tensors)
    for row, expected_row in zip(found, expected, strict=True):
        for a, b in zip(row, expected_row, strict=True):
            assert distance(a, b) < 1e-12


# --- Threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("steps", "batch", "hidden"), [(300, 9, 37), (6000, 9, 1), (700, 3, 64), (3, 20000, 3)], ids=str
)
@pytest.mark.parametrize("driven", [False, True])
def test_all_gradients_have_the_same_bits_for_any_number_of_threads(driven, steps, batch, hidden, dtype):
    layer = LeakyRNN(
        5,
        hidden,
        nonlinearity="tanh",
        decay=torch.full((hidden,), 0.5, dtype=dtype),
        learn_decay=True,
        dtype=dtype,
    )
    x = torch.randn(steps, batch, 5, dtype=dtype, requires_grad=True)
    drive = torch.randn(steps, batch, hidden, dtype=dtype, requires_grad=True) if driven else None
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        output, h_n = layer(x, drive=drive)
        leaves = {"x": x} | ({"drive": drive} if driven else {}) | dict(layer.named_parameters())
        grads = torch.autograd.grad((output**2).sum(0).sum(0).sum() + h_n.sum(), list(leaves.values()))
        results.append({"output": output} | dict(zip(leaves, grads, strict=True)))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


# --- Errors ------------------------------------------------------------------------------------------


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


GOOD: Arguments = {
    "input": zeros(5, 3, 2), "h0": zeros(3, 4), "weight_ih": zeros(4, 2), "weight_hh": zeros(4, 4),
    "bias": zeros(4), "drive": None, "decay": zeros(4), "batch_sizes": None, "nonlinearity": "relu",
    "form": "rate", "reverse": False, "save": 1,
}  # fmt: skip
PACKED: Arguments = {"input": zeros(5, 2), "batch_sizes": torch.tensor([3, 2])}
GROUPED: Arguments = {
    "input": zeros(2, 5, 3, 2), "h0": zeros(2, 3, 4), "weight_ih": zeros(2, 4, 2),
    "weight_hh": zeros(2, 4, 4), "bias": zeros(2, 4),
}  # fmt: skip
DRIVEN: Arguments = {"drive": zeros(5, 3, 4)}
DOUBLE = torch.float64

# First sizes, ranks and dtypes, which meta tensors have as well; then values.
WRONG = [
    ({"input": zeros(5, 3)}, r"^input must be \[T, B, I\], got \[5, 3\]"),
    ({"input": zeros(5, 3, 3)}, r"^weight_ih must be \[H, I\] = \[4, 3\], got \[4, 2\]"),
    ({"input": zeros(5, 3, 2, dtype=torch.float16)}, "^input must be float32 or float64, got Half"),
    ({"input": zeros(5, 3, 2, dtype=DOUBLE)}, "^weight_ih must have the dtype of input, Double, got Float"),
    ({"input": zeros(5, 2, 2)}, r"^h0 must be \[B, H\] = \[2, 4\], got \[3, 4\]"),
    ({"weight_ih": zeros(4)}, r"^weight_ih must be \[H, I\]"),
    ({"weight_ih": zeros(0, 2)}, "^weight_ih must be .* with at least one hidden unit"),
    ({"weight_ih": zeros(4, 2, dtype=DOUBLE)}, "^weight_ih must have the dtype of input, Float, got Double"),
    ({"weight_hh": zeros(4)}, r"^weight_hh must be \[H, H\] \(or \[G, H, H\]\), got \[4\]"),
    ({"weight_hh": zeros(1, 4, 4)}, r"^input must be \[G, T, B, I\], got \[5, 3, 2\]"),
    (GROUPED | {"weight_ih": zeros(4, 2)}, r"^weight_ih must be \[G, H, I\]"),
    (
        GROUPED | {"weight_ih": zeros(3, 4, 2)},
        r"^weight_ih must be \[G, H, I\] = \[2, 4, 2\], got \[3, 4, 2\]",
    ),
    (GROUPED | {"bias": zeros(4)}, r"^bias must be \[G, H\] = \[2, 4\], got \[4\]"),
    (GROUPED | {"h0": zeros(3, 4)}, r"^h0 must be \[G, B, H\] = \[2, 3, 4\], got \[3, 4\]"),
    ({"weight_hh": zeros(4, 5)}, r"^weight_hh must be \[H, H\] = \[4, 4\], got \[4, 5\]"),
    ({"weight_hh": zeros(4, 4, dtype=DOUBLE)}, "^weight_hh must have the dtype of input"),
    ({"bias": zeros(1)}, r"^bias must be \[H\] = \[4\], got \[1\]"),
    ({"bias": zeros(4, dtype=DOUBLE)}, "^bias must have the dtype of input"),
    ({"drive": zeros(3, 4)}, r"^drive must be the shape of input but for H = \[5, 3, 4\], got \[3, 4\]"),
    ({"drive": zeros(5, 3, 4, dtype=DOUBLE)}, "^drive must have the dtype of input"),
    ({"h0": zeros(1, 3, 4)}, r"^h0 must be \[B, H\]"),
    ({"h0": zeros(3, 4, dtype=DOUBLE)}, "^h0 must have the dtype of input"),
    ({"decay": zeros(3)}, "^decay must be a scalar or"),
    ({"decay": zeros(4, dtype=DOUBLE)}, "^decay must have the dtype of input"),
    ({"nonlinearity": "gelu"}, "^nonlinearity must be one of"),
    ({"form": "leaky"}, "^form must be"),
    ({"batch_sizes": torch.tensor([3, 2])}, r"^input must be \[sum\(batch_sizes\), I\], got \[5, 3, 2\]"),
    (PACKED | {"h0": None}, "^h0 must be given along with batch_sizes"),
]
WRONG_VALUES = [
    ({"decay": zeros(4) + 1}, r"^decay must lie in \[0, 1\), got 1 at unit 0"),
    (PACKED | {"batch_sizes": torch.tensor([3, 3])}, r"^input must have sum\(batch_sizes\) rows, got 5 rows"),
    (PACKED | {"batch_sizes": torch.tensor([2, 3])}, "^batch_sizes must begin with the rows of h0"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=str)
def test_errors_have_the_same_message_for_real_and_for_meta_tensors(wrong, message):
    values = GOOD | wrong
    meta = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in values.items()}
    for changed in (values, meta):
        with pytest.raises(ValueError, match=message):
            PROJECTED(*changed.values())


@pytest.mark.parametrize(("wrong", "message"), WRONG_VALUES, ids=str)
def test_wrong_values_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PROJECTED(*(GOOD | wrong).values())


@pytest.mark.parametrize("name", NAMES)
def test_one_meta_tensor_among_real_ones_is_refused(name):
    named = "weight_ih" if name == "input" else name
    good = GOOD | DRIVEN
    values = good | {name: good[name].to("meta")}
    with pytest.raises(ValueError, match=f"^{named} must be on the device of input"):
        PROJECTED(*values.values())


def test_the_unchanged_arguments_are_accepted():
    for values in (GOOD, GOOD | DRIVEN, GOOD | PACKED, GOOD | GROUPED):
        PROJECTED(*values.values())
        PROJECTED(*(x.to("meta") if isinstance(x, Tensor) else x for x in values.values()))


def test_the_operator_saves_what_backward_needs_whatever_save_says():
    found = []
    for save in (0, 1):
        values = arguments(gradients=True) | {"save": save}
        PROJECTED(*values.values())[0].square().sum().backward()
        found.append([x.grad for x in values.values() if isinstance(x, Tensor) and x.requires_grad])
    assert found[0]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"batch_sizes": [3, 2]}, TypeError, "batch_sizes must be a Tensor, got list"),
        ({"weight_hh": [[1.0]]}, TypeError, "weight_hh must be a Tensor, got list"),
        ({"weight_hh": torch.tensor(1.0)}, ValueError, r"weight_hh must be \[H, H\], got \[\]"),
    ],
)
def test_wrong_arguments_of_a_packed_call_without_h0_are_named(dtype, changed, error, message):
    arguments = {
        "input": torch.randn(5, 2, dtype=dtype),
        "h0": None,
        "weight_ih": torch.randn(4, 2, dtype=dtype),
        "weight_hh": torch.randn(4, 4, dtype=dtype),
        "bias": None,
        "decay": 0.5,
        "batch_sizes": torch.tensor([3, 2]),
    }
    with pytest.raises(error, match=message):
        projected_recurrence(**(arguments | changed))
