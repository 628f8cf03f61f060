"""Invalid calls raise errors that name the argument."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import DTYPES, NONLINEARITIES, relaid
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

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


def test_the_unchanged_arguments_are_valid():
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
        huge(3, 3, 2),  # does not add up to the rows of pre
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
    # pre sets the dtype. If it has another supported dtype, the error names the next tensor.
    named = "weight_hh" if name == "pre" and dtype in (torch.float64, torch.float16, torch.bfloat16) else name
    refused({name: arguments()[name].to(dtype)}, ValueError, f"^{named} ")


@pytest.mark.parametrize("decay", [0.5, "tensor"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex128], ids=str)
def test_an_unsupported_dtype_is_refused_by_name(dtype, decay):
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
    if change != "to_sparse_csr" or name in ("h0", "weight_hh")  # CSR is for matrices
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
def test_a_decay_out_of_range_in_a_tensor_is_refused_by_unit(value, dtype):
    good = {name: x.to(dtype) for name, x in arguments().items()}
    message = r"^decay must lie in \[0, 1\), got"
    refused(good | {"decay": torch.tensor(value, dtype=dtype)}, ValueError, message)
    for unit in range(HIDDEN):
        decay = torch.full((HIDDEN,), 0.5, dtype=dtype)
        decay[unit] = value
        for decays in (decay, relaid(decay, "sliced")):
            refused(good | {"decay": decays}, ValueError, f"{message} .* at unit {unit}$")


def test_a_number_that_rounds_to_one_is_refused():
    number = 1 - 1e-9  # in float32 this is 1
    refused({"decay": number}, ValueError, r"^decay must lie in \[0, 1\), got")
    functional.leaky_recurrence(**({k: v.double() for k, v in arguments().items()} | {"decay": number}))


@pytest.mark.parametrize("value", [None, "0.5", [0.5] * HIDDEN, (0.5,), 0.5j, {}, b"1"], ids=repr)
def test_a_decay_that_is_not_a_number_is_refused_by_name(value):
    refused({"decay": value}, TypeError, "^decay must be")


@pytest.mark.parametrize("value", [[1.0], 3, 0.5, "pre", torch.float32], ids=repr)
@pytest.mark.parametrize("name", ["pre", "h0", "weight_hh", "batch_sizes"])
def test_an_argument_that_is_not_a_tensor_is_refused_by_name(name, value):
    refused({name: value}, TypeError, f"^{name} must be a Tensor, got {type(value).__name__}")


@pytest.mark.parametrize("name", ["pre", "weight_hh"])
def test_a_required_argument_must_not_be_none(name):
    refused({name: None}, TypeError, f"^{name} must be a Tensor, got NoneType")


@pytest.mark.parametrize("value", ["gelu", "", "ReLU", "relu ", "relu\0", "\N{GREEK SMALL LETTER PHI}"])
def test_an_unknown_nonlinearity_is_refused_with_the_list_of_names(value):
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


# --- Sizes without memory ----------------------------------------------------------------------------


def expanded(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones((), dtype=dtype).expand(shape)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pre": expanded(2**31, 2**31, HIDDEN // 4), "h0": None, "weight_hh": expanded(1, 1)}, "pre"),
        ({"pre": expanded(2**62, 0, HIDDEN), "h0": None}, "pre"),  # empty
        ({"pre": expanded(0, 2**62, 1), "h0": None, "weight_hh": expanded(1, 1)}, "pre"),
        ({"weight_hh": expanded(2**30, 2**30)}, "weight_hh"),
        ({"decay": expanded(2**62)}, "decay"),
    ],
    ids=str,
)
def test_a_size_beyond_the_limit_is_refused_by_name(changed, message):
    decay = {"decay": 0.5} if "decay" not in changed else {}
    refused(decay | changed, ValueError, rf"^{message} must have at most 2\^48 elements, empty dimensions")


@pytest.mark.parametrize("given_h0", [True, False])
@pytest.mark.parametrize("steps", [10, 2**33, 2**47, 2**60])
def test_more_batch_sizes_than_rows_are_refused_before_they_are_read(steps, given_h0):
    sizes = torch.ones(1, dtype=torch.int64).expand(steps)
    changed = {"batch_sizes": sizes} | ({"h0": torch.zeros(1, HIDDEN)} if given_h0 else {"h0": None})
    message = r"^batch_sizes must (be positive and add up to the 9 rows of pre, got|have at most 2\^48)"
    refused(changed, ValueError, message, packed=True)


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("packed_drive", [False, True])
def test_a_layer_refuses_more_batch_sizes_than_rows_before_it_reads_them(packed_drive, every):
    layer = LeakyRNN(3, 4, checkpoint_every=every)
    sizes = torch.ones(1, dtype=torch.int64).expand(2**47)
    drive = PackedSequence(torch.zeros(9, 4), sizes) if packed_drive else None
    with pytest.raises(ValueError, match=r"^batch_sizes must be positive and add up to the 9 rows of input"):
        layer(PackedSequence(torch.zeros(9, 3), sizes), drive=drive)


def test_empty_calls_of_many_steps_or_networks_take_no_time():
    """Loops over blocks of steps or networks would take hours."""
    huge, spec = 2**45, ("tanh", "current", False)
    for networks, steps, batch in ((2, huge, 0), (huge, 0, 2), (huge, 2, 0), (0, huge, 2)):

        def zeros(*shape, lead=networks):
            return expanded(lead, *shape).contiguous() if 0 in (lead, *shape) else expanded(lead, *shape)

        x, w, decay = zeros(steps, batch, 1), expanded(networks, 1, 1), torch.tensor(0.5)
        if networks == huge and (steps, batch) == (0, 2):
            continue  # the last states have memory
        arguments = (x, None, w, w, None, None, decay, None)
        output, _, saved = torch.ops.rnnkernels.projected_recurrence(*arguments, *spec, True)
        assert output.shape == (networks, steps, batch, 1)
        gradients = torch.ops.rnnkernels.projected_recurrence_backward(
            output, None, output, saved, x, None, w, w, decay, None, *spec,
            [True, False, networks < 3, networks < 3, networks < 3, True, False],
        )  # fmt: skip
        assert gradients[0].shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bits8, torch.complex32], ids=str)
def test_all_tensors_of_an_unsupported_dtype_are_refused_by_name(dtype):
    tensors = {name: torch.empty(x.shape, dtype=dtype) for name, x in arguments().items()}
    for decay in (tensors["decay"], 0.5):
        changed = tensors | {"decay": decay}
        refused(changed, ValueError, "^pre must be float32, float64, bfloat16 or float16, got")
