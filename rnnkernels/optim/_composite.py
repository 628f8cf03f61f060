"""The optimizers' operators as lists of torch operations, for devices without kernels.

The functions have the names and the arguments of the operators (csrc/binding/operators.cpp), and the same
results up to rounding. A step reads the norm on the host, so it synchronizes; the record,
``previous_momentum`` and ``step`` are on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnkernels.optim._arguments import check_dense, compute_dtype
from rnnkernels.optim._decision import check_nonfinite, clip_coefficient, decide, norm_over

Tensors = list[Tensor]
OptionalTensors = list[Tensor | None]


@torch.no_grad()
def clipped_nesterov_(
    params: Tensors,
    grads: OptionalTensors,
    velocities: Tensors,
    masters: Tensors,
    previous_momentum: Tensors,
    group_ends: list[int],
    *common: Any,
) -> None:
    """As ``rnnkernels::clipped_nesterov_``; the equation is :class:`rnnkernels.ClippedNesterov`'s."""

    def update(part: _Part) -> None:
        lr, _, weight_decay, momentum = part.settings
        theta, g, (v,) = part.theta, part.g, part.states
        before = float(previous_momentum[part.group])
        if weight_decay != 0:
            torch._foreach_add_(g, theta, alpha=weight_decay)
        torch._foreach_mul_(g, lr)
        if before != 0:
            torch._foreach_mul_(v, before)
        else:
            torch._foreach_zero_(v)  # 0 times an infinite velocity would be NaN
        torch._foreach_sub_(v, g)
        if momentum != 0:
            torch._foreach_add_(theta, v, alpha=momentum)
        torch._foreach_sub_(theta, g)

    step = _take_step(update, params, grads, [velocities], masters, None, group_ends, common)
    if step is not None:
        for previous, (_, _, _, momentum) in zip(previous_momentum, step.settings, strict=True):
            previous.fill_(momentum)


@torch.no_grad()
def clipped_adamw_(
    params: Tensors,
    grads: OptionalTensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    masters: Tensors,
    steps: Tensors,
    group_ends: list[int],
    *common: Any,
) -> None:
    """As ``rnnkernels::clipped_adamw_``; the equation is :class:`rnnkernels.ClippedAdamW`'s."""

    def update(part: _Part) -> None:
        lr, _, weight_decay, beta1, beta2, eps = part.settings
        theta, g, (m, s), t = part.theta, part.g, part.states, part.t
        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(s, beta2)
        torch._foreach_addcmul_(s, g, g, 1 - beta2)
        root = torch._foreach_sqrt(s)
        torch._foreach_div_(root, math.sqrt(1 - beta2**t))
        torch._foreach_add_(root, eps)
        torch._foreach_mul_(theta, 1 - lr * weight_decay)
        torch._foreach_addcdiv_(theta, m, root, -lr / (1 - beta1**t))

    _take_step(update, params, grads, [exp_avgs, exp_avg_sqs], masters, steps, group_ends, common)


@torch.no_grad()
def gradient_power_sum(grads: OptionalTensors, norm_type: float, unit: float) -> Tensor:
    """As ``rnnkernels::gradient_power_sum``: ``sum |g / unit|^p``, or ``max |g|`` for ``p = inf``."""
    for i, grad in enumerate(grads):
        if grad is not None:
            check_dense(f"gradient {i}", grad)
    found = [grad for grad in grads if grad is not None]
    if norm_type == math.inf:
        return _norms(found, norm_type).amax()
    return (_norms(found, norm_type, unit) ** norm_type).sum()


# --- The norm and the decision ---------------------------------------------------------------------


class _Step(NamedTuple):
    """Result of the norm pass: the settings of each group, and the factor of its gradients."""

    settings: list[list[float]]
    factors: list[float]


def _decide(
    grads: OptionalTensors,
    groups: int,
    numbers: list[float],
    on_device: OptionalTensors,
    maximize: list[bool],
    record: Tensor,
    norm_type: float,
    nonfinite: str,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    norm: Tensor | None,
) -> _Step | None:
    """Write the record; return None if the step is skipped."""
    check_nonfinite(nonfinite)
    values = [
        float(number if tensor is None else tensor)
        for number, tensor in zip(numbers, on_device or [None] * len(numbers), strict=True)
    ]
    fields = len(values) // groups
    settings = [values[i : i + fields] for i in range(0, len(values), fields)]
    scale = 1.0 if grad_scale is None else float(grad_scale)
    inverse = 1 / scale if scale != 0 else math.inf
    if norm is None:
        found = [grad for grad in grads if grad is not None]
        norm = norm_over(lambda p, unit: torch.linalg.vector_norm(_norms(found, p, unit), p), norm_type)
    scaled_norm = float(norm) * inverse
    overflow = found_inf is not None and float(found_inf) != 0
    if not decide(record, scaled_norm, overflow, nonfinite):
        return None
    signed = (-inverse if ascends else inverse for ascends in maximize)
    clipped = (clip_coefficient(scaled_norm, max_norm) for _, max_norm, *_ in settings)
    return _Step(settings, [c * factor for c, factor in zip(clipped, signed, strict=True)])


