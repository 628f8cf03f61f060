"""NADE on CUDA tensors, against the loop in float64. Needs a GPU; cuda_helpers.py explains how it runs
without one.
"""

from __future__ import annotations

import pytest
import torch
from cuda_helpers import CAN_RUN, DEVICE, HAS_TEAMS, ON_GPU, SEED, poison, same_bits
from helpers import DTYPES, distance
from nade_helpers import TOLERANCE, arguments, by_kernels, by_the_loop

from rnnkernels import _devices
from rnnkernels.functional import nade_log_prob, nade_sample
from rnnkernels.outputs import _nade_composite

pytestmark = pytest.mark.skipif(not CAN_RUN, reason="no GPU, or built without CUDA kernels")
gpu_only = pytest.mark.skipif(not ON_GPU, reason="tests streams, graphs or memory of a GPU")

OPERATORS = torch.ops.rnnkernels
SMALL = [
    (1, 1, 1),
    (0, 3, 4),
    (5, 1, 3),
    (7, 9, 1),
    (9, 33, 31),
    (5, 65, 40),
    (3, 4),
    (2, 3, 5, 6),
    (2, 0, 5, 6),
]
LARGE = [(33, 88, 150), (2, 130, 67), (1100, 5, 3)]
LARGE += [(2048, 88, 512), (3, 784, 500), (5, 20, 7000), (300, 1000, 33)] if ON_GPU else []
SIZES = [pytest.param(SMALL, id="small", marks=pytest.mark.sanitize), pytest.param(LARGE, id="large")]


@pytest.fixture(autouse=True)
def seed() -> int:
    print(f"RNNKERNELS_TEST_SEED={SEED}")  # shown if a test fails
    torch.manual_seed(SEED)
    return SEED


def drawn(*shape, ones=0.3, dtype=torch.float32, seed=0):
    return arguments(*shape, ones=ones, dtype=dtype, seed=SEED + seed, device=DEVICE)


def test_the_kernels_are_used():
    assert all(_devices.has_kernels(torch.device(DEVICE), name) for name in ("nade", "nade_sample"))


# --- Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ones", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients_equal_the_loop(sizes, ones, dtype):
    for shape in sizes:
        v, tensors = drawn(*shape, ones=ones, dtype=dtype)
        grad = torch.randn(v.shape[:-1], dtype=dtype, device=DEVICE)
        poison()
        found = by_kernels(v, tensors, grad)
        for x, y in zip(found, by_the_loop(v, tensors, grad), strict=True):
            assert x.shape == y.shape
            assert x.dtype == dtype
            assert x.device.type == DEVICE
            assert distance(x.cpu().double(), y) < 5 * TOLERANCE[dtype], shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_samples_have_the_logits_that_are_returned_with_them(sizes, dtype):
    for shape in sizes:
        for shift in (-4.0, 0.0, 9.0):
            _, tensors = drawn(*shape, dtype=dtype)
            tensors[0] += shift
            poison()
            v, logits = nade_sample(*tensors)
            assert v.dtype == torch.uint8
            assert v.shape == logits.shape == tensors[0].shape
            expected = _nade_composite.nade(v.cpu(), *(x.cpu().double() for x in tensors))[1]
            assert distance(logits.cpu().double(), expected) < 5 * TOLERANCE[dtype], shape


@pytest.mark.sanitize
def test_a_unit_is_one_where_its_uniform_number_is_below_its_probability():
    _, tensors = drawn(50, 40, 9)
    uniform = torch.rand(50, 40, device=DEVICE)
    v, logits = OPERATORS.nade_sample(uniform, *tensors)
    p = torch.sigmoid(logits)
    sure = (uniform - p).abs() > 1e-6
    assert torch.equal(v.bool()[sure], (uniform < p)[sure])
    assert sure.float().mean() > 0.99


@pytest.mark.sanitize
@pytest.mark.parametrize("wanted", [(True,) * 4, (True, False, False, False), (False, False, True, False)])
def test_gradients_of_logits_and_of_log_prob(wanted):
    """Of either, of both and of neither; a gradient that is not wanted is an empty tensor."""
    v, tensors = drawn(6, 40, 35, dtype=torch.float64)
    grads = torch.randn(6, dtype=torch.float64), torch.randn(6, 40, dtype=torch.float64)
    leaves = [x.cpu().requires_grad_() for x in tensors]
    made = _nade_composite.nade(v.cpu(), *leaves)[:2]
    logits = made[1].detach().to(DEVICE)
    for given in ((0,), (1,), (0, 1), ()):
        expected = [torch.zeros_like(x) for x in leaves]
        if given:
            chosen = [made[i] for i in given]
            expected = torch.autograd.grad(chosen, leaves, [grads[i] for i in given], retain_graph=True)
        arrived = [grads[i].to(DEVICE) if i in given else None for i in range(2)]
        poison()
        found = OPERATORS.nade_backward(*arrived, v, logits, *tensors[1:], wanted)
        for x, y, is_wanted in zip(found, expected, wanted, strict=True):
            assert distance(x.cpu(), y) < 1e-13 if is_wanted else x.numel() == 0


