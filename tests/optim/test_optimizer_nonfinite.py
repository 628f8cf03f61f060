"""Gradients that are infinite, NaN, zero or huge; the norm itself; GradScaler."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_helpers import APPLY_SETTINGS, assert_torch_applies_the_same, one

from rnnkernels import ClippedAdamW, ClippedNesterov

CLASSES = [ClippedNesterov, ClippedAdamW]
BAD = [math.inf, -math.inf, math.nan]


def snapshot(optimizer):
    """Everything that a skipped step must not change."""
    values = []
    for group in optimizer.param_groups:
        values += [x.detach().clone() for x in group["params"]]
        values += [x.clone() for x in group.values() if isinstance(x, torch.Tensor)]
        values += [x.clone() for p in group["params"] for x in optimizer.state[p].values()]
    return [*values, optimizer.taken_steps]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def pair(cls, size=9000, **options):
    params = [torch.nn.Parameter(torch.randn(size)), torch.nn.Parameter(torch.randn(3))]
    for param in params:
        param.grad = torch.randn_like(param)
    return params, cls(params, **options)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 4500, 8999])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf, 2.5])
def test_a_skipped_step_changes_nothing(cls, bad, place, norm_type):
    params, optimizer = pair(cls, norm_type=norm_type)
    optimizer.step()
    before = snapshot(optimizer)
    params[0].grad[place] = bad
    if cls is ClippedNesterov:
        optimizer.param_groups[0]["momentum"] = 0.5  # differs from that of the last step taken
    optimizer.step()
    assert same(snapshot(optimizer), before)
    assert int(optimizer.skipped_steps) == 1
    assert not math.isfinite(float(optimizer.last_grad_norm))
    params[0].grad[place] = 1.0
    optimizer.step()
    assert (int(optimizer.skipped_steps), int(optimizer.taken_steps)) == (1, 2)
    assert not same(snapshot(optimizer), before)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_first_step_that_is_skipped_leaves_zeros(cls):
    params, optimizer = pair(cls)
    params[1].grad[0] = math.nan
    optimizer.step()
    for param in params:
        assert all(not state.any() for state in optimizer.state[param].values())
    assert int(optimizer.taken_steps) == 0


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("named", [False, True])
def test_raise_names_the_first_bad_parameter(cls, named):
    params = [torch.nn.Parameter(torch.randn(4)) for _ in range(3)]
    given = [("a", params[0]), ("b.weight", params[1]), ("c", params[2])] if named else params
    optimizer = cls(given, nonfinite="raise")
    for param in params:
        param.grad = torch.randn(4)
    optimizer.step()
    before = snapshot(optimizer)
    params[1].grad[2] = math.inf
    params[2].grad[0] = math.nan
    name = r"'b\.weight' \(params\[1\] of group 0" if named else r"parameter \(params\[1\] of group 0"
    with pytest.raises(FloatingPointError, match=name):
        optimizer.step()
    assert same(snapshot(optimizer), before)
    assert int(optimizer.skipped_steps) == 0


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize(("cls", "settings"), APPLY_SETTINGS)
def test_apply_does_what_torch_does(cls, settings, bad, max_norm):
    """At that step and afterwards: with momentum 0, an infinite velocity has no effect."""
    params, _ = pair(cls)
    assert_torch_applies_the_same(cls, settings, params, bad, max_norm)


@pytest.mark.parametrize("cls", CLASSES)
def test_raise_names_a_norm_beyond_float64_where_all_gradients_are_finite(cls):
    param = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    param.grad = torch.full((3,), 1.7e308, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="the norm of the gradients must be finite, got inf"):
        cls([param], nonfinite="raise").step()
    assert not param.any()


def test_zero_gradients_change_nothing():
    param, optimizer = one(max_norm=1e-30)
    before = param.detach().clone()
    param.grad.zero_()
    optimizer.step()
    assert torch.equal(param, before)
    assert float(optimizer.last_grad_norm) == 0


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, 20.0, math.inf])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e33), (torch.float64, 1e300)])
def test_a_norm_of_huge_gradients_does_not_overflow(norm_type, dtype, size):
    param, optimizer = one((5000,), dtype=dtype, lr=1.0, momentum=0.0, norm_type=norm_type)
    param.detach().zero_()
    param.grad.fill_(size)
    optimizer.step()
    norm = size * 5000 ** (1 / norm_type)
    assert float(optimizer.last_grad_norm) == pytest.approx(norm, rel=1e-6)
    assert float(param.detach()[0]) == pytest.approx(-size / norm, rel=1e-6)
    assert int(optimizer.skipped_steps) == 0


@pytest.mark.parametrize(
    ("norm_type", "dtype", "size"),
    [(20.0, torch.float32, 1e-20), (100.0, torch.float32, 1e-4), (2.0, torch.float64, 1e-200)],
)
def test_a_norm_of_tiny_gradients_does_not_underflow(norm_type, dtype, size):
    param, optimizer = one((5000,), dtype=dtype, lr=1.0, momentum=0.0, norm_type=norm_type, max_norm=1e-5)
    param.detach().zero_()
    param.grad.fill_(size)
    optimizer.step()
    norm = size * 5000 ** (1 / norm_type)
    assert float(optimizer.last_grad_norm) == pytest.approx(norm, rel=1e-6)
    wanted = size * min(1.0, 1e-5 / (norm + 1e-6))
    assert float(-param.detach()[0]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("max_norm", [1e-3, 1e-31])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_clip_coefficient_below_the_smallest_float_keeps_all_digits(cls, max_norm):
    """The coefficient is about 1e-43, which has one digit as a float, or smaller than any float."""
    param = torch.nn.Parameter(torch.zeros(5000))
    param.grad = torch.randn(5000).clamp(-3, 3) * 1e38
    wide = torch.nn.Parameter(param.detach().double())
    wide.grad = param.grad.double()
    for p in (param, wide):
        cls([p], lr=1.0, max_norm=max_norm, weight_decay=0.0).step()
    torch.testing.assert_close(param.double(), wide, rtol=1e-6, atol=0)


def test_a_loss_scale_of_zero_is_skipped():
    for grad in (0.0, 1.0):
        param, optimizer = one()
        before = param.detach().clone()
        param.grad.fill_(grad)
        optimizer.grad_scale = torch.tensor(0.0)
        optimizer.step()
        assert torch.equal(param, before)
        assert int(optimizer.skipped_steps) == 1


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("norm_type", [2.0, 3.0])
def test_the_norm_is_accurate_and_does_not_depend_on_runs_or_threads(cls, norm_type):
    """The gradients are one large tensor among many tiny ones."""
    sizes = [1, 2, 3] * 20 + [300_001] + [5] * 30
    starts = [torch.randn(size) for size in sizes]
    grads = [torch.randn(size) for size in sizes]
    grads[60][:1000] *= 1e6
    exact = math.fsum((torch.cat(grads).double().abs() ** norm_type).tolist()) ** (1 / norm_type)
    norms, results = set(), []
    for threads in (1, 2, 3, 1, 2):
        torch.set_num_threads(threads)
        params = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = cls(params, max_norm=1.0, norm_type=norm_type)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        norms.add(float(optimizer.last_grad_norm))
        results.append(torch.cat([*params, *(optimizer.state[p][cls.state_names[0]] for p in params)]))
    assert len(norms) == 1
    assert norms.pop() == pytest.approx(exact, rel=1e-14)
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_norm_and_the_counts_are_copies():
    param, optimizer = one()
    optimizer.step()
    first, count = optimizer.last_grad_norm, optimizer.skipped_steps
    kept = float(first)
    param.grad *= 2
    optimizer.step()
    param.grad[0, 0] = math.nan
    optimizer.step()
    assert float(first) == kept
    assert int(count) == 0
    assert first.shape == ()
    assert first.device == param.device


# --- Automatic mixed precision -----------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(cls, unscale):
    """Results are the same as without a scaler; an overflow skips the step and lowers the scale."""
    param, plain = torch.nn.Parameter(torch.randn(50)), torch.nn.Parameter(torch.empty(50))
    plain.data.copy_(param)
    optimizer, judge = cls([param], lr=0.1, max_norm=0.5), cls([plain], lr=0.1, max_norm=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=100)
    for step in range(6):
        x = torch.randn(50)
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
        assert scaler.get_scale() == 2.0 ** (12 if step < 2 else 11)
        torch.testing.assert_close(param, plain, rtol=1e-6, atol=1e-7)
    assert int(optimizer.taken_steps) == 5
    assert int(optimizer.skipped_steps) == 1


@pytest.mark.parametrize("nonfinite", ["skip", "raise", "apply"])
def test_found_inf_always_skips(nonfinite):
    param, optimizer = one(nonfinite=nonfinite)
    optimizer.step()
    before = snapshot(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    optimizer.step()
    assert same(snapshot(optimizer), before)
    assert int(optimizer.skipped_steps) == 1
    assert float(optimizer.last_grad_norm) == pytest.approx(float(param.grad.double().norm()) / 4, rel=1e-12)
