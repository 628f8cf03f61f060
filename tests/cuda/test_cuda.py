"""The recurrence on CUDA tensors: values and derivatives against the reference in float64, every team of
blocks, streams, graphs, and errors. Needs a GPU; cuda_helpers.py explains how it runs without one.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from cuda_helpers import (
    CAN_RUN,
    DEVICE,
    DTYPES,
    GRADIENT_TOLERANCE,
    HAS_TEAMS,
    LARGE,
    ON_GPU,
    SEED,
    SMALL,
    TEAMS,
    TOLERANCE,
    check,
    drawn,
    fits,
    kinds_on_device,
    on_device,
    results,
    same_bits,
    wide,
)
from helpers import FORMS, KINDS, LAYOUTS, clear_problem, distance, make_problem, normal_like
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_sequence

from rnnkernels import LeakyRNN, functional

pytestmark = pytest.mark.skipif(not CAN_RUN, reason="no GPU, or built without CUDA kernels")
gpu_only = pytest.mark.skipif(not ON_GPU, reason="tests streams, graphs or memory of a GPU")


@pytest.fixture(autouse=True)
def seed() -> int:
    print(f"RNNKERNELS_TEST_SEED={SEED}")  # shown if a test fails
    return SEED


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch):
    def set_team(team: str) -> None:
        monkeypatch.setenv("RNNKERNELS_TEAM", team)

    return set_team


# --- Values and gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [pytest.param(SMALL, id="small", marks=pytest.mark.sanitize), pytest.param(LARGE, id="large")]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("team", TEAMS)
def test_every_team_and_dtype_equals_the_reference(team: str, dtype, sizes, seed: int, force) -> None:
    if sizes is LARGE and not ON_GPU:
        pytest.skip("takes too long on the CPU and on the emulated GPU")
    force(team)
    tried = 0
    for i, shape in enumerate(sizes[team]):
        problem = drawn(seed + i, shape, dtype)
        if fits(team, problem):
            tried += 1
            check(problem, seed)
    if tried == 0:
        pytest.skip("no such team for this type on this device")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("team", ["", "steps"])
def test_every_form_and_nonlinearity(team: str, dtype, reverse: bool, packed: bool, seed: int, force) -> None:
    force(team)
    for problem in kinds_on_device(seed, 4, 3, 5, dtype=dtype, reverse=reverse, packed=packed):
        check(problem, seed)


@pytest.mark.parametrize("name", ["pre", "h0", "weight_hh", "decay"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("team", ["", "steps"])
def test_any_strides(team: str, layout: str, name: str, seed: int, force) -> None:
    force(team)
    for form in FORMS:
        check(make_problem(seed, 4, 3, 6, form=form, nonlinearity="tanh").relaid(name, layout), seed)
        check(drawn(seed, (4, 3, 6), torch.float32, h0=True, decay="unit").relaid(name, layout), seed)


@pytest.mark.parametrize("form", FORMS)
def test_expanded_gradients_of_a_sum(form: str, seed: int) -> None:
    problem = clear_problem(seed, 5, 4, 33, form=form, dtype=torch.float64)
    here, there = problem.to(DEVICE).leaves(), problem.leaves()
    for leaves in (here, there):
        output, h_n = leaves.run()
        (output.sum() + h_n.mean()).backward()
    for name, x in there.tensors.items():
        assert distance(here.tensors[name].grad, x.grad, 1.0) < 1e-12, name


def test_long_packed_sequences(seed: int) -> None:
    """The layout needs the arguments of more than one launch."""
    for i, (steps, reverse) in enumerate(((224, False), (225, True), (700, False))):
        check(drawn(seed + i, (steps, 3, 5), torch.float64, packed=True, reverse=reverse), seed)


@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (3, 0), (0, 0)])
def test_no_steps_or_no_rows(steps: int, batch: int, seed: int) -> None:
    problem = make_problem(seed, steps, batch, 5, dtype=torch.float32)
    output, h_n, *gradients = results(problem)
    assert output.shape == (steps, batch, 5)
    assert torch.equal(h_n.cpu(), problem.h0) or batch == 0
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("team", ["", "steps"])
def test_a_slow_leak_in_half_precision(team: str, dtype: torch.dtype, force) -> None:
    force(team)
    pre = torch.ones(500, 2, 9, dtype=dtype, device=DEVICE)
    weight = torch.zeros(9, 9, dtype=dtype, device=DEVICE)
    output, _ = functional.leaky_recurrence(pre, None, weight, 0.9995)
    expected = 1 - 0.9995 ** torch.arange(1, 501, dtype=torch.float64)
    assert distance(output[:, 1, 5], expected) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("team", ["", "steps"])
def test_the_gradient_of_a_slow_decay_in_half_precision(team: str, packed: bool, dtype, seed: int, force):
    force(team)
    for problem in kinds_on_device(seed, 8, 3, 5, dtype=dtype, packed=packed):
        problem = replace(problem, decay=1 - 1e-4 * torch.linspace(1, 2, 5))
        grads = [normal_like(x, seed + i).to(dtype) for i, x in enumerate(problem.expected())]
        expected = problem.expected_gradients(*grads)["decay"]
        leaves = problem.to(DEVICE).leaves()
        (found,) = torch.autograd.grad(leaves.run(), [leaves.tensors["decay"]], [g.to(DEVICE) for g in grads])
        found = found.cpu()
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_tf32_follows_the_switch_of_torch(seed: int) -> None:
    problem = drawn(seed, (20, 8, 128), torch.float32, nonlinearity="tanh", packed=False)
    expected, _ = problem.expected()
    exact, _ = problem.to(DEVICE).run()
    assert distance(exact, expected) < TOLERANCE[torch.float32]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        loose, _ = problem.to(DEVICE).run()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert distance(loose, expected) < 5e-3
    assert HAS_TEAMS is not torch.equal(loose, exact)


# --- Derivatives, transforms, modules ----------------------------------------------------------------


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_second_derivatives(form: str, nonlinearity: str, seed: int) -> None:
    problem = clear_problem(seed, 4, 3, 5, form=form, nonlinearity=nonlinearity, dtype=torch.float64)

    def second(at) -> dict[str, torch.Tensor]:
        leaves = at.leaves()
        output, h_n = leaves.run()
        loss = output.square().sum() + h_n.sin().sum()
        first = torch.autograd.grad(loss, list(leaves.tensors.values()), create_graph=True)
        sum(x.square().sum() for x in first).backward()
        return {name: x.grad for name, x in leaves.tensors.items()}

    expected = second(problem)
    for name, x in second(problem.to(DEVICE)).items():
        assert distance(x, expected[name], 1.0) < 1e-10, name


@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_forward_mode(form: str, nonlinearity: str, seed: int) -> None:
    problem = clear_problem(seed, 4, 3, 5, form=form, nonlinearity=nonlinearity, dtype=torch.float64)
    along = {name: normal_like(x, seed + i) for i, (name, x) in enumerate(problem.tensors.items())}
    along["decay"] = along["decay"] * 0.01

    def tangents(at, directions):
        def run(*tensors):
            return replace(at, **dict(zip(at.tensors, tensors, strict=True))).run()

        return jvp(run, tuple(at.tensors.values()), tuple(directions.values()))[1]

    found = tangents(problem.to(DEVICE), {name: on_device(x) for name, x in along.items()})
    for x, expected in zip(found, tangents(problem, along), strict=True):
        assert distance(x, expected, 1.0) < 1e-11


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("team", ["", "block", "grid", "steps"])
def test_vmap_over_networks_equals_a_loop(team: str, dtype, packed: bool, seed: int, force) -> None:
    force(team)
    first = drawn(seed, (4, 9, 33), dtype, nonlinearity="tanh", packed=packed, h0=True, decay="unit")
    problems = [first]
    for i in range(1, 3):
        noise = {name: 0.1 * normal_like(x, seed + i) for name, x in first.tensors.items() if name != "decay"}
        others = {name: first.tensors[name] + x for name, x in noise.items()}
        problems.append(replace(first, **others, decay=first.decay * 0.5**i))
    if not fits(team, first):
        pytest.skip("no such team for this type on this device")

    def loss(tensors):
        output, h_n = replace(first, **tensors).run()
        return (output.double() ** 2).sum() + h_n.double().sin().sum(), output

    many = {
        name: torch.stack([on_device(p.tensors[name]) for p in problems]).requires_grad_()
        for name in first.tensors
    }
    losses, output = vmap(loss)(many)
    found = torch.autograd.grad(losses.sum(), list(many.values()))
    force("")  # the reference below runs on the CPU, which may be the emulated GPU
    for i, problem in enumerate(problems):
        single = wide(problem).leaves()
        expected, values = loss(single.tensors)
        assert distance(output[i], values, 1.0) < TOLERANCE[dtype]
        gradients = torch.autograd.grad(expected, list(single.tensors.values()))
        least = problem.magnitudes()
        for name, x, y in zip(many, found, gradients, strict=True):
            assert distance(x[i], y, least[name]) < 2 * GRADIENT_TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_layer_equals_the_cpu(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    layer = LeakyRNN(5, 9, 2, bidirectional=True, decay=0.5, learn_decay=True, learn_h0=True,
                     nonlinearity="tanh").double()  # fmt: skip
    there = copy.deepcopy(layer).to(DEVICE, dtype)
    pack = [torch.randn(n, 5, dtype=torch.float64) for n in (7, 4, 4, 1)]
    for inputs in (torch.randn(6, 3, 5, dtype=torch.float64), pack_sequence(pack)):
        moved: Any = inputs
        for module, x in ((layer, inputs), (there, moved.to(DEVICE, dtype))):
            module.zero_grad()
            output, h_n = module(x)
            values = output if isinstance(output, torch.Tensor) else output.data
            (values.square().sum() + h_n.sum()).backward()
        for (name, a), b in zip(there.named_parameters(), layer.parameters(), strict=True):
            assert distance(a.grad, b.grad, 1.0) < 10 * TOLERANCE[dtype], name


def test_an_ensemble_is_one_call(seed: int) -> None:
    torch.manual_seed(seed)
    layers = [LeakyRNN(3, 8, decay=0.5).to(DEVICE) for _ in range(4)]
    parameters, buffers = stack_module_state(layers)
    x = torch.randn(5, 2, 3, device=DEVICE)
    base = copy.deepcopy(layers[0]).to("meta")
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,))[0])(parameters, buffers)
    for i, layer in enumerate(layers):
        assert distance(found[i], layer(x)[0], 1.0) < TOLERANCE[torch.float32]


def test_autocast_leaves_the_recurrence_in_float32(seed: int) -> None:
    problem = drawn(seed, (6, 4, 33), torch.float32, packed=False)
    plain = results(problem)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert same_bits(results(problem), plain)


def test_compiled_without_a_graph_break(seed: int) -> None:
    torch.manual_seed(seed)
    layer = LeakyRNN(3, 8, decay=0.5).to(DEVICE)
    x = torch.randn(5, 2, 3, device=DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert distance(compiled(x)[0], layer(x)[0], 1.0) < TOLERANCE[torch.float32]
    torch.autograd.grad(compiled(x)[0].sum(), list(layer.parameters()))


# --- Streams, graphs and memory of the device --------------------------------------------------------


def near(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Compares with a tolerance: on another stream, or in a graph, a library may use another product."""
    pairs = zip(found, expected, strict=True)
    return all(distance(x, y, 1.0) < TOLERANCE[x.dtype] for x, y in pairs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("team", TEAMS)
def test_bits_are_the_same_from_run_to_run(team: str, dtype: torch.dtype, seed: int, force) -> None:
    force(team)
    problem = drawn(seed, (5, 20, 70), dtype)
    if not fits(team, problem):
        pytest.skip("no such team for this type on this device")
    first = results(problem)
    for _ in range(20 if ON_GPU else 2):
        assert same_bits(results(problem), first)


@gpu_only
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("team", TEAMS)
def test_nothing_synchronizes_with_the_host(team: str, packed: bool, seed: int, force) -> None:
    force(team)
    problem = drawn(seed, (5, 9, 33), torch.float32, packed=packed, decay="unit")
    if not fits(team, problem):
        pytest.skip("no such team for this type on this device")
    leaves = problem.to(DEVICE).leaves()
    leaves.run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output, h_n = leaves.run()
        torch.autograd.grad((output.sum() + h_n.sum()), list(leaves.tensors.values()))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu_only
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("team", TEAMS)
def test_a_graph_of_forward_and_backward_replays_with_new_values(
    team: str, packed: bool, seed: int, force
) -> None:
    force(team)
    problem = drawn(seed, (6, 9, 33), torch.float32, packed=packed, h0=True, decay="unit")
    if not fits(team, problem):
        pytest.skip("no such team for this type on this device")
    leaves = problem.to(DEVICE).leaves()
    names, tensors = list(leaves.tensors), list(leaves.tensors.values())

    def step() -> list[torch.Tensor]:
        output, h_n = leaves.run()
        loss = output.square().sum() + h_n.sum()
        return [output, h_n, *torch.autograd.grad(loss, tensors)]

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for i in range(3):
        new = {
            name: x + 0.1 * normal_like(x, seed + i) * (name != "decay")
            for name, x in problem.tensors.items()
        }
        with torch.no_grad():
            for name, x in zip(names, tensors, strict=True):
                x.copy_(new[name])
        replayed = [x.detach() for x in captured]
        for x in replayed:
            x.fill_(torch.nan)
        graph.replay()
        assert near(replayed, step())


@gpu_only
@pytest.mark.parametrize("team", TEAMS)
def test_several_streams_at_once(team: str, seed: int, force) -> None:
    force(team)
    problems = [drawn(seed + i, (50, 9, 33), torch.float32) for i in range(8)]
    if not fits(team, problems[0]):
        pytest.skip("no such team for this type on this device")
    expected = [results(problem) for problem in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    for _ in range(3):
        found = []
        for problem, stream in zip(problems, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(results(problem))
        torch.cuda.synchronize()
        assert all(map(near, found, expected))


@gpu_only
@pytest.mark.parametrize("team", ["", "steps"])
def test_more_than_two_to_the_31_elements(team: str, force) -> None:
    force(team)
    steps, batch, hidden, last = 2100, 4096, 256, 3
    count = steps * batch * hidden
    assert count > 2**31
    free, _ = torch.cuda.mem_get_info()
    if free < 4 * 4 * count * 1.1:
        pytest.skip(f"needs {4 * 4 * count * 1.1 / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")
    pre = torch.randn(steps, batch, hidden, device=DEVICE).requires_grad_()
    weight = torch.randn(hidden, hidden, device=DEVICE) / hidden**0.5
    output, h_n = functional.leaky_recurrence(pre, None, weight, 0.5)
    tail = pre[-last:].detach().clone().requires_grad_()
    again, h_n_again = functional.leaky_recurrence(tail, output[-last - 1], weight, 0.5)
    assert same_bits([output[-last:].contiguous(), h_n], [again, h_n_again])
    (d_pre,) = torch.autograd.grad(output.sum() + h_n.sum(), pre)
    (d_tail,) = torch.autograd.grad(again.sum() + h_n_again.sum(), tail)
    assert same_bits([d_pre[-last:].contiguous()], [d_tail])
    assert d_pre[0].isfinite().all()


# --- Errors ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_TEAMS, reason="the CPU kernels have no teams")
@pytest.mark.parametrize(
    ("team", "dtype", "message"),
    [
        ("warp", torch.float32, "RNNKERNELS_TEAM must be block, .*, got warp"),
        ("block", torch.float64, "RNNKERNELS_TEAM block does not fit H 5, B 2"),
    ],
)
def test_an_unknown_team_or_one_that_does_not_fit(
    team: str, dtype: torch.dtype, message: str, seed: int, force
) -> None:
    force(team)
    with pytest.raises(ValueError, match=message):
        make_problem(seed, 3, 2, 5, dtype=dtype).to(DEVICE).run()


@gpu_only
def test_tensors_of_two_devices(seed: int) -> None:
    problem = make_problem(seed, packed=True)
    here = problem.to(DEVICE)
    with pytest.raises(ValueError, match=r"weight_hh must be on the device of pre, cuda:0, got cpu"):
        replace(here, weight_hh=problem.weight_hh).run()
    with pytest.raises(ValueError, match=r"batch_sizes must be .* on the CPU, got .*cuda:0"):
        replace(here, h0=None, batch_sizes=problem.batch_sizes.to(DEVICE)).run()
    with pytest.raises(ValueError, match=r"batch_sizes must be on the CPU, got cuda:0"):
        replace(here, batch_sizes=problem.batch_sizes.to(DEVICE)).run()


def test_a_number_outside_the_range_of_decay(seed: int) -> None:
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1"):
        replace(make_problem(seed), decay=1.0).to(DEVICE).run()