def test_any_dtype_and_strides_of_v_and_any_nonzero_value_is_a_one():
    v, tensors = drawn(6, 37, 5)
    expected = nade_log_prob(v, *tensors)
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(nade_log_prob(v.to(dtype), *tensors), expected)
        wide = v.to(dtype).T.contiguous().T
        wide *= 3 if HAS_TEAMS else 1  # the CPU kernels check the values and raise
        assert torch.equal(nade_log_prob(wide, *tensors), expected)
    b, c, encoder, decoder = tensors
    laid = [b.T.contiguous().T, torch.cat([c, c], 1)[:, :5], encoder.T.contiguous().T, decoder]
    assert torch.equal(nade_log_prob(v, *laid), expected)


def test_nonfinite_values_stay_in_their_row():
    for bad in (torch.nan, torch.inf):
        v, tensors = drawn(6, 40, 35)
        tensors[1][3, 4] = bad
        grad = torch.ones(6, device=DEVICE)
        log_prob, d_b, d_c, *_ = (x.cpu() for x in by_kernels(v, tensors, grad))
        others = torch.arange(6) != 3
        for x, y in zip((log_prob, d_b, d_c), by_the_loop(v, tensors, grad), strict=False):
            assert distance(x[others].double(), y[others]) < 5 * TOLERANCE[torch.float32]
        assert bool(log_prob[3].isnan()) == (bad != bad)


def test_weights_that_no_unit_uses_may_be_infinite():
    v, tensors = drawn(20, 40, 33, ones=0.5)
    v[:, 2], v[:, -1] = False, True
    tensors[2][[2, -1]] = torch.inf  # W of a unit that is never a one, and of the last unit
    assert all(torch.isfinite(x).all() for x in by_kernels(v, tensors, torch.ones(20, device=DEVICE)))


def test_large_weights_lose_no_digits():
    """Backward recomputes the hidden units as forward did, not by subtraction."""
    v, tensors = drawn(10, 70, 5, ones=0.5)
    tensors[2][3] *= 1e8
    grad = torch.ones(10, device=DEVICE)
    for x, y in zip(by_kernels(v, tensors, grad), by_the_loop(v, tensors, grad), strict=True):
        assert distance(x.cpu().double(), y) < 5 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_a_storage_format(dtype):
    v, tensors = drawn(6, 7, 5, dtype=dtype)
    log_prob, *gradients = by_kernels(v, tensors, torch.ones(6, device=DEVICE))
    assert log_prob.dtype == torch.float32
    expected = by_the_loop(v, tensors, torch.ones(6))
    assert distance(log_prob.cpu().double(), expected[0]) < 5 * TOLERANCE[torch.float32]
    for x, y in zip(gradients, expected[1:], strict=True):
        assert x.dtype == dtype
        assert distance(x.cpu().double(), y) < torch.finfo(dtype).eps


def test_autocast_mixes_dtypes():
    v, tensors = drawn(6, 7, 5, dtype=torch.bfloat16)
    tensors[2:] = [x.float() for x in tensors[2:]]
    with torch.autocast(DEVICE, torch.bfloat16):
        log_prob, (_, logits) = nade_log_prob(v, *tensors), nade_sample(*tensors)
    assert log_prob.dtype == logits.dtype == torch.float32
    assert distance(log_prob.cpu().double(), by_the_loop(v, tensors)[0]) < 5 * TOLERANCE[torch.float32]


def test_compiled_without_a_graph_break():
    def loss(*x):
        return nade_log_prob(*x).mean()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    v, tensors = drawn(5, 6, 7, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in tensors]
    found, expected = (torch.autograd.grad(f(v, *leaves), leaves) for f in (compiled, loss))
    assert all(distance(x.cpu(), y.cpu()) < 1e-13 for x, y in zip(found, expected, strict=True))


# --- Reproducibility, further derivatives ------------------------------------------------------------


def test_the_same_bits_on_every_run():
    for shape in ((40, 88, 70), *([(2048, 88, 150)] if ON_GPU else [])):
        v, tensors = drawn(*shape)
        grad = torch.randn(shape[0], device=DEVICE)
        uniform = torch.rand(shape[:2], device=DEVICE)
        runs = [[*by_kernels(v, tensors, grad), *OPERATORS.nade_sample(uniform, *tensors)] for _ in range(3)]
        assert all(same_bits(run, runs[0]) for run in runs)