def _norms(grads: Tensors, p: float, unit: float = 1.0) -> Tensor:
    """Return the norm of each gradient that has elements, divided by ``unit``, and a zero."""
    device = grads[0].device if grads else torch.device("cpu")
    wide = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    zero = torch.zeros((), dtype=wide, device=device)
    held = [grad for grad in grads if grad.numel() > 0]
    if unit != 1:
        held = [grad.to(wide) / unit for grad in held]
    return torch.stack([zero, *(torch._foreach_norm(held, p, dtype=wide) if held else ())])


# --- The update ------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Parameters that are updated as one list: they have the same group, dtype and step count."""

    group: int
    settings: list[float]  # of the group
    t: float  # the step count, if the rule has one
    theta: Tensors  # updated in place: the master copies, or the parameters in the dtype of the arithmetic
    g: Tensors  # the gradients, clipped and unscaled; may be overwritten
    states: list[Tensors]  # updated in place


def _take_step(
    update: Callable[[_Part], None],
    params: Tensors,
    grads: OptionalTensors,
    states: list[Tensors],
    masters: Tensors,
    steps: Tensors | None,
    group_ends: list[int],
    common: tuple[Any, ...],
) -> _Step | None:
    """Check, decide, and call ``update`` for each part; return None if the step is skipped."""
    _check(params, grads, states, masters)
    step = _decide(grads, len(group_ends), *common)
    if step is None:
        return None
    if steps is not None:
        for count, grad in zip(steps, grads, strict=True):
            if grad is not None:
                count.add_(1)
    for (group, t), indices in _parts(params, grads, group_ends, steps):
        theta = [_start(params[i], masters[i]) for i in indices]
        g = _scaled(params, grads, indices, step.factors[group])
        own = [[state[i] for i in indices] for state in states]
        update(_Part(group, step.settings[group], t, theta, g, own))
        _copy_back(params, theta, indices)
    return step


def _check(params: Tensors, grads: OptionalTensors, states: list[Tensors], masters: Tensors) -> None:
    """Raise ValueError unless all tensors of each parameter fit it."""
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is None:
            continue
        for what, tensor in (
            ("the gradient of parameter", grad),
            ("parameter", param),
            *(("the state of parameter", state[i]) for state in states),
            ("the master copy of parameter", masters[i]),
        ):
            check_dense(f"{what} {i}", tensor)
            if tensor.device != params[0].device:
                expected = f"must be on the device of the others, {params[0].device}"
                raise ValueError(f"{what} {i} {expected}, got {tensor.device}")
            if tensor.shape != param.shape:
                expected = f"must have the shape of its parameter, {list(param.shape)}"
                raise ValueError(f"{what} {i} {expected}, got {list(tensor.shape)}")
        dtype = compute_dtype(param)
        for state in states:
            if state[i].dtype != dtype:
                raise ValueError(f"the state of parameter {i} must be {dtype}, got {state[i].dtype}")
        if masters[i] is not param and masters[i].dtype != dtype:
            raise ValueError(f"the master copy of parameter {i} must be {dtype}, got {masters[i].dtype}")
        if any(stride == 0 and size > 1 for stride, size in zip(param.stride(), param.shape, strict=True)):
            expected = f"must have memory for each element, got strides {list(param.stride())}"
            raise ValueError(f"parameter {i} {expected} for shape {list(param.shape)}")


def _parts(
    params: Tensors, grads: OptionalTensors, group_ends: list[int], steps: Tensors | None
) -> Iterator[tuple[tuple[int, float], list[int]]]:
    """Yield ``(group, t)`` and the indices of the parameters of each part."""
    parts: dict[tuple[int, float, torch.dtype], list[int]] = {}
    group = 0
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        while i >= group_ends[group]:
            group += 1
        if grad is not None and param.numel() > 0:
            t = 0.0 if steps is None else float(steps[i])
            parts.setdefault((group, t, param.dtype), []).append(i)
    for (group, t, _), indices in parts.items():
        yield (group, t), indices


def _start(param: Tensor, master: Tensor) -> Tensor:
    """Return the tensor to update: the master copy, or the parameter in the dtype of the arithmetic.

    Where the parameter is not the master copy rounded, it has been written since the last step, and the
    master copy takes its value.
    """
    if master is not param:
        rounded = master.to(param.dtype)
        same = (rounded == param) & (rounded.signbit() == param.signbit())
        master.copy_(torch.where(same, master, param.to(master.dtype)))
    return master.to(compute_dtype(param))


def _scaled(params: Tensors, grads: OptionalTensors, indices: list[int], c: float) -> Tensors:
    """Return the gradients times ``c``, in two factors where ``c`` would be too small for a float32."""
    first = 2.0**-126 if abs(c) < 2.0**-200 else 2.0**-100 if abs(c) < 2.0**-100 else 1.0
    wide = [grad.to(compute_dtype(params[i])) for i in indices if (grad := grads[i]) is not None]
    g = torch._foreach_mul(wide, first if first < 1 else c)
    if first < 1:
        torch._foreach_mul_(g, c / first)
    return list(g)


def _copy_back(params: Tensors, theta: Tensors, indices: list[int]) -> None:
    """Copy ``theta`` into the parameters that were not updated in place."""
    others = [(params[i], x) for i, x in zip(indices, theta, strict=True) if x is not params[i]]
    if others:
        to, values = (list(tensors) for tensors in zip(*others, strict=True))
        torch._foreach_copy_(to, values)
