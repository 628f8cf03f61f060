"""Half precision is for storage: the kernels widen values as they read and round them as they write."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers import KINDS, NONLINEARITIES, normal_like
from test_projected_blocks import resident
from torch import Tensor, func
from torch.autograd import forward_ad

from rnnkernels import functional
from rnnkernels._ops import composite
from rnnkernels._ops.nonlinearities import NONLINEARITIES as IN_TORCH
from rnnkernels._ops.spec import RecurrenceSpec, RecurrenceTensors

HIDDEN = 512
HALF = (torch.bfloat16, torch.float16)
FORWARD = torch.ops.rnnkernels.leaky_recurrence.default
BACKWARD = torch.ops.rnnkernels.leaky_recurrence_backward.default


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux resets its peak there")
def test_no_sequence_is_copied_to_float32():
    pre, h0 = torch.randn(72, 4096, HIDDEN).bfloat16(), torch.randn(4096, HIDDEN).bfloat16()
    weight, decay = (torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5).bfloat16(), torch.rand(HIDDEN).mul(0.9)
    output = 2 * pre.numel()

    def peak(call):
        call()
        before = resident("VmRSS")
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
        kept = call()
        return resident("VmHWM") - before, kept

    taken, (h, _, bits) = peak(lambda: FORWARD(pre, h0, weight, decay, None, "relu", "rate", False, 1))
    assert taken < 1.2 * output  # the output, its bits, and the state
    grad = torch.randn_like(h)
    spec = ("relu", "rate", False)
    taken, _ = peak(lambda: BACKWARD(grad, None, h, bits, h0, weight, decay, None, *spec, (True,) * 4))
    assert taken < 1.3 * output


# --- The gradient of the decay -----------------------------------------------------------------------
# It must be as good as that of a loop with a state in float32, for any decay: from rounded outputs, it would
# have an error of eps / (1 - d).


class Decaying(NamedTuple):
    """A call with slow units: all tensors in half precision, but the decay ``[H]`` in float32."""

    pre: Tensor
    h0: Tensor
    weight: Tensor
    decay: Tensor
    batch_sizes: Tensor | None
    grad: Tensor
    options: dict[str, Any]

    def loss(self, decay: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The loss, computed in ``dtype`` from the same values; None for half precision."""
        tensors = (self.pre, self.h0, self.weight)
        pre, h0, weight = tensors if dtype is None else (x.to(dtype) for x in tensors)
        output, _ = functional.leaky_recurrence(
            pre, h0, weight, decay, batch_sizes=self.batch_sizes, **self.options
        )
        return (output.double() * self.grad.double()).sum()

    def exact(self) -> Tensor:
        decay = self.decay.double().requires_grad_()
        return torch.autograd.grad(self.loss(decay, torch.float64), decay)[0]


def decaying(
    dtype: torch.dtype, d: float, steps: int = 200, packed: bool = False, scale: float = 1.0, **options: Any
) -> Decaying:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden, batch = 33, 5
    sizes = torch.linspace(batch, 1, steps).round().long() if packed else None
    pre = normal(steps, batch, hidden) if sizes is None else normal(int(sizes.sum()), hidden)
    # 1 - d differs by a factor of four between the units.
    decay = 1 - (1 - d) * (0.5 + 1.5 * torch.rand(hidden, generator=generator))
    tensors = (scale * pre, normal(batch, hidden), normal(hidden, hidden) / hidden**0.5)
    pre, h0, weight = (x.to(dtype) for x in tensors)
    return Decaying(pre, h0, weight, decay, sizes, normal(*pre.shape).to(dtype), options)


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact).norm() / exact.norm())


def assert_near(found: Tensor, exact: Tensor) -> None:
    assert off(found, exact) < 0.01


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("d", [0.9, 0.999, 0.9999])
@pytest.mark.parametrize(("steps", "packed", "reverse"), [(200, True, False), (1000, False, True)], ids=str)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_the_gradient_of_a_slow_decay_is_exact(form, nonlinearity, steps, packed, reverse, d, dtype):
    case = decaying(dtype, d, steps, packed, form=form, nonlinearity=nonlinearity, reverse=reverse)
    decay = case.decay.clone().requires_grad_()
    (found,) = torch.autograd.grad(case.loss(decay), decay)
    assert found.dtype == torch.float32
    assert_near(found, case.exact())


