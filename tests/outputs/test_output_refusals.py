"""Errors of the output models for invalid arguments; each message names the argument."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from output_helpers import (
    BINARY,
    CONDITION,
    MODELS,
    make_frames,
)
from torch.nn.utils.rnn import pack_sequence

from rnnkernels import (
    NADE,
    RBM,
    Categorical,
    IndependentBernoulli,
    expected_accuracy,
    functional,
    mean_with_interval,
)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NADE(0, 4, 3), ValueError, "num_visible must be greater than zero, got 0"),
        (lambda: NADE(5, cast(Any, 4.0), 3), TypeError, "num_hidden must be an int, got float"),
        (lambda: RBM(5, -1, 3), ValueError, "num_hidden must be greater than zero, got -1"),
        (lambda: RBM(5, 4, 3, gibbs_steps=0), ValueError, "gibbs_steps must be greater than zero, got 0"),
        (lambda: IndependentBernoulli(5, 0), ValueError, "condition_size must be greater than zero, got 0"),
        (lambda: IndependentBernoulli(True, 3), TypeError, "num_visible must be an int, got bool"),
        (lambda: Categorical(0, 3), ValueError, "num_classes must be greater than zero, got 0"),
    ],
)
def test_bad_sizes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


STATES = [
    ([1.0], TypeError, "state must be a Tensor, got list"),
    (pack_sequence([torch.ones(2, 3)]), TypeError, "got PackedSequence .of a PackedSequence give .data."),
    (torch.ones(4, 2), ValueError, r"state must be \[..., C\] = \[..., 3\], got \[4, 2\]"),
    (torch.ones(()), ValueError, r"state must be \[..., C\] = \[..., 3\], got \[\]"),
    (torch.ones(4, 3).double(), ValueError, "state must have the dtype of the weights, torch.float32"),
    (torch.ones(4, 3).long(), ValueError, "state must have a floating-point dtype, got torch.int64"),
    (
        torch.ones(4, 3, device="meta"),
        ValueError,
        "state must be on the device of the weights, cpu",
    ),
]


@pytest.mark.parametrize(("state", "error", "message"), STATES)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_raises_an_error_for_a_bad_state(name, state, error, message):
    model, v = MODELS[name](), make_frames(name, 4)
    calls = [
        lambda: model.log_prob(v, state),
        lambda: model.loss(v, state),
        lambda: model.sample(state),
        lambda: model.marginals(state),
    ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("v", "error", "message"),
    [
        ([1], TypeError, "v must be a Tensor, got list"),
        (torch.ones(4, 4), ValueError, r"v must be \[..., D\] = \[4, 5\], as the state is, got \[4, 4\]"),
        (torch.ones(5), ValueError, r"v must be \[..., D\] = \[4, 5\], as the state is, got \[5\]"),
        (torch.full((4, 5), 0.5), ValueError, "v must be binary, zeros and ones, got other values"),
        (torch.full((4, 5), 2), ValueError, "v must be binary"),
        (torch.full((4, 5), math.nan), ValueError, "v must be binary"),
        (torch.ones(4, 5, device="meta"), ValueError, "v must be on the device of the state, cpu, got meta"),
        (torch.ones(4, 5).to_sparse(), ValueError, "v must be a dense tensor, got layout torch.sparse_coo"),
    ],
)
@pytest.mark.parametrize("name", BINARY)
def test_bad_frames_raise_errors(name, v, error, message):
    model, state = MODELS[name](), torch.ones(4, 3)
    for function in (model.log_prob, model.loss):
        with pytest.raises(error, match=message):
            function(v, state)


@pytest.mark.parametrize(
    ("v", "error", "message"),
    [
        (2, TypeError, "v must be a Tensor, got int"),
        (torch.ones(4), ValueError, "v must have an integer dtype, got torch.float32"),
        (torch.ones(4, dtype=torch.bool), ValueError, "v must have an integer dtype, got torch.bool"),
        (torch.ones(3).long(), ValueError, r"v must be \[...\] = \[4\], as the state is, got \[3\]"),
        (torch.tensor([0, 1, 5, 2]), ValueError, r"v must lie in 0\.\.4, got 0\.\.5"),
        (torch.tensor([0, -1, 4, 2]), ValueError, r"v must lie in 0\.\.4, got -1\.\.4"),
        (torch.ones(4, device="meta").long(), ValueError, "v must be on the device of the state"),
    ],
)
def test_bad_classes_raise_errors(v, error, message):
    with pytest.raises(error, match=message):
        MODELS["categorical"]().log_prob(v, torch.ones(4, 3))


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_generator_raises_an_error(name):
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got int"):
        MODELS[name]().sample(torch.ones(4, 3), generator=1)


@pytest.mark.parametrize("name", ["nade", "rbm"])
def test_a_bad_number_of_samples_raises_an_error(name):
    with pytest.raises(ValueError, match="samples must be greater than zero, got 0"):
        MODELS[name]().marginals(torch.ones(4, 3), samples=0)


def test_bad_marginals_raise_errors():
    v, m = torch.ones(4, 5), torch.ones(4, 5)
    for arguments, error, message in (
        ((v, [1.0]), TypeError, "marginals must be a Tensor, got list"),
        ((v, v.long()), ValueError, "marginals must have a floating-point dtype, got torch.int64"),
        ((v[:2], m), ValueError, r"v must be \[..., D\] = \[4, 5\]"),
        ((v / 2, m), ValueError, "v must be binary"),
    ):
        with pytest.raises(error, match=message):
            expected_accuracy(*arguments)


@pytest.mark.parametrize("name", MODELS)
def test_meta_tensors_give_shapes(name):
    model = MODELS[name](device="meta")
    state = torch.empty(4, 2, CONDITION, device="meta")
    assert model.log_prob(make_frames(name, 4, 2).to("meta"), state).shape == (4, 2)


ODD_DTYPES = [
    torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
    torch.complex32, torch.bits8, torch.quint8,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")
@pytest.mark.parametrize("dtype", ODD_DTYPES, ids=str)
def test_frames_of_another_dtype_are_refused_by_name(dtype):
    v, state = torch.empty(4, 5, dtype=dtype), torch.ones(4, 3)
    message = f"v must be bool, uint8, int8, .* or float64, got {dtype}"
    for name in BINARY:
        model = MODELS[name]()
        for function in (model.log_prob, model.loss):
            with pytest.raises(ValueError, match=message):
                function(v, state)
    with pytest.raises(ValueError, match=message):
        expected_accuracy(v, torch.ones(4, 5))
    with pytest.raises(ValueError, match=message):
        functional.nade_log_prob(v, torch.ones(4, 5), torch.ones(4, 2), torch.ones(5, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"^chain must be bool"):
        MODELS["rbm"]().loss(torch.ones(4, 5), state, chain=v)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_states_and_results_in_eight_bits_are_refused_by_name(dtype):
    expected = f"must be float16, bfloat16, float32 or float64, got {dtype}"
    for name, make in MODELS.items():
        with pytest.raises(ValueError, match=f"^state {expected}"):
            make().log_prob(make_frames(name, 4), torch.ones(4, 3).to(dtype))
        with pytest.raises(ValueError, match=f"^dtype {expected}"):
            make(dtype=dtype)
    with pytest.raises(ValueError, match=f"^marginals {expected}"):
        expected_accuracy(torch.ones(4, 5), torch.ones(4, 5).to(dtype))
    with pytest.raises(ValueError, match=f"^log_prob {expected}"):
        mean_with_interval(torch.ones(4).to(dtype), torch.ones(4))
