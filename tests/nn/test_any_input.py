"""Random valid and invalid calls: each gives a correct result or an error, but never a crash."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import DTYPES, FORMS, layouts, relaid, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

# The fuzz functions run in their own process, because a crash would end it.

fuzz_settings = settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
counted = {"accepted": 0, "refused": 0}
int64s = st.integers(-(2**63), 2**63 - 1)
NAMES = ("pre", "h0", "weight_hh", "decay", "batch_sizes", "grad_output", "grad_h_n", "saved", "spec")


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
    """Draw a tensor with any strides; if `spoil`, with a wrong shape, dtype or device."""
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
    """Draw batch sizes; if `spoil`, with wrong values, dtype or device."""
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
    """Draw the arguments of both operators, and sizes for the rest; none, one or two of NAMES are wrong."""
    some = st.frozensets(st.sampled_from(NAMES), min_size=1, max_size=2)
    wrong = draw(st.one_of(st.just(frozenset()), some, some))
    lead = (draw(st.integers(0, 3)),) if draw(st.booleans()) else ()
    rows: tuple[int, ...] = (draw(st.integers(0, 6)), draw(st.integers(0, 7)))
    batch, hidden = rows[1], draw(st.integers(1, 40))
    dtype = draw(st.sampled_from((*DTYPES, torch.bfloat16, torch.float16)))
    sizes = draw(step_sizes("batch_sizes" in wrong)) if draw(st.booleans()) else None
    if sizes is not None:
        values = [3, 2] if sizes.is_meta else [int(n) for n in sizes.tolist()]
        total = sum(values)
        rows = (total if 0 <= total < 100 else 9,)
        batch = values[0] if values and 0 <= values[0] < 20 else 3

    def tensor(name: str, *shape: int) -> st.SearchStrategy[Tensor]:
        return tensors((*lead, *shape), dtype, name in wrong)

    decay = draw(st.sampled_from([(), (hidden,), (*lead, hidden)]))
    decay_dtype = torch.float32 if dtype.itemsize == 2 and draw(st.booleans()) else dtype
    h0 = tensor("h0", batch, hidden)
    spoil = "spec" in wrong
    return {
        "wrong": wrong,
        "sequence": (*lead, *rows, hidden),
        "state": (*lead, batch, hidden),
        "dtype": dtype,
        "h0": draw(h0 if sizes is not None else st.one_of(st.none(), h0)),
        "weight_hh": draw(tensor("weight_hh", hidden, hidden)),
        "decay": draw(tensors(decay, decay_dtype, "decay" in wrong)),
        "batch_sizes": sizes,
        "nonlinearity": draw(st.sampled_from(["relu", "tanh", "", "gelu"][: 4 if spoil else 2])),
        "form": draw(st.sampled_from([*FORMS, "", "\0"][: 4 if spoil else 2])),
        "reverse": draw(st.booleans()),
    }


def tried(operator: Any, values: tuple[Any, ...], good: bool) -> tuple[Tensor, ...] | None:
    """Return the results, or None if the call raised an error."""
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
@given(st.data(), calls(), st.integers(0, 2))
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
    if dtype.itemsize == 2 and data.draw(st.booleans()):  # with a value for each unit for the decay
        before = {"relu": 2 * words[-1], "tanh": sequence[-1]}
        for name in saved:
            columns = sequence[-1] + (before[name] if call["form"] == "rate" else 0)
            odd = columns % 2 if call["form"] == "rate" and name == "relu" else 0
            saved[name] = ((*sequence[:-1], columns + odd), dtype)
    saved = draw("saved", *saved[call["nonlinearity"]]) if call["nonlinearity"] in saved else torch.zeros(0)
    if "saved" not in wrong:
        saved = saved.contiguous()  # the layout that the forward operator returns
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
def test_no_arguments_crash_the_operators(direction):
    program = f"import test_any_input as t; t.fuzz_{direction}(); print(*t.counted.values())"
    ran = run_python("-c", program, timeout=240)
    assert ran.returncode == 0, ran.stderr[-4000:]
    # Both outcomes must be frequent for the test to mean anything.
    assert all(int(count) > 100 for count in ran.stdout.split()), ran.stdout


def test_a_crash_is_noticed():
    ran = run_python("-c", "import ctypes; ctypes.string_at(0)")
    assert ran.returncode < 0