@pytest.mark.parametrize("nonlinearity", ["sigmoid", "softplus"])
def test_the_gradient_is_exact_where_the_state_is_nearly_constant(nonlinearity):
    # h_{t-1} and y_t are both near f(0), so that their difference has few of the digits of either.
    case = decaying(torch.float16, 0.9, scale=0.02, nonlinearity=nonlinearity)
    decay = case.decay.clone().requires_grad_()
    (found,) = torch.autograd.grad(case.loss(decay), decay)
    assert_near(found, case.exact())


def reverse_mode(case: Decaying) -> Tensor:
    decay = case.decay.clone().requires_grad_()
    return torch.autograd.grad(case.loss(decay), decay, create_graph=True)[0]


def vmap_over_decays(case: Decaying) -> Tensor:
    return func.vmap(func.grad(case.loss))(torch.stack([case.decay, case.decay]))[1]


def vmap_over_weights(case: Decaying) -> Tensor:
    def gradient(weight: Tensor) -> Tensor:
        return func.grad(case._replace(weight=weight).loss)(case.decay)

    return func.vmap(gradient)(torch.stack([case.weight / 2, case.weight]))[1]


def batched(case: Decaying) -> Tensor:
    decay = case.decay.clone().requires_grad_()
    loss = case.loss(decay)
    return torch.autograd.grad(loss, decay, torch.ones(2, dtype=loss.dtype), is_grads_batched=True)[0][1]


def forward_mode(case: Decaying) -> Tensor:
    found = []
    for direction in torch.eye(len(case.decay))[:8]:
        with forward_ad.dual_level():
            dual = case.loss(forward_ad.make_dual(case.decay, direction))
            found.append(forward_ad.unpack_dual(dual).tangent)
    return torch.stack(found)


def jvp(case: Decaying) -> Tensor:
    directions = torch.eye(len(case.decay))[:8]
    return torch.stack([func.jvp(case.loss, (case.decay,), (direction,))[1] for direction in directions])


def checkpointed(case: Decaying) -> Tensor:
    decay = case.decay.clone().requires_grad_()
    eye = torch.eye(len(decay), dtype=case.pre.dtype)
    output, _ = functional.projected_recurrence(
        case.pre, case.h0, eye, case.weight, None, decay, batch_sizes=case.batch_sizes, checkpoint_every=50,
        **case.options,
    )  # fmt: skip
    return torch.autograd.grad((output.double() * case.grad.double()).sum(), decay)[0]


def compiled(case: Decaying) -> Tensor:
    torch._dynamo.reset()
    decay = case.decay.clone().requires_grad_()
    return torch.autograd.grad(torch.compile(case.loss, backend="aot_eager")(decay), decay)[0]


def without_kernels(case: Decaying) -> Tensor:
    decay = case.decay.clone().requires_grad_()
    tensors = RecurrenceTensors(case.pre, case.h0, case.weight, decay, case.batch_sizes)
    output, _ = composite.leaky_recurrence(tensors, decay, RecurrenceSpec(**case.options))
    return torch.autograd.grad((output.double() * case.grad.double()).sum(), decay)[0]


@pytest.mark.filterwarnings("ignore:.*has kernels for")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("form", "nonlinearity"), [("rate", "relu"), ("rate", "tanh"), ("current", "relu")])
@pytest.mark.parametrize(
    "mode",
    [
        reverse_mode, vmap_over_decays, vmap_over_weights, batched, forward_mode, jvp, checkpointed, compiled,
        without_kernels,
    ],
)  # fmt: skip
def test_the_gradient_of_a_slow_decay_is_exact_in_every_mode(
    mode: Callable[[Decaying], Tensor], form, nonlinearity, packed
):
    case = decaying(torch.bfloat16, 0.9999, packed=packed, form=form, nonlinearity=nonlinearity)
    found = mode(case)
    assert_near(found, case.exact()[: len(found)])


