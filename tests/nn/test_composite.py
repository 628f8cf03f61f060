"""The composite loop that replaces the kernels, on CPU tensors and on fake CUDA tensors."""

from __future__ import annotations

import copy
import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import (
    DTYPES,
    FORMS,
    KINDS,
    assert_near,
    check_backward,
    check_forward,
    clear_problem,
    distance,
    gradients,
    make_problem,
    normal_like,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.nn.utils.rnn import pack_sequence

from rnnkernels import LeakyRNN, LeakyRNNCell, _devices, build_config, functional
from rnnkernels._ops import composite
from rnnkernels._ops.spec import RecurrenceSpec, RecurrenceTensors
from rnnkernels.nn._base import LeakyModule

LAYOUTS = tuple(itertools.product([False, True], [False, True]))  # packed, reverse


@pytest.fixture
def no_kernels(monkeypatch):
    """No device has kernels, and the warning has been given."""
    monkeypatch.setattr(_devices, "_DEVICES", dict.fromkeys(_devices._DEVICES, ()))
    monkeypatch.setattr(_devices, "_warned", {_devices.LOOP})


@pytest.fixture
def no_cuda(monkeypatch):
    """A build without CUDA kernels, in a process that has not been warned."""
    monkeypatch.setattr(_devices, "_DEVICES", dict.fromkeys(_devices._DEVICES, ("cpu", "meta")))
    monkeypatch.setattr(_devices, "_warned", set())


def with_kernels(function, *arguments, **keywords):
    """Call a function with kernels for the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_devices, "_DEVICES", dict.fromkeys(_devices._DEVICES, ("cpu", "meta")))
        return function(*arguments, **keywords)


# --- The function ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("packed", "reverse"), LAYOUTS)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_values_and_gradients_equal_the_reference(form, nonlinearity, packed, reverse, dtype, no_kernels):
    for h0, decay in ((True, "unit"), (False, "scalar"), (True, "number")):
        problem = clear_problem(
            0, 6, 3, 5, form=form, nonlinearity=nonlinearity, packed=packed, reverse=reverse, dtype=dtype,
            h0=h0, decay=decay,
        )  # fmt: skip
        check_forward(problem)
        output, h_n = problem.run()
        check_backward(problem, normal_like(output, 1), normal_like(h_n, 2))


@pytest.mark.parametrize(("packed", "reverse"), LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_derivatives_of_second_order_and_forward_mode(form, packed, reverse, no_kernels):
    problem = make_problem(
        0, 4, 3, 4, form=form, nonlinearity="tanh", packed=packed, reverse=reverse
    ).leaves()
    names = list(problem.tensors)

    def run(*tensors):
        return replace(problem, **dict(zip(names, tensors, strict=True))).run()

    tensors = tuple(problem.tensors.values())
    assert gradcheck(run, tensors, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "names", [("pre",), ("weight_hh",), ("pre", "h0", "weight_hh", "decay")], ids="+".join
)
def test_vmap_is_a_loop_over_the_examples(names, packed, no_kernels):
    problem = make_problem(0, packed=packed)
    many = {k: torch.stack([x, 0.5 * x]) if k in names else x for k, x in problem.tensors.items()}
    dims = {k: 0 if k in names else None for k in many}
    found = vmap(lambda tensors: replace(problem, **tensors).run(), in_dims=(dims,))(many)
    for i in range(2):
        single = replace(problem, **{k: x[i] if k in names else x for k, x in many.items()})
        for a, b in zip(found, single.expected(), strict=True):
            assert distance(a[i], b) < 1e-14


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_networks_equal_calls_of_their_own(packed, shared, no_kernels):
    one, two = (make_problem(seed, packed=packed) for seed in (0, 1))
    two = replace(two, pre=normal_like(one.pre, 5), batch_sizes=one.batch_sizes)
    if shared:
        two = replace(two, decay=one.decay)
    both = [torch.stack(pair) for pair in zip(one.tensors.values(), two.tensors.values(), strict=True)]
    decay = one.decay if shared else both.pop()
    tensors = RecurrenceTensors(*both[:3], decay, one.batch_sizes)
    found = composite.leaky_recurrence(tensors, decay, RecurrenceSpec("relu", "rate", False))
    for i, problem in enumerate((one, two)):
        for a, b in zip(found, problem.expected(), strict=True):
            assert distance(a[i], b) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_storage_only(dtype, no_kernels):
    problem = make_problem(0, 40, 3, 5, dtype=torch.float32, nonlinearity="tanh")
    half = replace(problem, **{k: x.to(dtype) for k, x in problem.tensors.items() if k != "decay"}).leaves()
    wide = replace(problem, **{k: x.detach().float() for k, x in half.tensors.items()}).leaves()
    for found, expected in zip(half.run(), wide.run(), strict=True):
        assert torch.equal(found, expected.to(dtype))
    grads = [normal_like(x, seed).to(dtype) for seed, x in enumerate((problem.pre, problem.h0))]
    expected = gradients(wide, *(grad.float() for grad in grads))
    for name, found in gradients(half, *grads).items():
        assert torch.equal(found, expected[name].to(torch.float32 if name == "decay" else dtype)), name


@pytest.mark.parametrize("h0", [False, True])
def test_no_steps_and_no_rows(h0, no_kernels):
    problem = make_problem(0, 0, h0=h0)
    output, h_n = problem.run()
    assert output.shape == (0, 3, 4)
    assert torch.equal(h_n, problem.h0 if h0 else torch.zeros(3, 4, dtype=problem.dtype))
    assert not h0 or h_n.data_ptr() != problem.h0.data_ptr()
    output, h_n = make_problem(0, batch=0, h0=h0).run()
    assert (output.shape, h_n.shape) == ((5, 0, 4), (0, 4))


def test_without_a_leak_an_infinite_state_is_forgotten(no_kernels):
    infinite = torch.full((1, 2), torch.inf)
    output, _ = functional.leaky_recurrence(torch.ones(2, 1, 2), infinite, -torch.ones(2, 2), 0)
    assert torch.equal(output, torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]]))


# --- Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"pre": torch.zeros(5, 4)},
        {"pre": torch.zeros(5, 3, 4, dtype=torch.int64)},
        {"h0": torch.zeros(1, 4)},
        {"h0": torch.zeros(3, 4, dtype=torch.float64)},
        {"weight_hh": torch.zeros(4, 1)},
        {"weight_hh": torch.zeros(4, 4, device="meta")},
        {"h0": torch.zeros(3, 4, device="meta")},
        {"decay": torch.zeros(1)},
        {"decay": torch.zeros((), device="meta")},
        {"decay": 1.0},
        {"nonlinearity": "gelu"},
        {"form": "leaky"},
        {"pre": torch.zeros(6, 4), "batch_sizes": torch.tensor([2, 2, 2])},
        {"pre": torch.zeros(6, 4), "batch_sizes": torch.tensor([3, 1])},
        {"pre": torch.zeros(6, 4), "batch_sizes": torch.tensor([3, 1, 2])},
        {"pre": torch.zeros(4, 4), "batch_sizes": torch.tensor([3, 1, 0])},
        {"pre": torch.zeros(4, 4), "batch_sizes": torch.tensor([3, 1], dtype=torch.int32)},
        {"pre": torch.zeros(4, 4), "batch_sizes": torch.zeros(2, dtype=torch.int64, device="meta")},
    ],
    ids=str,
)
def test_errors_name_the_same_argument_as_the_kernels(changed, no_kernels):
    good = {
        "pre": torch.zeros(5, 3, 4),
        "h0": torch.zeros(3, 4),
        "weight_hh": torch.zeros(4, 4),
        "decay": 0.5,
    }
    functional.leaky_recurrence(**good)
    with pytest.raises((ValueError, TypeError)) as found:
        functional.leaky_recurrence(**good | changed)
    if not any(isinstance(x, torch.Tensor) and x.is_meta for x in changed.values()):
        with pytest.raises((ValueError, TypeError)) as expected:
            with_kernels(functional.leaky_recurrence, **good | changed)
        assert str(found.value).split()[:4] == str(expected.value).split()[:4]
    elif "batch_sizes" in changed:
        assert str(found.value) == "batch_sizes must be on the CPU, got meta"
    else:
        assert str(found.value) == f"{next(iter(changed))} must be on the device of pre, cpu, got meta"


# --- The layer and the cell --------------------------------------------------------------------------


def trained(module, *inputs, **keywords):
    """Return the results of a copy of a module, and the gradients of its parameters."""
    module = copy.deepcopy(module)
    results = module(*inputs, **keywords)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    results = [x if isinstance(x, torch.Tensor) else x.data for x in results]
    sum((x**2).sum() for x in results).backward()
    grads = {name: x.grad for name, x in module.named_parameters() if x.grad is not None}
    return {str(i): x for i, x in enumerate(results)} | grads


def check_same(module, *inputs, **keywords):
    expected = with_kernels(trained, module, *inputs, **keywords)
    assert_near(trained(module, *inputs, **keywords), expected, 4e-6)


VARIANTS = {
    "plain": {},
    "units, current": {"decay": torch.linspace(0, 0.9, 5), "form": "current"},
    "bidirectional": {
        "num_layers": 2,
        "bidirectional": True,
        "nonlinearity": "softplus",
        "decay": [0.0, 0.5],
    },
    "learned": {"num_layers": 2, "learn_decay": True, "learn_h0": True, "decay": 0.5},
    "checkpointing": {"num_layers": 2, "checkpoint_every": 2, "nonlinearity": "tanh"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_layer_equals_the_layer_with_kernels(name, no_kernels):
    layer = LeakyRNN(3, 5, **VARIANTS[name])
    directions = 2 if layer.bidirectional else 1
    hx = torch.randn(layer.num_layers * directions, 2, 5)
    drive = torch.randn(4, 2, 5 * directions)
    check_same(layer, torch.randn(4, 2, 3), hx, drive=drive)
    check_same(layer, torch.randn(4, 3))
    check_same(layer, pack_sequence([torch.randn(n, 3) for n in (2, 4, 1)], enforce_sorted=False))


def test_the_cell_equals_the_cell_with_kernels(no_kernels):
    check_same(LeakyRNNCell(3, 5, decay=0.5, learn_decay=True), torch.randn(2, 3), torch.randn(2, 5))
    check_same(LeakyRNNCell(3, 5, nonlinearity="sigmoid"), torch.randn(3), drive=torch.randn(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_state_is_not_rounded(dtype, no_kernels):
    layer, x = LeakyRNN(3, 5, decay=0.5, nonlinearity="tanh", dtype=dtype), torch.randn(4, 2, 3, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = layer(x), with_kernels(layer, x)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert distance(a, b) < 1e-6


# --- Compiled ----------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_layer_equals_the_eager_one(no_kernels, fresh_compiler):
    layer, x = LeakyRNN(3, 5, 2, decay=0.5, bidirectional=True), torch.randn(4, 2, 3)
    results = []
    for run in (torch.compile(layer, fullgraph=True, backend="aot_eager"), layer):
        output, h_n = run(x)
        grads = torch.autograd.grad((output**2).sum() + h_n.sum(), layer.parameters())
        results.append((output, h_n, *grads))
    assert all(distance(*pair) < 1e-6 for pair in zip(*results, strict=True))


def test_a_packed_batch_compiles_with_graph_breaks(no_kernels, fresh_compiler):
    layer, packed = LeakyRNN(3, 5), pack_sequence([torch.randn(n, 3) for n in (4, 2, 1)])
    output = torch.compile(layer, backend="aot_eager")(packed)[0]
    assert distance(output.data, layer(packed)[0].data) < 1e-6


# --- The predicate and the warning -------------------------------------------------------------------

CUDA = (
    "rnnkernels was built without CUDA kernels: tensors on cuda:0 take a loop of torch operations, many "
    "times slower; build it where nvcc is found (RNNKERNELS_CUDA=1 pip install --no-build-isolation .)"
)


def test_the_cpu_has_kernels_and_cuda_if_they_were_built():
    for name, has in {"cpu": True, "meta": True, "cuda": build_config()["cuda"], "mps": False}.items():
        assert _devices.has_kernels(torch.device(name)) is has, name
    assert _devices.has_kernels(torch.device("cpu"), "projected_recurrence")


def test_the_warning_says_how_to_get_kernels():
    assert _devices.warning(torch.device("cuda", 0)) == CUDA
    assert _devices.warning(torch.device("mps", 0)) == (
        "rnnkernels has kernels for the CPU and for CUDA: tensors on mps:0 take a loop of torch operations, "
        "many times slower"
    )


def test_cuda_tensors_use_the_loop_with_one_warning(no_cuda, monkeypatch):
    monkeypatch.setattr(LeakyModule, "reset_parameters", lambda self: None)  # drawing would need a GPU
    with FakeTensorMode(), torch.no_grad(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        layer = LeakyRNN(3, 5, 2, bidirectional=True, decay=0.5, device="cuda")
        for _ in range(2):
            output, h_n = layer(torch.randn(4, 2, 3, device="cuda"))
    assert [str(x.message) for x in seen] == [CUDA]
    assert seen[0].category is UserWarning
    assert output.device == h_n.device == torch.device("cuda", 0)
    assert (output.shape, h_n.shape) == ((4, 2, 10), (4, 2, 5))


def test_a_compiled_function_warns_once(no_kernels, monkeypatch, fresh_compiler):
    monkeypatch.setattr(_devices, "_warned", set())
    compiled = torch.compile(LeakyRNN(3, 5), fullgraph=True, backend="eager")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for steps in (4, 4, 5):
            compiled(torch.randn(steps, 2, 3))
    assert [str(x.message) for x in seen if "rnnkernels" in str(x.message)] == [
        _devices.warning(torch.device("cpu"))
    ]


def test_weights_on_another_device_are_refused(no_cuda):
    with FakeTensorMode():
        layer = LeakyRNN(3, 5)
        x = torch.randn(4, 2, 3, device="cuda")
        with pytest.raises(RuntimeError, match="input must be on the device of the weights, cpu, got cuda:0"):
            layer(x)
        with pytest.raises(ValueError, match="weight_hh must be on the device of pre, cuda:0, got cpu"):
            functional.leaky_recurrence(torch.randn(4, 2, 5, device="cuda"), None, layer.weight_hh_l0, 0.5)
