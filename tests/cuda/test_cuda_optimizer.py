"""The optimizers on CUDA tensors, against the reference in float64 and against torch. Needs a GPU;
cuda_helpers.py explains how it runs without one.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from cuda_helpers import CAN_RUN, DEVICE, ON_GPU, SEED, same_bits
from optimizer_helpers import (
    APPLY_SETTINGS,
    EDITS,
    TOLERANCE,
    Judge,
    Tree,
    assert_torch_applies_the_same,
    check_edit,
    draw_gradients,
    make_groups,
    set_gradients,
)

from rnnkernels import ClippedAdamW, ClippedNesterov, _ops

pytestmark = pytest.mark.skipif(not CAN_RUN, reason="no GPU, or built without CUDA kernels")
gpu_only = pytest.mark.skipif(not ON_GPU, reason="tests streams, graphs or memory of a GPU")

CLASSES = [ClippedNesterov, ClippedAdamW]
ALL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BAD = [math.inf, -math.inf, math.nan]

SHAPES = [[(), (0, 3), (7,), (64, 64)], [(4096,), (4097,), (0,)], [(130, 67), (3, 5, 2)]]
LAYOUTS = ["contiguous", "transposed", "gradient transposed", "sliced"]
STEPS = 4
SETTINGS = {  # of consecutive steps
    ClippedNesterov: [
        {"lr": 0.2, "momentum": 0.9, "max_norm": 1.0},
        {"lr": 0.01, "momentum": 0.0, "max_norm": None, "weight_decay": 0.01},
        {"lr": 0.1, "momentum": 0.5, "max_norm": 30.0},
        {"lr": 0.0, "momentum": 0.99, "max_norm": 0.05},
    ],
    ClippedAdamW: [
        {"lr": 0.01, "betas": (0.9, 0.999), "max_norm": 1.0},
        {"lr": 0.2, "betas": (0.0, 0.9), "max_norm": None, "weight_decay": 0.1},
        {"lr": 0.1, "betas": (0.3, 0.99), "max_norm": 30.0, "eps": 1e-3},
        {"lr": 0.0, "betas": (0.9, 0.9), "max_norm": 0.05},
    ],
}


@pytest.fixture(autouse=True)
def seed() -> int:
    print(f"RNNKERNELS_TEST_SEED={SEED}")  # shown if a test fails
    torch.manual_seed(SEED)
    return SEED


def at_step(cls, step, as_tensors):
    """The settings of a group as numbers, or as tensors of one element on the device."""

    def place(value):
        if isinstance(value, tuple):
            return tuple(map(place, value))
        return value if value is None else torch.tensor(value, dtype=torch.float64, device=DEVICE)

    settings = SETTINGS[cls][step]
    return {name: place(value) for name, value in settings.items()} if as_tensors else dict(settings)


def parameters(sizes, dtype=torch.float32, scale=1.0):
    """Parameters with gradients."""
    params = [torch.nn.Parameter(torch.randn(size, device=DEVICE).to(dtype)) for size in sizes]
    for param in params:
        param.grad = scale * torch.randn_like(param)
    return params


def left_by(params, optimizer):
    """Copies of all tensors that a step may change."""
    states = [state for param in params for state in optimizer.state[param].values()]
    numbers = [x for group in optimizer.param_groups for x in group.values() if isinstance(x, torch.Tensor)]
    return [x.detach().clone() for x in (*params, *states, *numbers, optimizer._record[1:])]


# --- Values ------------------------------------------------------------------------------------------


def check_steps(cls, dtypes, norm_type, masters, maximize, layout, as_tensors, shapes, seed):
    tree = Tree(shapes, 0.3, layout, seed)
    groups = make_groups(tree, *dtypes, device=DEVICE)
    params = [p for group in groups for p in group]
    optimizer = cls(
        [{"params": g} for g in groups], norm_type=norm_type, maximize=maximize, master_weights=masters
    )
    judge = Judge(optimizer)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group.update(at_step(cls, step, as_tensors))
        set_gradients(params, draw_gradients(tree, params, step), tree.layout)
        judge.step()
        optimizer.step()
        assert optimizer.last_grad_norm.device.type == DEVICE
        assert float(optimizer.last_grad_norm) == pytest.approx(judge.norm, rel=1e-12, abs=1e-300)
        # AdamW divides by a root, so rounding errors weigh more where all gradients of an element were small.
        judge.check((step + 1) * (5 if cls is ClippedAdamW else 1))
    assert (int(optimizer.taken_steps), int(optimizer.skipped_steps)) == (STEPS, 0)


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtypes", [(torch.float32,), (torch.float64,), ALL], ids=["float32", "float64", "all"]
)
@pytest.mark.parametrize("cls", CLASSES)
def test_steps_equal_the_reference_under_schedules(cls, dtypes, layout, as_tensors, seed):
    check_steps(cls, dtypes, 2.0, len(dtypes) > 1, False, layout, as_tensors, SHAPES, seed)


@pytest.mark.sanitize
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("cls", CLASSES)
def test_every_norm(cls, norm_type, seed):
    check_steps(cls, ALL, norm_type, False, True, "contiguous", False, [[(), (37,)], [(0,), (4097,)]], seed)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 20.0, math.inf])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 1e33), (torch.float64, 1e300), (torch.float64, 1e-200)]
)
def test_a_norm_beyond_the_range_of_its_powers(norm_type, dtype, size):
    (param,) = parameters([5000], dtype)
    optimizer = ClippedNesterov([param], lr=1.0, momentum=0.0, norm_type=norm_type)
    param.detach().zero_()
    param.grad.fill_(size)
    optimizer.step()
    norm = size * 5000 ** (1 / norm_type)
    assert float(optimizer.last_grad_norm) == pytest.approx(norm, rel=1e-6)
    wanted = size * min(1.0, 1 / (norm + 1e-6))
    assert float(-param.detach()[0]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("cls", CLASSES)
def test_hundreds_of_tensors(cls, seed):
    """More tensors than fit into the arguments of one launch."""
    shapes = [[(1 + i % 7, 1 + i % 3) for i in range(150)] for _ in range(3)]
    check_steps(cls, ALL, 2.0, True, False, "contiguous", False, shapes, seed)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_with_master_weights_starts_from_what_was_written(cls, dtype, edit):
    check_edit(cls, dtype, edit, device=DEVICE)


@gpu_only
@pytest.mark.parametrize("cls", CLASSES)
def test_25_million_elements_equal_the_cpu(cls):
    start, grads = torch.randn(5000, 5000), [torch.randn(5000, 5000) for _ in range(2)]
    here, there = (torch.nn.Parameter(start.clone().to(device)) for device in (DEVICE, "cpu"))
    optimizers = [cls([param], lr=0.01) for param in (here, there)]
    for grad in grads:
        here.grad, there.grad = grad.to(DEVICE), grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        norms = [float(optimizer.last_grad_norm) for optimizer in optimizers]
        assert norms[0] == pytest.approx(norms[1], rel=1e-13)
    tolerance = 5 * TOLERANCE[torch.float32]
    torch.testing.assert_close(here.cpu(), there, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_same_bits_on_every_run_and_for_any_alignment(cls):
    sizes = [1, 2, 3, 4095, 70_001 if ON_GPU else 9001, 5]
    starts, grads = ([torch.randn(size, device=DEVICE) for size in sizes] for _ in range(2))

    def moved(x, elements):
        return torch.cat([x.new_zeros(elements), x])[elements:]

    runs = []
    for elements in (0, 1, 3, 0):
        params = [torch.nn.Parameter(moved(x, elements)) for x in starts]
        optimizer = cls(params, lr=0.1)
        for param, grad in zip(params, grads, strict=True):
            param.grad = moved(grad, elements)
        for _ in range(3):
            optimizer.step()
        runs.append([*left_by(params, optimizer), optimizer.last_grad_norm])
    assert all(same_bits(run, runs[0]) for run in runs)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_the_sum_of_powers(p):
    """Processes exchange these sums if each has a part of the model."""
    grads = [torch.randn(n, device=DEVICE).to(dtype) for n, dtype in zip((1, 4097, 0, 300), ALL, strict=True)]
    got = _ops.gradient_power_sum([None, *grads], p, 2.0)
    assert (got.device.type, got.dtype, got.shape) == (DEVICE, torch.float64, ())
    sizes = torch.cat([grad.cpu().double() for grad in grads]).abs()
    wanted = sizes.amax() if p == math.inf else ((sizes / 2) ** p).sum()
    assert float(got) == pytest.approx(float(wanted), rel=1e-13)


# --- Gradients that are not finite, and loss scales --------------------------------------------------


@pytest.mark.sanitize
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("norm_type", [2.0, math.inf])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_skipped_step_changes_nothing(cls, norm_type, bad):
    params = parameters([5000, 3])
    optimizer = cls(params, norm_type=norm_type)
    optimizer.step()
    before = left_by(params, optimizer)
    params[0].grad[4500] = bad
    if cls is ClippedNesterov:
        optimizer.param_groups[0]["momentum"] = 0.5  # not the last step taken
    optimizer.step()
    assert same_bits(left_by(params, optimizer)[:-1], before[:-1])
    assert (int(optimizer.taken_steps), int(optimizer.skipped_steps)) == (1, 1)
    assert not math.isfinite(float(optimizer.last_grad_norm))
    params[0].grad[4500] = 1.0
    optimizer.step()
    assert (int(optimizer.taken_steps), int(optimizer.skipped_steps)) == (2, 1)


@pytest.mark.parametrize("cls", CLASSES)
def test_raise_names_the_first_bad_parameter(cls):
    params = parameters([4, 4, 4])
    optimizer = cls(params, nonfinite="raise")
    optimizer.step()
    before = left_by(params, optimizer)
    params[1].grad[2] = math.inf
    params[2].grad[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"parameter \(params\[1\] of group 0"):
        optimizer.step()
    assert same_bits(left_by(params, optimizer)[:-1], before[:-1])
    assert int(optimizer.skipped_steps) == 0


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize(("cls", "settings"), APPLY_SETTINGS)
def test_apply_equals_torch(cls, settings, bad, max_norm):
    assert_torch_applies_the_same(cls, settings, parameters([5000, 3]), bad, max_norm)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_grad_scaler(cls, unscale):
    """Steps equal those without a scaler; a step with an overflow is skipped and lowers the scale."""
    (param,) = parameters([50])
    plain = torch.nn.Parameter(param.detach().clone())
    optimizer, judge = cls([param], lr=0.1, max_norm=0.5), cls([plain], lr=0.1, max_norm=0.5)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**12, growth_interval=100)
    for step in range(5):
        x = torch.randn(50, device=DEVICE)
        overflow = step == 2
        optimizer.zero_grad()
        scaler.scale((param * x).sum() * (math.inf if overflow else 1.0)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if not overflow:
            plain.grad = x.clone()
            judge.step()
            assert float(optimizer.last_grad_norm) == pytest.approx(float(x.double().norm()), rel=1e-6)
        torch.testing.assert_close(param, plain, rtol=1e-6, atol=1e-7)
    assert (int(optimizer.taken_steps), int(optimizer.skipped_steps)) == (4, 1)


@pytest.mark.parametrize("where", [DEVICE, "cpu"])
@pytest.mark.parametrize("nonfinite", ["skip", "raise", "apply"])
def test_found_inf_always_skips(nonfinite, where):
    params = parameters([700])
    optimizer = ClippedNesterov(params, nonfinite=nonfinite)
    optimizer.step()
    before = left_by(params, optimizer)
    optimizer.grad_scale = torch.tensor(4.0, device=where)
    optimizer.found_inf = torch.tensor(1.0, device=where)
    optimizer.step()
    assert same_bits(left_by(params, optimizer)[:-1], before[:-1])
    assert int(optimizer.skipped_steps) == 1
    norm = float(params[0].grad.double().norm())
    assert float(optimizer.last_grad_norm) == pytest.approx(norm / 4, rel=1e-12)


# --- Devices, streams and graphs ---------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_states_follow_their_parameters_and_load_across_devices(cls):
    """Created before the model is moved to the device; saved there, loaded on the CPU, and back."""
    net = torch.nn.Linear(5, 3)
    optimizer = cls(net.parameters(), lr=0.1)
    net.to(DEVICE)
    grads = [[torch.randn_like(p) for p in net.parameters()] for _ in range(3)]

    def step(some, grads):
        for param, grad in zip(some.param_groups[0]["params"], grads, strict=True):
            param.grad = grad.to(param.device)
        some.step()

    step(optimizer, grads[0])
    for param in net.parameters():
        assert {x.device for x in optimizer.state[param].values()} == {param.device}
    other = copy.deepcopy(net).to("cpu")
    on_cpu = cls(other.parameters(), lr=0.5)
    on_cpu.load_state_dict(optimizer.state_dict())
    for grad in grads[1:]:
        step(optimizer, grad)
        step(on_cpu, grad)
    assert int(on_cpu.taken_steps) == 3
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6)
    optimizer.load_state_dict(on_cpu.state_dict())
    assert optimizer.last_grad_norm.device.type == DEVICE
    step(optimizer, grads[0])
    assert int(optimizer.taken_steps) == 4


@gpu_only
def test_tensors_on_another_device_raise():
    here, there = torch.nn.Parameter(torch.zeros(2, device=DEVICE)), torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(
        ValueError, match=r"^params\[1\] of group 0 must be on the device of the others, cuda:0"
    ):
        ClippedNesterov([here, there])
    optimizer = ClippedNesterov([here])
    here.grad = torch.ones_like(here)
    optimizer.step()
    optimizer.state[here]["velocity"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"^the state 'velocity' of .* must be torch.float32 on cuda:0 for"):
        optimizer.step()


def test_a_sparse_gradient_raises():
    param = torch.nn.Parameter(torch.ones(2, 2, device=DEVICE))
    param.grad = torch.ones(2, 2, device=DEVICE).to_sparse()
    with pytest.raises(ValueError, match="the gradient of parameter 0 must be dense, got layout Sparse"):
        ClippedNesterov([param]).step()


@gpu_only
@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_does_not_synchronize(cls):
    params = parameters([300] * 120)
    optimizer = cls(params, lr=torch.tensor(0.1, device=DEVICE))
    optimizer.step()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([[4.0], [0.0]], device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(optimizer.taken_steps) == 2


@gpu_only
@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_runs_on_the_current_stream(cls):
    results = []
    starts, grads = ([torch.randn(200_000, device=DEVICE) for _ in range(4)] for _ in range(2))
    torch.cuda.synchronize()
    for aside in (False, True):
        with torch.cuda.stream(torch.cuda.Stream()) if aside else nullcontext():
            params = [torch.nn.Parameter(x.clone()) for x in starts]
            optimizer = cls(params, lr=0.1)
            for _ in range(10):
                torch.cuda._sleep(1_000_000)  # work on another stream would start too early
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad * 2
                optimizer.step()
            results.append(left_by(params, optimizer))
            torch.cuda.current_stream().synchronize()
    assert same_bits(*results)


@gpu_only
@pytest.mark.parametrize("cls", CLASSES)
def test_a_captured_step_replays_with_current_values(cls):
    """Other gradients, one of them not finite, and settings as tensors; the same bits as separate steps."""
    params = parameters([5000, 3, 700])
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizer, judge = (cls(some, lr=torch.tensor(0.1, device=DEVICE)) for some in (params, twins))

    def take(step, run):
        lr, bad = 0.1 / (step + 1), math.nan if step == 3 else 1.0
        for param, twin in zip(params, twins, strict=True):
            param.grad.normal_()
            param.grad[0] = bad
            twin.grad = param.grad.clone()
        for some in (optimizer, judge):
            some.param_groups[0]["lr"].fill_(lr)
        run()
        judge.step()
        assert same_bits(left_by(params, optimizer), left_by(twins, judge))

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        take(0, optimizer.step)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(1, 6):
        take(step, graph.replay)
    assert (int(optimizer.taken_steps), int(optimizer.skipped_steps)) == (5, 1)


@gpu_only
def test_the_first_step_is_not_captured():
    (param,) = parameters([5])
    optimizer = ClippedNesterov([param])
    with (
        pytest.raises(RuntimeError, match="the first step must be taken before a graph is captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()