@pytest.mark.parametrize("shape", ["scalar", "networks"])
def test_a_decay_that_units_or_networks_share_gets_the_sum(shape):
    case = decaying(torch.bfloat16, 0.9999, nonlinearity="tanh")
    exact = case.exact()
    if shape == "scalar":
        case = case._replace(decay=torch.tensor(0.9999))
        decay = case.decay.clone().requires_grad_()
        (found,) = torch.autograd.grad(case.loss(decay), decay)
        assert_near(found, case.exact())
        return
    tensors = [torch.stack([x, x]) for x in (case.pre, case.h0, case.weight)]
    decay = case.decay.clone().requires_grad_()
    output, *_ = torch.ops.rnnkernels.leaky_recurrence(*tensors, decay, None, "tanh", "rate", False, 2)
    (found,) = torch.autograd.grad((output.double() * case.grad.double()).sum(), decay)
    assert_near(found, 2 * exact)


def second_derivatives(case: Decaying, dtype: torch.dtype | None, mode: str) -> tuple[Tensor, ...]:
    """The derivatives of the sum of all gradients of a loss that is not linear in the output."""
    decay = case.decay if dtype is None else case.decay.to(dtype)
    tensors = [x if dtype is None else x.to(dtype) for x in (case.pre, case.h0, case.weight)]

    def loss(pre: Tensor, h0: Tensor, weight: Tensor, d: Tensor) -> Tensor:
        output, _ = functional.leaky_recurrence(
            pre, h0, weight, d, batch_sizes=case.batch_sizes, **case.options
        )
        return (torch.tanh(output.double()) * case.grad.double()).sum()

    def total(*arguments: Tensor) -> Tensor:
        gradients = func.grad(loss, argnums=(0, 1, 2, 3))(*arguments)
        return sum(x.double().sum() for x in gradients)

    arguments = (*tensors, decay)
    if mode == "func":
        return func.grad(total, argnums=(0, 1, 2, 3))(*arguments)
    if mode == "forward over reverse":
        directions = tuple(map(torch.ones_like, arguments))
        return func.jvp(func.grad(loss, argnums=(0, 1, 2, 3)), arguments, directions)[1]
    leaves = [x.clone().requires_grad_() for x in arguments]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(torch.stack([x.double().sum() for x in first]).sum(), leaves)


@pytest.mark.parametrize("mode", ["autograd", "func", "forward over reverse"])
@pytest.mark.parametrize(("packed", "reverse"), [(False, True), (True, False)])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_second_derivatives_go_through_what_forward_saved_for_the_decay(
    form, nonlinearity, packed, reverse, mode
):
    case = decaying(torch.float16, 0.7, 8, packed, form=form, nonlinearity=nonlinearity, reverse=reverse)
    found, exact = (second_derivatives(case, dtype, mode) for dtype in (None, torch.float64))
    for a, b in zip(found, exact, strict=True):
        assert off(a, b) < 0.005


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_what_is_saved_for_the_decay_changes_no_other_result(form, nonlinearity, dtype):
    case = decaying(dtype, 0.9, 9, form=form, nonlinearity=nonlinearity)
    spec = (nonlinearity, form, False)
    results = []
    for save in (1, 2):
        output, h_n, saved = FORWARD(*case[:5], *spec, save)
        grads = (normal_like(output, 1), normal_like(h_n, 2), output, saved, *case[1:5])
        results.append((output, h_n, *BACKWARD(*grads, *spec, (True, True, True, False))))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_forward_saves_for_the_decay_only_where_its_gradient_may_be_wanted():
    case = decaying(torch.bfloat16, 0.9, 6)
    sizes = []

    class Calls(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            results = operator(*args, **(kwargs or {}))
            if operator is FORWARD:
                sizes.append(results[2].shape[-1])
            return results

    arguments = (case.pre, case.h0, case.weight)
    with Calls():
        functional.leaky_recurrence(*arguments, case.decay)
        functional.leaky_recurrence(case.pre.clone().requires_grad_(), *arguments[1:], case.decay)
        functional.leaky_recurrence(*arguments, case.decay.clone().requires_grad_())
        with torch.no_grad():
            functional.leaky_recurrence(*arguments, case.decay.clone().requires_grad_())
    # The words of 33 units; then the same as halves, and 33 differences in an even number of elements.
    assert sizes == [0, 2, 4 + 34, 0]


def test_the_slopes_in_torch_and_in_the_kernels_are_of_the_same_kind():
    for nonlinearity in NONLINEARITIES:
        case = decaying(torch.bfloat16, 0.9, 2)
        saved = FORWARD(*case[:5], nonlinearity, "rate", False, 1)[2]
        assert (saved.dtype == torch.int32) == IN_TORCH[nonlinearity].binary_slope
