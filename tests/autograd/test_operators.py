"""The operators: registration, calls with groups of networks, results on meta tensors, and errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from helpers import DTYPES, KINDS, TOLERANCE, Problem, distance, make_problem, normal_like
from torch import Tensor

from rnnkernels._ops.spec import SAVE_FOR_BACKWARD, SAVE_FOR_DECAY, SAVE_NOTHING

FORWARD = torch.ops.rnnkernels.leaky_recurrence.default
BACKWARD = torch.ops.rnnkernels.leaky_recurrence_backward.default

Arguments = tuple[Any, ...]


def forward_arguments(problem: Problem, save: int = SAVE_FOR_DECAY) -> Arguments:
    decay = torch.as_tensor(problem.decay, dtype=problem.dtype)
    return (
        problem.pre, problem.h0, problem.weight_hh, decay, problem.batch_sizes, problem.nonlinearity,
        problem.form, problem.reverse, save,
    )  # fmt: skip


def backward_arguments(
    forward: Arguments, wanted: tuple[bool, ...] = (True,) * 4, missing: str | None = None
) -> Arguments:
    """Return arguments of backward, from those of forward, its results and random gradients."""
    _, *shared, _ = forward
    output, h_n, saved = FORWARD(*forward)
    grads = {"grad_output": normal_like(output, 1), "grad_h_n": normal_like(h_n, 2)}
    if missing:
        grads[missing] = None
    return (*grads.values(), output, saved, *shared, wanted)


def grouped_arguments(
    groups: int = 3, decay: str = "group", h0: bool = True, save: int = SAVE_FOR_DECAY, **options: Any
) -> Arguments:
    """Return `groups` stacked problems; `decay` is a scalar, one per unit, or one per group and unit."""
    singles = [forward_arguments(make_problem(seed, h0=h0, **options), save) for seed in range(groups)]
    stacked = [torch.stack(x) if isinstance(x[0], Tensor) else x[0] for x in zip(*singles, strict=True)]
    stacked[3] = {"number": stacked[3][0, 0], "unit": stacked[3][0], "group": stacked[3]}[decay].clone()
    stacked[4] = singles[0][4]
    return tuple(stacked)


def with_gradients(arguments: Arguments) -> Arguments:
    return tuple(
        x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in arguments
    )


def on_meta(arguments: Arguments) -> Arguments:
    return tuple(x.to("meta") if isinstance(x, Tensor) else x for x in arguments)


# Each option is on and off with every form and nonlinearity, but not in all combinations.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float32": {"dtype": torch.float32},
    "no h0, one decay": {"h0": False, "decay": "scalar"},
    "packed": {"packed": True},
    "packed float32 reverse": {"packed": True, "dtype": torch.float32, "reverse": True},
    "wide": {"hidden": 70, "batch": 2, "steps": 3},
    "bfloat16": {"dtype": torch.bfloat16},
    "packed float16": {"packed": True, "dtype": torch.float16},
    "no steps": {"steps": 0},
    "no rows": {"batch": 0},
}


# --- Registration ------------------------------------------------------------------------------------


@pytest.mark.every(5)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_opcheck_forward(form, nonlinearity, options):
    problem = make_problem(0, form=form, nonlinearity=nonlinearity, **OPTIONS[options])
    torch.library.opcheck(FORWARD, with_gradients(forward_arguments(problem)))


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_opcheck_forward_without_save(form, nonlinearity):
    problem = make_problem(0, form=form, nonlinearity=nonlinearity)
    torch.library.opcheck(FORWARD, forward_arguments(problem, SAVE_NOTHING))


@pytest.mark.every(5)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("decay", ["number", "unit", "group"])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_opcheck_grouped(form, nonlinearity, decay, packed):
    arguments = grouped_arguments(decay=decay, form=form, nonlinearity=nonlinearity)
    if packed:
        arguments = grouped_packed(arguments)
    torch.library.opcheck(FORWARD, with_gradients(arguments))


@pytest.mark.every(5)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_opcheck_backward(form, nonlinearity, options):
    problem = make_problem(0, form=form, nonlinearity=nonlinearity, **OPTIONS[options])
    torch.library.opcheck(BACKWARD, backward_arguments(forward_arguments(problem)))


@pytest.mark.parametrize("missing", ["grad_output", "grad_h_n"])
def test_opcheck_backward_of_a_part(missing):
    arguments = forward_arguments(make_problem(0))
    torch.library.opcheck(BACKWARD, backward_arguments(arguments, (True, False, True, False), missing))


def test_schemas_have_no_mutation_or_aliasing():
    for operator in (FORWARD, BACKWARD):
        assert not operator._schema.is_mutable
        assert all(x.alias_info is None for x in (*operator._schema.arguments, *operator._schema.returns))


# --- Grouped -----------------------------------------------------------------------------------------


def grouped_packed(arguments: Arguments) -> Arguments:
    """Return the grouped problem as a packed one, whose later steps have fewer rows."""
    pre, *rest = arguments
    steps, batch = pre.shape[1:3]
    sizes = torch.tensor([max(1, batch - t // 2) for t in range(steps)])
    rest[3] = sizes
    return (torch.cat([pre[:, t, :n] for t, n in enumerate(sizes.tolist())], dim=1), *rest)


def single(arguments: Arguments, group: int) -> Arguments:
    """Return the arguments of one group."""
    pre, h0, weight_hh, decay, *rest = arguments
    d = decay[group] if decay.dim() == 2 else decay
    return (pre[group], None if h0 is None else h0[group], weight_hh[group], d, *rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("decay", ["number", "unit", "group"])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_a_grouped_call_equals_one_call_per_group(form, nonlinearity, decay, reverse, packed, dtype):
    arguments = grouped_arguments(
        decay=decay, form=form, nonlinearity=nonlinearity, reverse=reverse, dtype=dtype, hidden=37
    )
    if packed:
        arguments = grouped_packed(arguments)
    output, h_n, saved = FORWARD(*arguments)
    back = backward_arguments(arguments)
    found = BACKWARD(*back)
    d_decay = torch.zeros_like(found[3])
    for g in range(3):
        alone = FORWARD(*single(arguments, g))
        for together, value in zip((output, h_n, saved), alone, strict=True):
            if saved.numel() or value.numel():
                assert torch.equal(together[g], value)
        expected = BACKWARD(back[0][g], back[1][g], *alone[::2], *single(arguments, g)[1:-1], (True,) * 4)
        assert torch.equal(found[0][g], expected[0])
        assert torch.equal(found[1][g], expected[1])
        assert distance(found[2][g], expected[2]) < TOLERANCE[dtype]
        if decay == "group":
            assert distance(found[3][g], expected[3]) < TOLERANCE[dtype]
        d_decay += expected[3]
    if decay != "group":
        assert found[3].shape == arguments[3].shape
        assert distance(found[3], d_decay) < 10 * TOLERANCE[dtype]  # the terms have both signs


def test_grouped_without_h0_equals_grouped_with_zeros():
    arguments = grouped_arguments(h0=False)
    zeros = torch.zeros(3, 3, 4, dtype=torch.float64)
    for a, b in zip(FORWARD(*arguments), FORWARD(arguments[0], zeros, *arguments[2:]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_groups_split_among_threads_are_bitwise_the_same(groups):
    arguments = grouped_arguments(groups, steps=6, batch=9, hidden=160, dtype=torch.float32)
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        forward = FORWARD(*arguments)
        results.append((*forward, *BACKWARD(*backward_arguments(arguments))[:2]))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_no_groups_give_an_empty_result():
    arguments = tuple(x[:0] if isinstance(x, Tensor) else x for x in grouped_arguments())
    output, h_n, _ = FORWARD(*arguments)
    assert (output.shape, h_n.shape) == ((0, 5, 3, 4), (0, 3, 4))
    assert [x.shape for x in BACKWARD(*backward_arguments(arguments))] == [
        (0, 5, 3, 4), (0, 3, 4), (0, 4, 4), (0, 4)
    ]  # fmt: skip


# --- Results -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_saved_has_the_expected_shape_and_is_empty_without_save(form, nonlinearity):
    problem = make_problem(0, hidden=70, form=form, nonlinearity=nonlinearity, dtype=torch.float32)
    saved = FORWARD(*forward_arguments(problem))[2]
    expected = ((5, 3, 70), torch.float32)
    if form == "current":
        expected = ((0,), torch.float32)
    elif nonlinearity == "relu":
        expected = ((5, 3, 3), torch.int32)  # one bit for each of the 70 units
    assert (saved.shape, saved.dtype) == expected
    assert FORWARD(*forward_arguments(problem, SAVE_NOTHING))[2].shape == (0,)


@pytest.mark.parametrize(("hidden", "words"), [(1, 1), (32, 1), (33, 2), (70, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_half_precision_also_saves_a_value_per_unit_for_the_decay(form, nonlinearity, dtype, hidden, words):
    problem = make_problem(0, hidden=hidden, form=form, nonlinearity=nonlinearity, dtype=dtype)
    output, _, saved = FORWARD(*forward_arguments(problem))
    before = hidden if nonlinearity != "relu" else 2 * words
    before = before if form == "rate" else 0
    total = before + hidden
    assert saved.dtype == dtype
    assert saved.shape == (5, 3, total + total % 2 if nonlinearity == "relu" and form == "rate" else total)
    assert FORWARD(*forward_arguments(problem, SAVE_NOTHING))[2].shape == (0,)
    plain = FORWARD(*forward_arguments(problem, SAVE_FOR_BACKWARD))[2]
    assert plain.shape == ((0,) if form == "current" else (5, 3, hidden if nonlinearity != "relu" else words))
    # h_{t-1} - y_t of the first step, from h_t = d h_{t-1} + (1-d) y_t.
    d, h0 = (x.double() for x in (problem.decay, problem.h0))
    expected = (h0 - output[0].double()) / (1 - d)
    assert distance(saved[0, :, before:total], expected) < 20 * torch.finfo(dtype).eps
    kept = saved[..., :before]
    if before:
        assert torch.equal(kept.view(torch.int32) if nonlinearity == "relu" else kept, plain)


@pytest.mark.parametrize("save", [-1, 3])
def test_another_value_of_save_is_refused(save):
    for arguments in (
        forward_arguments(make_problem(0), save),
        on_meta(forward_arguments(make_problem(0), save)),
    ):
        with pytest.raises(ValueError, match=f"save must be 0, 1 or 2, got {save}"):
            FORWARD(*arguments)


def test_the_saved_bits_mark_the_active_units():
    problem = make_problem(0, hidden=70, decay="scalar", dtype=torch.float32)
    problem.decay = torch.zeros(())
    output, _, saved = FORWARD(*forward_arguments(problem))
    bits = saved[..., None] >> torch.arange(32) & 1
    expected = torch.zeros(5, 3, 96, dtype=torch.int32)
    expected[..., :70] = output > 0
    assert torch.equal(bits.flatten(-2), expected)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4)), ids=str)
def test_only_wanted_gradients_are_computed(wanted):
    arguments = forward_arguments(make_problem(0, nonlinearity="tanh"))
    everything = BACKWARD(*backward_arguments(arguments))
    some = BACKWARD(*backward_arguments(arguments, wanted))
    assert torch.equal(some[0], everything[0])  # always computed, because the others need it
    for want, a, b in zip(wanted[1:], some[1:], everything[1:], strict=True):
        assert a.shape == (b.shape if want else (0,))
        assert not want or torch.equal(a, b)


@pytest.mark.parametrize("missing", ["grad_output", "grad_h_n"])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_a_missing_gradient_equals_zeros(form, nonlinearity, missing):
    arguments = backward_arguments(forward_arguments(make_problem(0, form=form, nonlinearity=nonlinearity)))
    at = ("grad_output", "grad_h_n").index(missing)
    without, zeros = list(arguments), list(arguments)
    without[at], zeros[at] = None, torch.zeros_like(arguments[at])
    for a, b in zip(BACKWARD(*without), BACKWARD(*zeros), strict=True):
        assert torch.equal(a, b)


def test_no_gradients_equal_zeros():
    arguments = backward_arguments(forward_arguments(make_problem(0)))
    assert not any(x.any() for x in BACKWARD(None, None, *arguments[2:]))


def layout(tensors: tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    return [(x.shape, x.dtype, x.stride(), x.storage_offset()) for x in tensors]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_meta_tensors_give_the_shapes_dtypes_and_strides_of_real_ones(form, nonlinearity, options, grouped):
    options = OPTIONS[options] | {"form": form, "nonlinearity": nonlinearity}
    if grouped and options.get("packed"):
        arguments = grouped_packed(grouped_arguments(**(options | {"packed": False})))
    elif grouped:
        arguments = grouped_arguments(**(options | {"decay": "group"}))
    else:
        arguments = forward_arguments(make_problem(0, **options))
    # Strides that differ from those of the results.
    arguments = (arguments[0].transpose(0, 1).contiguous().transpose(0, 1), *arguments[1:])
    for save in (SAVE_NOTHING, SAVE_FOR_BACKWARD, SAVE_FOR_DECAY):
        forward = (*arguments[:-1], save)
        meta = FORWARD(*on_meta(forward))
        assert all(x.is_meta for x in meta)
        assert layout(meta) == layout(FORWARD(*forward))
    for wanted in ((True,) * 4, (False, True, False, True)):
        backward = backward_arguments(arguments, wanted)
        meta = BACKWARD(*on_meta(backward))
        assert all(x.is_meta for x in meta)
        assert layout(meta) == layout(BACKWARD(*backward))


# --- Errors ------------------------------------------------------------------------------------------


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


GOOD = {
    "pre": zeros(5, 3, 4), "h0": zeros(3, 4), "weight_hh": zeros(4, 4), "decay": zeros(4),
    "batch_sizes": None, "nonlinearity": "relu", "form": "rate", "reverse": False, "save": SAVE_FOR_DECAY,
}  # fmt: skip
GOOD_BACKWARD = {
    "grad_output": zeros(5, 3, 4), "grad_h_n": zeros(3, 4), "output": zeros(5, 3, 4),
    "saved": zeros(5, 3, 1, dtype=torch.int32), "h0": zeros(3, 4), "weight_hh": zeros(4, 4),
    "decay": zeros(4), "batch_sizes": None, "nonlinearity": "relu", "form": "rate", "reverse": False,
    "wanted": (True,) * 4,
}  # fmt: skip
GROUPED = {"pre": zeros(2, 5, 3, 4), "h0": zeros(2, 3, 4), "weight_hh": zeros(2, 4, 4)}
PACKED = {"pre": zeros(5, 4), "batch_sizes": torch.tensor([3, 2])}

# The argument that the message must name, and the wrong arguments.
WRONG = [
    ("pre", {"pre": zeros(5, 4)}),
    ("pre", {"pre": zeros(5, 3, 0)}),
    ("weight_hh must have the dtype of pre, Half", {"pre": zeros(5, 3, 4, dtype=torch.float16)}),
    ("pre", {"pre": zeros(5, 3, 4, dtype=torch.int64)}),
    ("weight_hh", {"pre": zeros(5, 3, 5)}),  # pre determines H
    ("weight_hh", {"pre": zeros(5, 3, 4, dtype=torch.float64)}),
    ("h0", {"h0": zeros(4, 4)}),
    ("h0", {"h0": zeros(1, 3, 4)}),
    ("h0", {"h0": zeros(3, 4, dtype=torch.float64)}),
    ("weight_hh", {"weight_hh": zeros(4)}),
    ("weight_hh", {"weight_hh": zeros(4, 5)}),
    ("pre", {"weight_hh": zeros(1, 4, 4)}),  # a third dimension means groups
    ("weight_hh", {"weight_hh": zeros(4, 4, dtype=torch.float64)}),
    ("decay", {"decay": zeros(3)}),
    ("decay", {"decay": zeros(1, 4)}),
    ("decay", {"decay": zeros(4, dtype=torch.float64)}),
    ("nonlinearity", {"nonlinearity": "gelu"}),
    ("form", {"form": "leaky"}),
    ("weight_hh", GROUPED | {"weight_hh": zeros(3, 4, 4)}),
    ("h0", GROUPED | {"h0": zeros(3, 4)}),
    ("decay", GROUPED | {"decay": zeros(3, 4)}),
    ("decay", GROUPED | {"decay": zeros(2, 3)}),
    ("h0", PACKED | {"h0": None}),
    ("h0", PACKED | {"h0": zeros(3)}),
    ("pre", PACKED | {"pre": zeros(5, 3, 4)}),
    ("batch_sizes", PACKED | {"batch_sizes": torch.tensor([3, 2], dtype=torch.int32)}),
    ("batch_sizes", PACKED | {"batch_sizes": torch.tensor([[3, 2]])}),
]
WRONG_BACKWARD = [
    ("grad_output", {"grad_output": zeros(5, 3, 5)}),
    ("grad_output", {"grad_output": zeros(5, 3, 4, dtype=torch.float64)}),
    ("grad_h_n", {"grad_h_n": zeros(3, 5)}),
    ("grad_h_n", {"grad_h_n": zeros(1, 3, 4)}),
    ("saved", {"saved": zeros(5, 3, 2, dtype=torch.int32)}),
    ("saved", {"saved": zeros(5, 3, 1)}),
    ("saved", {"saved": zeros(0)}),
    ("saved", {"saved": zeros(3, 5, 1, dtype=torch.int32).transpose(0, 1)}),
    ("saved", {"nonlinearity": "tanh"}),
    ("h0", {"h0": zeros(4, 4)}),
    ("weight_hh", {"weight_hh": zeros(4, 5)}),
    ("decay", {"decay": zeros(3)}),
    ("output", {"output": zeros(5, 4)}),
    ("output", {"output": zeros(5, 3, 4, dtype=torch.int64)}),
]


def message_of(operator: Any, arguments: dict[str, Any], meta: bool) -> str:
    values = tuple(arguments.values())
    with pytest.raises((ValueError, NotImplementedError)) as error:
        operator(*(on_meta(values) if meta else values))
    return str(error.value)


def shown(wrong: Any) -> str:
    if not isinstance(wrong, dict):
        return str(wrong)
    return ",".join(
        f"{k}={str(v.dtype)[6:]}{list(v.shape)}" if isinstance(v, Tensor) else f"{k}={v}"
        for k, v in wrong.items()
    )


@pytest.mark.parametrize(("name", "wrong"), WRONG, ids=shown)
def test_forward_errors_have_the_same_message_for_real_and_for_meta_tensors(name, wrong):
    messages = [message_of(FORWARD, GOOD | wrong, meta) for meta in (False, True)]
    assert messages[0] == messages[1]
    assert messages[0].startswith(name)


@pytest.mark.parametrize(("name", "wrong"), WRONG_BACKWARD, ids=shown)
def test_backward_errors_have_the_same_message_for_real_and_for_meta_tensors(name, wrong):
    messages = [message_of(BACKWARD, GOOD_BACKWARD | wrong, meta) for meta in (False, True)]
    assert messages[0] == messages[1]
    assert messages[0].startswith(name)


def test_the_unchanged_arguments_are_accepted():
    """Otherwise the tests above could pass for the wrong reason."""
    for changed in ({}, GROUPED, PACKED):
        FORWARD(*(GOOD | changed).values())
        FORWARD(*on_meta(tuple((GOOD | changed).values())))
    BACKWARD(*GOOD_BACKWARD.values())
    BACKWARD(*on_meta(tuple(GOOD_BACKWARD.values())))


@pytest.mark.parametrize("name", ["pre", "h0", "weight_hh", "decay", "batch_sizes"])
def test_one_meta_tensor_among_real_ones_is_refused(name):
    # No kernel may return uninitialized memory for such a mixture.
    arguments = GOOD | PACKED
    with pytest.raises(ValueError, match="must be on the"):
        FORWARD(*(arguments | {name: arguments[name].to("meta")}).values())


def test_a_float32_decay_on_another_device_than_halves_is_refused():
    halves = {k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in GOOD.items()}
    FORWARD(*(halves | {"decay": zeros(4)}).values())
    with pytest.raises(ValueError, match="decay must be on the device of pre, cpu, got meta"):
        FORWARD(*(halves | {"decay": zeros(4).to("meta")}).values())


@pytest.mark.parametrize("name", ["grad_output", "grad_h_n", "output", "saved", "h0", "weight_hh", "decay"])
def test_one_meta_tensor_among_real_ones_is_refused_in_backward(name):
    arguments = GOOD_BACKWARD | {name: GOOD_BACKWARD[name].to("meta")}
    with pytest.raises(ValueError, match=r"must be on the|saved must be"):
        BACKWARD(*arguments.values())


def test_one_real_tensor_among_meta_ones_is_refused():
    for name in ("pre", "h0", "weight_hh", "decay"):
        arguments = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in GOOD.items()}
        with pytest.raises(ValueError, match="must be on the"):
            FORWARD(*(arguments | {name: GOOD[name]}).values())
