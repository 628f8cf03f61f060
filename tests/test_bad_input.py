"""What is no valid call ends in a sentence that names the argument, and never in a crash or a guess.

Also: what is valid at the edges (no steps, no rows, one unit), and NaN and infinity, which travel as
in nn.RNN.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import DTYPES, FORMS, KINDS, NONLINEARITIES, distance, layouts, make_problem, relaid, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rnnkernels import LeakyRNN, functional

STEPS, BATCH, HIDDEN = 5, 3, 4


def arguments(packed: bool = False) -> dict[str, Any]:
    good: dict[str, Any] = {
        "pre": torch.randn(STEPS, BATCH, HIDDEN),
        "h0": torch.randn(BATCH, HIDDEN),
        "weight_hh": torch.randn(HIDDEN, HIDDEN),
        "decay": torch.rand(HIDDEN),
    }
    if packed:
        good |= {"pre": torch.randn(9, HIDDEN), "batch_sizes": torch.tensor([3, 3, 2, 1])}
    return good


def refused(changed: dict[str, Any], error: Any, message: str, packed: bool = False) -> None:
    with pytest.raises(error, match=message):
        functional.leaky_recurrence(**(arguments(packed) | changed))


TENSORS = ("pre", "h0", "weight_hh", "decay")


def test_the_arguments_that_the_tests_spoil_are_good():
    for packed in (False, True):
        functional.leaky_recurrence(**arguments(packed))


# --- Shapes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *[({"pre": torch.zeros([4] * rank)}, "^pre must have 3 dimensions") for rank in (0, 1, 2, 4)],
        *[({"h0": torch.zeros([4] * rank)}, r"^h0 must be \[B, H\] = \[3, 4\]") for rank in (0, 1, 3)],
        *[({"weight_hh": torch.zeros([4] * rank)}, r"^weight_hh must be \[H, H\]") for rank in (0, 1, 3, 4)],
        *[({"decay": torch.zeros(shape)}, r"^decay must be a scalar or \[H\] = \[4\]")
          for shape in ((1,), (3,), (5,), (0,), (1, 4), (4, 1), (3, 4))],
        ({"pre": torch.zeros(5, 3, 5)}, r"^weight_hh must be \[H, H\] = \[5, 5\], got \[4, 4\]"),
        ({"pre": torch.zeros(5, 3, 0)}, r"^pre must have at least one hidden unit, got \[5, 3, 0\]"),
        ({"h0": torch.zeros(2, 4)}, r"^h0 must be \[B, H\] = \[3, 4\], got \[2, 4\]"),
        ({"h0": torch.zeros(1, 4)}, r"^h0 must be \[B, H\] = \[3, 4\], got \[1, 4\]"),
        ({"h0": torch.zeros(3, 1)}, "^h0 must be"),
        ({"weight_hh": torch.zeros(4, 5)}, r"^weight_hh must be \[H, H\] = \[4, 4\], got \[4, 5\]"),
        ({"weight_hh": torch.zeros(1, 1)}, "^weight_hh must be"),
        ({"weight_hh": torch.zeros(0, 0)}, "^weight_hh must be"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_shape_is_refused_by_name(changed, message):
    refused(changed, ValueError, message)


@pytest.mark.parametrize("given_h0", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_wrong_rank_of_a_packed_pre_is_refused_by_name(rank, given_h0):
    changed = {"pre": torch.zeros([4] * rank)} | ({} if given_h0 else {"h0": None})
    refused(changed, ValueError, "^pre must have 2 dimensions", packed=True)


def huge(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("given_h0", [True, False])
@pytest.mark.parametrize(
    "batch_sizes",
    [
        huge(3, 2, 3, 1),  # grows
        huge(3, 3, 3, 0),
        huge(3, 3, 4, -1),
        huge(-3, -3, 12, 3),
        huge(0, 0, 0, 9),
        huge(3, 3, 2),  # another sum than pre has rows
        huge(3, 3, 3, 3),
        huge(2**62, 2**62),  # sums that wrap around
        huge(2**63 - 1, 2**63 - 1, 11),
        huge(-(2**63), 9),
        huge(3, 3, 3, -(2**63)),
        huge(3, 2**63 - 1),
        huge(),
        huge(3, 3, 2, 1)[None],
        huge(9)[0],
        torch.tensor([3, 3, 2, 1], dtype=torch.int32),
        torch.tensor([3.0, 3.0, 2.0, 1.0]),
        torch.tensor([True] * 9),
        torch.tensor([3, 3, 2, 1], dtype=torch.complex64),
        torch.tensor([3, 3, 2, 1]).to_sparse(),
        torch.tensor([3, 3, 2, 1], device="meta"),
    ],
    ids=str,
)
def test_wrong_batch_sizes_are_refused_by_name(batch_sizes, given_h0):
    changed = {"batch_sizes": batch_sizes} | ({} if given_h0 else {"h0": None})
    refused(changed, (ValueError, NotImplementedError), "batch_sizes", packed=True)


def test_an_h0_of_another_batch_than_batch_sizes_is_refused():
    for rows in (2, 4):
        refused({"h0": torch.zeros(rows, HIDDEN)}, ValueError, "batch_sizes must begin with", packed=True)


# --- Dtypes, devices and layouts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64], ids=str
)
@pytest.mark.parametrize("name", TENSORS)
def test_one_tensor_of_another_dtype_is_refused_by_name(name, dtype):
    # pre sets the dtype, so that another one that is computed with makes the others wrong.
    named = "weight_hh" if name == "pre" and dtype in (torch.float64, torch.float16, torch.bfloat16) else name
    refused({name: arguments()[name].to(dtype)}, ValueError, f"^{named} ")


@pytest.mark.parametrize("decay", [0.5, "tensor"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex128], ids=str)
def test_a_dtype_that_is_not_computed_in_is_refused_by_name(dtype, decay):
    changed = {name: x.to(dtype) for name, x in arguments().items()}
    if decay != "tensor":
        changed["decay"] = decay
    refused(changed, ValueError, "^pre must be float32, float64, bfloat16 or float16, got")


@pytest.mark.parametrize("name", TENSORS)
def test_one_tensor_on_another_device_is_refused_by_name(name):
    named = "weight_hh" if name == "pre" else name
    refused({name: arguments()[name].to("meta")}, ValueError, f"^{named} must be on the device of pre")


LAYOUT_CHANGES = [
    (name, change)
    for name in TENSORS
    for change in ("to_sparse", "to_mkldnn", "to_sparse_csr")
    if change != "to_sparse_csr" or name in ("h0", "weight_hh")  # which is for matrices
]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(("name", "change"), LAYOUT_CHANGES)
def test_one_tensor_of_another_layout_is_refused_by_name(name, change):
    refused({name: getattr(arguments()[name], change)()}, ValueError, f"^{name} must be")


# --- Values and types --------------------------------------------------------------------------------

BAD_DECAYS = [1.0, 1.5, -0.1, -1e-30, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", [*BAD_DECAYS, 1, -1, True, 10**400])
def test_a_decay_out_of_range_is_refused(value):
    refused({"decay": value}, ValueError, r"^decay must lie in \[0, 1\), got")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", BAD_DECAYS)
def test_a_decay_out_of_range_in_a_tensor_is_refused_with_its_unit(value, dtype):
    good = {name: x.to(dtype) for name, x in arguments().items()}
    sentence = r"^decay must lie in \[0, 1\), got"
    refused(good | {"decay": torch.tensor(value, dtype=dtype)}, ValueError, sentence)
    for unit in range(HIDDEN):
        decay = torch.full((HIDDEN,), 0.5, dtype=dtype)
        decay[unit] = value
        for decays in (decay, relaid(decay, "sliced")):
            refused(good | {"decay": decays}, ValueError, f"{sentence} .* at unit {unit}$")


def test_a_number_that_rounds_to_one_is_refused():
    number = 1 - 1e-9  # in float32 this is 1
    refused({"decay": number}, ValueError, r"^decay must lie in \[0, 1\), got")
    functional.leaky_recurrence(**({k: v.double() for k, v in arguments().items()} | {"decay": number}))


@pytest.mark.parametrize("value", [None, "0.5", [0.5] * HIDDEN, (0.5,), 0.5j, {}, b"1"], ids=repr)
def test_a_decay_that_is_no_number_is_refused_by_name(value):
    refused({"decay": value}, TypeError, "^decay must be")


@pytest.mark.parametrize("value", [[1.0], 3, 0.5, "pre", torch.float32], ids=repr)
@pytest.mark.parametrize("name", ["pre", "h0", "weight_hh", "batch_sizes"])
def test_what_is_no_tensor_is_refused_by_name(name, value):
    refused({name: value}, TypeError, f"^{name} must be a Tensor, got {type(value).__name__}")


@pytest.mark.parametrize("name", ["pre", "weight_hh"])
def test_what_is_needed_must_be_given(name):
    refused({name: None}, TypeError, f"^{name} must be a Tensor, got NoneType")


@pytest.mark.parametrize("value", ["gelu", "", "ReLU", "relu ", "relu\0", "\N{GREEK SMALL LETTER PHI}"])
def test_an_unknown_nonlinearity_is_refused_with_a_list_of_those_there_are(value):
    refused(
        {"nonlinearity": value},
        ValueError,
        f"^nonlinearity must be one of {', '.join(map(repr, NONLINEARITIES))}, got '",
    )


@pytest.mark.parametrize("value", ["leaky", "", "Rate", "ratecurrent"])
def test_an_unknown_form_is_refused_with_a_list_of_those_there_are(value):
    refused({"form": value}, ValueError, f"^form must be 'rate' or 'current', got '{value}'")


@pytest.mark.parametrize("name", ["nonlinearity", "form"])
@pytest.mark.parametrize("value", [None, 0, ["relu"]], ids=repr)
def test_a_name_that_is_no_string_is_refused_by_name(name, value):
    refused({name: value}, (TypeError, ValueError, RuntimeError), name)


def test_reverse_must_be_a_bool():
    refused({"reverse": "yes"}, (TypeError, ValueError, RuntimeError), "reverse")


# --- The edges of what is valid ----------------------------------------------------------------------


@pytest.mark.parametrize("given_h0", [True, False])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_no_steps_leave_h0_as_it_is(form, nonlinearity, given_h0):
    problem = make_problem(0, 0, h0=given_h0, form=form, nonlinearity=nonlinearity)
    output, h_n = problem.run()
    assert output.shape == (0, 3, 4)
    assert torch.equal(h_n, problem.h0 if given_h0 else torch.zeros(3, 4, dtype=problem.dtype))
    assert not given_h0 or h_n.data_ptr() != problem.h0.data_ptr()


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_no_rows_are_empty_results_and_gradients_of_zero(form, nonlinearity):
    problem = make_problem(0, batch=0, form=form, nonlinearity=nonlinearity).leaves()
    output, h_n = problem.run()
    assert (output.shape, h_n.shape) == ((5, 0, 4), (0, 4))
    (output.sum() + h_n.sum()).backward()
    for name, x in problem.tensors.items():
        assert x.grad.shape == x.shape, name
        assert not x.grad.any(), name


@pytest.mark.parametrize("form", FORMS)
def test_one_unit_one_row_and_one_step(form):
    problem = make_problem(0, 1, 1, 1, form=form)
    for found, expected in zip(problem.run(), problem.expected(), strict=True):
        assert found.shape == expected.shape
        assert distance(found, expected) < 1e-15


# --- NaN and infinity --------------------------------------------------------------------------------

SPECIAL = [math.nan, math.inf, -math.inf]


def assert_same_pattern(found: Tensor, expected: Tensor, what: str) -> None:
    """NaN and either infinity in the same places, and finite values that agree."""
    for pattern in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(pattern(found), pattern(expected)), f"{what}: {pattern.__name__}"
    finite = expected.isfinite()
    assert distance(found[finite], expected[finite]) < 1e-5, what


def spoilt(where: str, value: float, dtype: torch.dtype, nonlinearity: str) -> tuple[Any, ...]:
    """A layer without decay, an equal nn.RNN, an input and a first state; one of their numbers is `value`."""
    layer = LeakyRNN(3, 20, nonlinearity=nonlinearity, dtype=dtype)
    input, hx = torch.randn(6, 5, 3, dtype=dtype), torch.randn(1, 5, 20, dtype=dtype)
    with torch.no_grad():
        {
            "input": input[2, 1],
            "hx": hx[0, 3],
            "weight_ih": layer.weight_ih_l0[7],
            "weight_hh": layer.weight_hh_l0[7],
            "bias": layer.bias_ih_l0,
        }[where][1] = value
    plain = nn.RNN(3, 20, nonlinearity=nonlinearity, dtype=dtype)
    plain.load_state_dict(layer.state_dict())
    return layer, plain, input, hx


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("where", ["input", "hx", "weight_ih", "weight_hh", "bias"])
def test_nan_and_infinity_travel_forward_and_backward_as_in_nn_rnn(where, value, nonlinearity, dtype):
    layer, plain, input, hx = spoilt(where, value, dtype, nonlinearity)
    results = []
    for module in (layer, plain):
        leaves = [input.clone().requires_grad_(), hx.clone().requires_grad_()]
        output, h_n = module(*leaves)
        named = dict(zip(("input", "hx"), leaves, strict=True)) | dict(module.named_parameters())
        grads = torch.autograd.grad((output.sum(), h_n.sum()), list(named.values()))
        results.append({"output": output, "h_n": h_n} | dict(zip(named, grads, strict=True)))
    found, expected = results
    for name, x in expected.items():
        assert_same_pattern(found[name].detach(), x.detach(), name)


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("which", ["output", "h_n"])
def test_a_gradient_of_nan_or_infinity_travels_as_in_nn_rnn(which, value, nonlinearity):
    layer, plain, input, hx = spoilt("hx", 0.0, torch.float64, nonlinearity)
    results = []
    for module in (layer, plain):
        leaf = input.clone().requires_grad_()
        output, h_n = module(leaf, hx)
        incoming = torch.ones_like(output), torch.ones_like(h_n)
        incoming[which == "h_n"][-1, 2, 4] = value
        named = {"input": leaf} | dict(module.named_parameters())
        grads = torch.autograd.grad((output, h_n), list(named.values()), incoming)
        results.append(dict(zip(named, grads, strict=True)))
    for name, expected in results[1].items():
        assert_same_pattern(results[0][name], expected, name)


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("name", ["pre", "h0", "weight_hh"])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_nan_and_infinity_travel_through_leaky_units_as_in_the_reference(form, nonlinearity, name, value):
    problem = make_problem(0, 6, 5, 20, form=form, nonlinearity=nonlinearity)
    problem.tensors[name][1, 1] = value  # the first unit of all rows, or one unit of one row
    for what, found, expected in zip(("output", "h_n"), problem.run(), problem.expected(), strict=True):
        assert_same_pattern(found, expected, what)


def test_a_unit_without_memory_forgets_an_infinite_state():
    problem = make_problem(0, 3, 1, 4, dtype=torch.float32)
    problem.decay = torch.tensor([0.0, 0.5, 0.0, 0.5])
    problem.weight_hh = torch.zeros(4, 4)
    problem.h0 = torch.full((1, 4), 1e38) * 10
    assert problem.h0.isinf().all()
    problem.pre[:] = 1
    output, _ = problem.run()
    # 0 * inf is NaN in the product, whoever computes it; the state itself is what is not kept.
    assert output.isnan().all()
    output, _ = functional.leaky_recurrence(
        problem.pre, problem.h0, problem.weight_hh, problem.decay, nonlinearity="tanh", form="current"
    )
    assert output[:, 0].isfinite().tolist() == [[True, False, True, False]] * 3


# --- Anything at all ---------------------------------------------------------------------------------
# Run in a process of its own, because what is looked for here would end the process.

fuzz_settings = settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
counted = {"accepted": 0, "refused": 0}
int64s = st.integers(-(2**63), 2**63 - 1)
NAMES = ("pre", "h0", "weight_hh", "decay", "batch_sizes", "grad_output", "grad_h_n", "saved", "kind")


@st.composite
def wrong_shapes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = list(shape)
    fault = draw(st.sampled_from(["drop", "add", "size", "empty"]))
    if fault == "add" or not sizes:
        sizes.insert(draw(st.integers(0, len(sizes))), draw(st.integers(0, 3)))
        return tuple(sizes)
    at = draw(st.integers(0, len(sizes) - 1))
    if fault == "drop":
        del sizes[at]
    else:
        sizes[at] = 0 if fault == "empty" else draw(st.integers(0, 70))
    return tuple(sizes)


OTHER_DTYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.bool)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, spoil: bool) -> Tensor:
    """With any strides; spoilt in its shape, its dtype or its device."""
    fault = draw(st.sampled_from(["shape", "dtype", "device"])) if spoil else None
    if fault == "shape":
        shape = draw(wrong_shapes(shape))
    if fault == "dtype":
        dtype = draw(st.sampled_from(OTHER_DTYPES))
    x = torch.rand(shape) * 0.99
    x = x.to(dtype) if dtype.is_floating_point else (x * 1e9).to(dtype)
    if x.is_floating_point():
        x = relaid(x, draw(layouts))
    return x.to("meta") if fault == "device" else x


@st.composite
def step_sizes(draw: st.DrawFn, spoil: bool) -> Tensor:
    """Batch sizes; spoilt in their values, their dtype or their device."""
    fault = draw(st.sampled_from(["device", "dtype", "values"])) if spoil else None
    if fault == "values":
        return torch.tensor(
            draw(st.lists(st.one_of(int64s, st.integers(-2, 9)), max_size=5)), dtype=torch.int64
        )
    sizes = sorted(draw(st.lists(st.integers(1, 7), min_size=1, max_size=7)), reverse=True)
    dtype = draw(st.sampled_from([torch.int32, torch.float32])) if fault == "dtype" else torch.int64
    return torch.tensor(sizes, dtype=dtype, device="meta" if fault == "device" else None)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """What both operators take, and the sizes for the rest. None of NAMES is spoilt, or one or two."""
    some = st.frozensets(st.sampled_from(NAMES), min_size=1, max_size=2)
    wrong = draw(st.one_of(st.just(frozenset()), some, some))
    lead = (draw(st.integers(0, 3)),) if draw(st.booleans()) else ()
    rows: tuple[int, ...] = (draw(st.integers(0, 6)), draw(st.integers(0, 7)))
    batch, hidden = rows[1], draw(st.integers(1, 40))
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(step_sizes("batch_sizes" in wrong)) if draw(st.booleans()) else None
    if sizes is not None:
        values = [3, 2] if sizes.is_meta else [int(n) for n in sizes.tolist()]
        total = sum(values)
        rows = (total if 0 <= total < 100 else 9,)
        batch = values[0] if values and 0 <= values[0] < 20 else 3

    def tensor(name: str, *shape: int) -> st.SearchStrategy[Tensor]:
        return tensors((*lead, *shape), dtype, name in wrong)

    decay = draw(st.sampled_from([(), (hidden,), (*lead, hidden)]))
    h0 = tensor("h0", batch, hidden)
    spoil = "kind" in wrong
    return {
        "wrong": wrong,
        "sequence": (*lead, *rows, hidden),
        "state": (*lead, batch, hidden),
        "dtype": dtype,
        "h0": draw(h0 if sizes is not None else st.one_of(st.none(), h0)),
        "weight_hh": draw(tensor("weight_hh", hidden, hidden)),
        "decay": draw(tensors(decay, dtype, "decay" in wrong)),
        "batch_sizes": sizes,
        "nonlinearity": draw(st.sampled_from(["relu", "tanh", "", "gelu"][: 4 if spoil else 2])),
        "form": draw(st.sampled_from([*FORMS, "", "\0"][: 4 if spoil else 2])),
        "reverse": draw(st.booleans()),
    }


def tried(operator: Any, values: tuple[Any, ...], good: bool) -> tuple[Tensor, ...] | None:
    """The results, or None for a call that was refused."""
    try:
        results = operator(*values)
    except (ValueError, TypeError, RuntimeError):  # NotImplementedError is a RuntimeError
        assert not good, "a good call was refused"
        counted["refused"] += 1
        return None
    counted["accepted"] += 1
    devices = {x.device for x in values if isinstance(x, Tensor)}
    assert len(devices) == 1, "tensors on several devices were accepted"
    assert {x.device for x in results} == devices
    return results


@fuzz_settings
@given(st.data(), calls(), st.booleans())
def fuzz_forward(data, call, save):
    wrong, sequence, _, dtype, *shared = call.values()
    pre = data.draw(tensors(sequence, dtype, "pre" in wrong))
    results = tried(torch.ops.rnnkernels.leaky_recurrence, (pre, *shared, save), not wrong)
    if results is not None:
        output, h_n, _ = results
        assert output.shape == pre.shape
        lead = pre.shape[:1] if call["weight_hh"].dim() == 3 else ()
        batch = pre.shape[-2] if call["batch_sizes"] is None else call["h0"].shape[-2]
        assert h_n.shape == (*lead, batch, pre.shape[-1])


@fuzz_settings
@given(st.data(), calls(), st.tuples(*[st.booleans()] * 4))
def fuzz_backward(data, call, wanted):
    wrong, sequence, state, dtype, *shared = call.values()

    def draw(name: str, shape: tuple[int, ...], dtype: torch.dtype = dtype) -> Tensor:
        return data.draw(tensors(shape, dtype, name in wrong))

    grad_output, grad_h_n = draw("grad_output", sequence), draw("grad_h_n", state)
    if data.draw(st.booleans()):
        grad_output, grad_h_n = data.draw(
            st.sampled_from([(None, grad_h_n), (grad_output, None), (None, None)])
        )
    output = draw("pre", sequence)
    words = (*sequence[:-1], (sequence[-1] + 31) // 32)
    saved = {"relu": (words, torch.int32), "tanh": (sequence, dtype)}
    saved = draw("saved", *saved[call["nonlinearity"]]) if call["nonlinearity"] in saved else torch.zeros(0)
    if "saved" not in wrong:
        saved = saved.contiguous()  # as the forward operator makes it
    values = (grad_output, grad_h_n, output, saved, *shared, wanted)
    results = tried(torch.ops.rnnkernels.leaky_recurrence_backward, values, not wrong)
    if results is not None:
        like = (output, None, call["weight_hh"], call["decay"])
        for want, result, tensor in zip((True, *wanted[1:]), results, like, strict=True):
            if not want:
                assert result.shape == (0,)
            elif tensor is not None:
                assert result.shape == tensor.shape
        assert not wanted[1] or results[1].shape[-1] == output.shape[-1]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_no_arguments_of_the_operators_end_the_process(direction):
    program = f"import test_bad_input as t; t.fuzz_{direction}(); print(*t.counted.values())"
    ran = run_python("-c", program, timeout=240)
    assert ran.returncode == 0, ran.stderr[-4000:]
    # Both happened often, or this would test little.
    assert all(int(count) > 100 for count in ran.stdout.split()), ran.stdout


def test_the_fuzzing_notices_a_crash():
    ran = run_python("-c", "import ctypes; ctypes.string_at(0)")
    assert ran.returncode < 0
