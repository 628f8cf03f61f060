"""functional.leaky_recurrence compared with the reference for all kinds of calls."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    DTYPES,
    FORMS,
    KINDS,
    LAYOUTS,
    NONLINEARITIES,
    TOLERANCE,
    Problem,
    assert_near,
    check,
    check_backward,
    check_forward,
    check_half,
    clear_problem,
    distance,
    gradients,
    layouts,
    make_problem,
    normal_like,
    problems,
    relaid,
    rounds_factors,
    run_python,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rnnkernels import LeakyRNN, build_config, functional
from rnnkernels import testing as reference
from rnnkernels._ops.nonlinearities import NONLINEARITIES as FUNCTIONS


@settings(max_examples=200)
@given(problems())
def test_forward_equals_the_reference(problem):
    check_forward(problem)


@settings(max_examples=200)
@given(
    problems(),
    st.sampled_from(("output", "h_n", "both")),
    layouts,
    layouts,
    st.integers(0, 1000),
)
def test_backward_equals_the_reference(problem, which, output_layout, h_n_layout, seed):
    assume(problem.has_clear_slopes())
    output, h_n = problem.run()
    grad_output = relaid(normal_like(output, seed), output_layout) if which != "h_n" else None
    grad_h_n = relaid(normal_like(h_n, seed + 1), h_n_layout) if which != "output" else None
    check_backward(problem, grad_output, grad_h_n)


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
@pytest.mark.parametrize("name", ["pre", "h0", "weight_hh", "decay", "grad_output", "grad_h_n"])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
def test_any_strides_of_any_argument_give_correct_results(layout, name, form, nonlinearity):
    problem = make_problem(5, 4, 3, 21, form=form, nonlinearity=nonlinearity, dtype=torch.float32)
    grads = {"grad_output": normal_like(problem.pre, 1), "grad_h_n": normal_like(problem.h0, 2)}
    if name in grads:
        grads[name] = relaid(grads[name], layout)
    else:
        problem = problem.relaid(name, layout)
    assert problem.has_clear_slopes()
    check_forward(problem)
    check_backward(problem, grads["grad_output"], grads["grad_h_n"])


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_expanded_gradients_of_a_sum_give_correct_results(form, nonlinearity):
    problem = clear_problem(0, 6, 4, 19, form=form, nonlinearity=nonlinearity)
    leaves = problem.leaves()
    output, h_n = leaves.run()
    (output.sum() + h_n.sum()).backward()
    found = {name: x.grad for name, x in leaves.tensors.items()}
    expected = problem.expected_gradients(torch.ones_like(output), torch.ones_like(h_n))
    assert_near(found, expected, TOLERANCE[problem.dtype], problem.magnitudes())


def test_strided_input_is_not_changed():
    problem = make_problem(0, 4, 3, 18)
    before = {name: x.clone() for name, x in problem.tensors.items()}
    gradients(problem.leaves(), torch.ones_like(problem.pre), torch.ones_like(problem.h0))
    for name, x in problem.tensors.items():
        assert torch.equal(x, before[name]), name


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
@pytest.mark.parametrize("batch", range(1, 15))
def test_every_number_of_rows_of_a_tile(batch, form, nonlinearity):
    for hidden in (16, 33, 80):
        for dtype in DTYPES:
            check(clear_problem(1, 3, batch, hidden, form=form, nonlinearity=nonlinearity, dtype=dtype))


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_many_rows_and_steps_of_a_packed_batch(form, nonlinearity, reverse):
    # More rows than one block of the gradient of weight_hh has.
    problem = clear_problem(
        0, 200, 50, 6, form=form, nonlinearity=nonlinearity, packed=True, reverse=reverse, margin=1e-9
    )
    assert problem.pre.shape[0] > 4096
    check(problem)


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_decay_near_one_and_tiny_decay(form, nonlinearity):
    for decay in (0.0, 1e-30, 0.5, 0.999, 1 - 2**-24):
        problem = make_problem(3, 8, 3, 17, form=form, nonlinearity=nonlinearity, dtype=torch.float32)
        problem = replace(problem, decay=torch.full((17,), decay))
        check_forward(problem)


def test_a_number_a_scalar_tensor_and_equal_units_give_the_same_decay():
    problem = make_problem(1, 4, 3, 9, dtype=torch.float32)
    number, scalar, unit = (
        replace(problem, decay=decay).run()[0] for decay in (0.3, torch.tensor(0.3), torch.full((9,), 0.3))
    )
    assert torch.equal(number, scalar)
    assert torch.equal(number, unit)


def test_numpy_numbers_and_ints_are_accepted_as_decays():
    problem = make_problem(1)
    for number in (0, np.float32(0.5), np.float64(0.5)):
        expected = replace(problem, decay=torch.tensor(float(number), dtype=torch.float64)).run()[0]
        assert torch.equal(replace(problem, decay=number).run()[0], expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_no_h0_equals_an_h0_of_zeros(form, packed):
    problem = make_problem(2, h0=False, form=form, nonlinearity="tanh", packed=packed)
    given = replace(problem, h0=torch.zeros(3, 4, dtype=problem.dtype))
    for a, b in zip(problem.run(), given.run(), strict=True):
        assert torch.equal(a, b)
    grads = [
        gradients(p.leaves(), normal_like(problem.pre, 1), normal_like(given.h0, 2)) for p in (problem, given)
    ]
    for name, value in grads[0].items():
        assert torch.equal(value, grads[1][name]), name


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_a_packed_call_equals_the_padded_call_where_both_have_rows(form, nonlinearity):
    packed = make_problem(6, 6, 4, 11, packed=True, form=form, nonlinearity=nonlinearity)
    sizes = packed.batch_sizes.tolist()
    assert len(set(sizes)) > 1
    padded = torch.zeros(6, 4, 11, dtype=packed.dtype)
    mask = torch.arange(4) < packed.batch_sizes[:, None]
    padded[mask] = packed.pre
    output, _ = replace(packed, pre=padded, batch_sizes=None).run()
    packed_output, packed_h_n = packed.run()
    assert torch.equal(packed_output, output[mask])
    lengths = mask.sum(0)
    assert torch.equal(packed_h_n, output[lengths - 1, torch.arange(4)])


def test_full_batch_sizes_equal_a_padded_batch():
    problem = make_problem(8, 5, 3, 7)
    flat = replace(problem, pre=problem.pre.flatten(0, 1), batch_sizes=torch.full((5,), 3))
    output, h_n = problem.run()
    flat_output, flat_h_n = flat.run()
    assert torch.equal(flat_output, output.flatten(0, 1))
    assert torch.equal(flat_h_n, h_n)


def test_batch_sizes_may_have_strides():
    problem = make_problem(8, 5, 3, 7, packed=True)
    sizes = torch.stack([problem.batch_sizes, -problem.batch_sizes], 1)[:, 0]
    assert not sizes.is_contiguous()
    assert torch.equal(replace(problem, batch_sizes=sizes).run()[0], problem.run()[0])


@pytest.mark.parametrize("form", FORMS)
def test_h_n_is_the_last_output(form):
    output, h_n = make_problem(3, form=form).run()
    assert torch.equal(output[-1], h_n)
    output, h_n = make_problem(3, form=form, reverse=True).run()
    assert torch.equal(output[0], h_n)


def test_results_are_contiguous_and_own_their_memory():
    problem = make_problem(3)
    problem = problem.relaid("pre", "transposed")
    output, h_n = problem.run()
    assert output.is_contiguous()
    assert h_n.is_contiguous()
    storages = {x.untyped_storage().data_ptr() for x in (output, h_n, *problem.tensors.values())}
    assert len(storages) == 2 + len(problem.tensors)


# --- The accuracy of f itself ------------------------------------------------------------------------


def units_in_the_last_place(actual: torch.Tensor, expected: np.ndarray) -> np.ndarray:
    """Return the difference in units of the spacing of this dtype at the result."""
    spacing = np.spacing(np.abs(expected).astype(actual.numpy().dtype)).astype(np.float64)
    return np.abs(actual.double().numpy() - expected) / spacing


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_correct_to_a_few_units_in_the_last_place(dtype):
    # Without decay and recurrent weights, one step computes f.
    smallest, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    exponents = torch.linspace(np.log2(smallest), np.log2(largest) - 1, 4001, dtype=torch.float64)
    z = torch.cat([2**exponents, torch.linspace(0, 25, 4001, dtype=torch.float64)]).to(dtype)
    z = torch.cat([z, -z])
    values, _ = functional.leaky_recurrence(
        z.view(1, -1, 2), None, torch.zeros(2, 2, dtype=dtype), 0.0, nonlinearity="tanh"
    )
    off = units_in_the_last_place(values.flatten(), np.tanh(z.double().numpy()))
    assert off.max() <= 4  # NumPy may be off by one of them


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_of_infinities_is_one_and_nan_propagates(dtype):
    z = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0], dtype=dtype)
    values, _ = functional.leaky_recurrence(
        z[None, None], None, torch.zeros(5, 5, dtype=dtype), 0.0, nonlinearity="tanh"
    )
    assert values[0, 0, :2].tolist() == [1, -1]
    assert values[0, 0, 2].isnan()
    assert values[0, 0, 3:].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_sigmoid_and_softplus_are_correct_to_a_few_units_in_the_last_place(name, dtype):
    z = torch.cat([torch.linspace(-80, 80, 4001), torch.linspace(-1, 1, 1001)]).to(dtype).double()
    z = torch.cat([z, 10 ** torch.linspace(-30, 30, 1001, dtype=z.dtype)]).to(dtype)
    values, _ = functional.leaky_recurrence(
        z[None, :, None], None, torch.zeros(1, 1, dtype=dtype), 0.0, nonlinearity=name
    )
    exact = np.asarray(reference.NONLINEARITIES[name].value(z.double().numpy()))
    # Training depends on the slope, also in both tails.
    leaf = z[None, :, None].clone().requires_grad_()
    functional.leaky_recurrence(
        leaf, None, torch.zeros(1, 1, dtype=dtype), 0.0, nonlinearity=name
    )[0].sum().backward()  # fmt: skip
    slope = reference.NONLINEARITIES[name].slope(z.double().numpy())
    rtol = 4 * torch.finfo(dtype).eps
    # Far out in the tails, float64 results of NumPy are only as exact as its exponentials.
    rtol = max(rtol, 4e-14 if dtype == torch.float64 else 0)
    np.testing.assert_allclose(values.flatten().double().numpy(), exact, rtol=rtol, atol=0)
    np.testing.assert_allclose(
        leaf.grad.flatten().double().numpy(), slope, rtol=rtol, atol=2 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_and_softplus_of_infinities_and_nan(dtype, name):
    z = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0], dtype=dtype)
    values, _ = functional.leaky_recurrence(
        z[None, None], None, torch.zeros(4, 4, dtype=dtype), 0.0, nonlinearity=name
    )
    expected = {"sigmoid": [1, 0, 0.5], "softplus": [torch.inf, 0, np.log(2)]}[name]
    assert values[0, 0, 2].isnan()
    assert values[0, 0, [0, 1, 3]].tolist() == pytest.approx(expected, rel=1e-6)


# --- Half precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_half_precision_equals_float32_rounded_once(form, nonlinearity, dtype, packed):
    problem = make_problem(
        0, 9, 3, 20, form=form, nonlinearity=nonlinearity, packed=packed, dtype=torch.float32
    )
    check_half(problem, dtype)


def test_a_decay_near_one_survives_half_precision():
    pre = torch.randn(50, 2, 4).bfloat16()
    output, _ = functional.leaky_recurrence(pre, None, torch.zeros(4, 4).bfloat16(), 0.999)
    expected, _ = functional.leaky_recurrence(pre.float(), None, torch.zeros(4, 4), 0.999)
    assert torch.equal(output, expected.bfloat16())


@pytest.mark.parametrize("shape", [(9, 3, 20), (30, 1, 130), (12, 40, 65), (5, 7, 256)], ids=str)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_bfloat16_products_round_their_operands(form, nonlinearity, shape):
    problem = make_problem(0, *shape, form=form, nonlinearity=nonlinearity, dtype=torch.float64)
    pre, h, weight = (x.bfloat16().double() for x in (problem.pre, problem.h0, problem.weight_hh))
    spec = {"form": form, "nonlinearity": nonlinearity}
    arguments = (pre.bfloat16(), h.bfloat16(), weight.bfloat16(), problem.decay.float())
    found, _ = functional.leaky_recurrence(*arguments, **spec)
    f, d = FUNCTIONS[nonlinearity].value, problem.decay.float().double()
    factor = (lambda x: x.bfloat16().double()) if rounds_factors(torch.bfloat16) else lambda x: x
    states = []
    for p in pre:
        if form == "rate":
            h = d * h + (1 - d) * f(p + factor(h) @ weight.T)
        else:
            h = d * h + (1 - d) * (p + factor(f(h)) @ weight.T)
        states.append(h)
    # float32 sums in another order may round an operand the other way, which changes a sum by less than this.
    expected = torch.stack(states)
    assert distance(found.double(), expected) < 0.6 * torch.finfo(torch.bfloat16).eps


# --- Instruction sets and threads --------------------------------------------------------------------

INSTRUCTION_SETS = build_config()["instruction_sets"]


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_each_instruction_set_gives_the_results_of_the_reference(name):
    if not INSTRUCTION_SETS[name]:
        pytest.skip(f"this processor does not run {name}")
    ran = run_python("-c", f"import helpers; helpers.check_grid({name!r})", RNNKERNELS_ISA=name)
    assert ran.returncode == 0, ran.stderr


# (T, B, H): too small for threads; threads split the units (few rows, a wide matrix; blocks that do not
# divide evenly); threads split the rows; both.
THREAD_SHAPES = [
    (5, 3, 20), (20, 1, 256), (20, 2, 384), (20, 3, 512), (20, 2, 270), (10, 64, 256), (10, 65, 100),
    (12, 7, 300),
]  # fmt: skip


def results(problem: Problem) -> dict[str, torch.Tensor]:
    """Return the results of the kernels; the gradient of weight_hh is a matrix product of torch's."""
    output, h_n = problem.run()
    found = gradients(problem.leaves(), normal_like(output, 1), normal_like(h_n, 2))
    return {"output": output, "h_n": h_n, "d_pre": found["pre"], "d_h0": found["h0"]}