def test_a_row_does_not_depend_on_the_others():
    v, tensors = drawn(20, 40, 33)
    weights = tensors[2:]
    whole = by_kernels(v, tensors, torch.ones(20, device=DEVICE))
    for i in (0, 7, 19):
        rows = [x[i : i + 1] for x in (v, *tensors[:2])]
        one = by_kernels(rows[0], [*rows[1:], *weights], torch.ones(1, device=DEVICE))
        assert same_bits([x[i : i + 1].contiguous() for x in whole[:3]], one[:3])


def test_second_derivatives():
    v, tensors = drawn(3, 5, 4, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradgradcheck(lambda *x: nade_log_prob(v, *x), leaves)


def test_under_vmap():
    v, tensors = drawn(3, 4, 6, 5, dtype=torch.float64)
    biases, weights = tensors[:2], tensors[2:]
    found = torch.vmap(lambda *x: nade_log_prob(*x, *weights))(v, *biases)
    assert distance(found.cpu(), nade_log_prob(v, *tensors).cpu()) < 1e-13


# --- Devices, streams and graphs ---------------------------------------------------------------------


@gpu_only
def test_nothing_synchronizes_and_a_graph_replays():
    v, tensors = drawn(64, 88, 50)
    grad, uniform = torch.randn(64, device=DEVICE), torch.rand(64, 88, device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        by_kernels(v, tensors, grad)
        nade_sample(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    def step():
        return [*by_kernels(v, tensors, grad), *OPERATORS.nade_sample(uniform, *tensors)]

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        new_v, new_tensors = drawn(64, 88, 50, seed=seed)
        v.copy_(new_v)
        for x, y in zip(tensors, new_tensors, strict=True):
            x.copy_(y)
        uniform.uniform_()
        graph.replay()
        assert same_bits(captured, step())


@gpu_only
def test_a_graph_draws_new_samples_at_each_replay():
    _, tensors = drawn(64, 88, 50)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        nade_sample(*tensors)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        v, logits = nade_sample(*tensors)
    frames = []
    for _ in range(3):
        graph.replay()
        frames.append(v.clone())
        expected = _nade_composite.nade(v.cpu(), *(x.cpu().double() for x in tensors))[1]
        assert distance(logits.cpu().double(), expected) < 5 * TOLERANCE[torch.float32]
    assert not torch.equal(frames[0], frames[1])
    assert not torch.equal(frames[1], frames[2])


@gpu_only
def test_several_streams_at_once():
    cases = [drawn(100, 88, hidden, seed=hidden) for hidden in (50, 1600) * 4]
    grad = torch.ones(100, device=DEVICE)
    expected = [by_kernels(v, tensors, grad) for v, tensors in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(3):
        found = []
        for (v, tensors), stream in zip(cases, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(by_kernels(v, tensors, grad))
        torch.cuda.synchronize()
        assert all(map(same_bits, found, expected))


@gpu_only
def test_more_than_two_to_the_31_elements():
    rows, visible, last = 2**25, 65, 5
    assert rows * visible > 2**31
    needed = 6 * 4 * rows * visible  # b, logits and their gradient; v, bits and a margin
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")
    v = torch.randint(0, 2, (rows, visible), dtype=torch.uint8, device=DEVICE)
    b = torch.randn(rows, visible, device=DEVICE).requires_grad_()
    c = torch.randn(rows, 1, device=DEVICE).requires_grad_()
    _, (*_, encoder, decoder) = drawn(1, visible, 1)

    def results(*given):
        log_prob = nade_log_prob(*given, encoder, decoder)
        return [log_prob.detach(), *torch.autograd.grad(log_prob.sum(), given[1:])]

    ends = [x.detach()[-last:].clone().requires_grad_(x.requires_grad) for x in (v, b, c)]
    assert same_bits([x[-last:].contiguous() for x in results(v, b, c)], results(*ends))


@gpu_only
def test_memory_is_a_small_part_of_that_of_the_loop():
    v, tensors = drawn(2048, 88, 150)
    leaves = [x.requires_grad_() for x in tensors]
    peaks = []
    for log_prob in (nade_log_prob, lambda *x: _nade_composite.nade(*x)[0]):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(log_prob(v, *leaves).sum(), leaves)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1] / 5


@gpu_only
def test_tensors_of_two_devices():
    v, tensors = drawn(4, 6, 5)
    with pytest.raises(ValueError, match="v must be on the device of visible_bias, cuda:0, got cpu"):
        nade_log_prob(v.cpu(), *tensors)
    with pytest.raises(ValueError, match="encoder must be on the device of visible_bias, cuda:0, got cpu"):
        nade_log_prob(v, *tensors[:2], tensors[2].cpu(), tensors[3])