@pytest.mark.parametrize("shape", THREAD_SHAPES, ids=str)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_results_are_bitwise_the_same_for_any_number_of_threads(form, nonlinearity, shape):
    for packed in (False, True):
        problem = make_problem(
            4, *shape, form=form, nonlinearity=nonlinearity, dtype=torch.float32, packed=packed
        )
        torch.set_num_threads(1)
        alone = results(problem)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for name, value in results(problem).items():
                assert torch.equal(value, alone[name]), (name, threads, packed)


@pytest.mark.parametrize("shape", [(20, 2, 384), (10, 64, 256)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_work_split_among_threads_gives_the_results_of_the_reference(dtype, shape):
    torch.set_num_threads(2)
    for form in FORMS:
        check(clear_problem(0, *shape, form=form, nonlinearity="tanh", dtype=dtype))


@pytest.mark.parametrize("shape", [(20, 1, 256), (10, 64, 256)], ids=str)
def test_results_are_bitwise_the_same_from_run_to_run(shape):
    torch.set_num_threads(2)
    problem = make_problem(4, *shape, dtype=torch.float32, nonlinearity="tanh").leaves()
    grads = normal_like(problem.pre, 1), normal_like(problem.h0, 2)
    first_values, first = problem.run(), gradients(problem, *grads)
    for _ in range(5):
        for a, b in zip(problem.run(), first_values, strict=True):
            assert torch.equal(a, b)
        for name, value in gradients(problem, *grads).items():
            assert torch.equal(value, first[name]), name


def test_calls_from_several_python_threads_at_once_are_correct():
    problems = [
        clear_problem(i, 20, batch, hidden, form=form, nonlinearity=nonlinearity, dtype=torch.float32)
        for i, (batch, hidden, form, nonlinearity) in enumerate(
            [(2, 256, "rate", "relu"), (64, 64, "current", "tanh"), (3, 300, "current", "relu"),
             (5, 33, "rate", "tanh")]
        )
    ]  # fmt: skip
    expected = [results(problem) for problem in problems]
    together = threading.Barrier(len(problems))
    wrong: list[str] = []

    def work(index: int) -> None:
        try:
            together.wait()
            for _ in range(10):
                for name, value in results(problems[index]).items():
                    if not torch.equal(value, expected[index][name]):
                        wrong.append(f"{name} of problem {index}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_backward_keeps_no_more_than_documented(nonlinearity):
    """Backward keeps the output, and in the rate form one bit or one value per unit and step."""
    for form in FORMS:
        problem = make_problem(0, 10, 4, 64, dtype=torch.float32, form=form, nonlinearity=nonlinearity)
        kept: dict[int, int] = {}

        def pack(x: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[x.data_ptr()] = x.numel() * x.element_size()
            return x

        leaves = problem.leaves()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            output, _ = leaves.run()
        inputs = {x.data_ptr() for x in leaves.tensors.values()}
        sequence = output.numel() * 4
        extra = 0 if form == "current" else sequence // 32 if nonlinearity == "relu" else sequence
        assert sum(size for pointer, size in kept.items() if pointer not in inputs) == sequence + extra


def test_use_deterministic_algorithms_changes_nothing():
    def results():
        torch.manual_seed(0)
        layer, x = (
            LeakyRNN(16, 100, 2, bidirectional=True, decay=0.5, learn_decay=True),
            torch.randn(30, 20, 16),
        )
        output, h_n = layer(x)
        (output.square().sum() + h_n.sum()).backward()
        return [output, h_n, *(p.grad for p in layer.parameters())]

    plain = results()
    assert all(torch.equal(a, b) for a, b in zip(plain, results(), strict=True))
    torch.use_deterministic_algorithms(True)
    try:
        found = results()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
