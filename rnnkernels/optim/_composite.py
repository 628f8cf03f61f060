"""The optimizers' operators on devices that the kernels do not know: lists of torch operations.

Same names and arguments as the operators (csrc/binding/operators.cpp), same results to rounding. A step waits
for the device, for the norm; the record and the other numbers of a step are on the CPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnkernels._fallback import warning

Tensors = list[Tensor]
OptionalTensors = list[Tensor | None]


class _Step(NamedTuple):
    """What is decided before an update: each group's settings, and what its gradients are multiplied with."""

    settings: list[list[float]]
    coefficients: list[float]


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
    """As ``rnnkernels::clipped_nesterov_``."""
    _check(params, grads, velocities, masters)
    step = _decide(grads, len(group_ends), *common)
    if step is None:
        return
    for group, places in _parts(params, grads, group_ends):
        lr, _, weight_decay, momentum = step.settings[group]
        before = float(previous_momentum[group])
        theta, g = _wide(params, masters, places), _scaled(params, grads, places, step.coefficients[group])
        v = [velocities[i] for i in places]
        if weight_decay != 0:
            torch._foreach_add_(g, theta, alpha=weight_decay)
        torch._foreach_mul_(g, lr)
        if before != 0:
            torch._foreach_mul_(v, before)
        else:
            torch._foreach_zero_(v)  # even of infinity nothing is left
        torch._foreach_sub_(v, g)
        if momentum != 0:
            torch._foreach_add_(theta, v, alpha=momentum)
        torch._foreach_sub_(theta, g)
        _put(params, theta, places)
    for previous, settings in zip(previous_momentum, step.settings, strict=True):
        previous.fill_(settings[3])


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
    """As ``rnnkernels::clipped_adamw_``."""
    _check(params, grads, exp_avgs, masters)
    _check(params, grads, exp_avg_sqs, masters)
    step = _decide(grads, len(group_ends), *common)
    if step is None:
        return
    for i, grad in enumerate(grads):
        if grad is not None:
            steps[i].add_(1)
    for group, places in _parts(params, grads, group_ends, steps):
        lr, _, weight_decay, beta1, beta2, eps = step.settings[group]
        t = float(steps[places[0]])
        theta, g = _wide(params, masters, places), _scaled(params, grads, places, step.coefficients[group])
        m, s = ([states[i] for i in places] for states in (exp_avgs, exp_avg_sqs))
        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(s, beta2)
        torch._foreach_addcmul_(s, g, g, 1 - beta2)
        root = torch._foreach_sqrt(s)
        torch._foreach_div_(root, math.sqrt(1 - beta2**t))
        torch._foreach_add_(root, eps)
        torch._foreach_mul_(theta, 1 - lr * weight_decay)
        torch._foreach_addcdiv_(theta, m, root, -lr / (1 - beta1**t))
        _put(params, theta, places)


@torch.no_grad()
def gradient_power_sum(grads: OptionalTensors, norm_type: float, unit: float) -> Tensor:
    """As ``rnnkernels::gradient_power_sum``."""
    for i, grad in enumerate(grads):
        if grad is not None:
            _check_dense("gradient", i, grad)
    found = [grad for grad in grads if grad is not None]
    if norm_type == math.inf:
        return _norms(found, norm_type).amax()
    return (_norms(found, norm_type, unit) ** norm_type).sum()


# --- The norm, and what it decides -------------------------------------------------------------------


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
    """None: there is no update. The record is written."""
    if nonfinite not in ("skip", "raise", "apply"):
        raise ValueError(f"nonfinite must be 'skip', 'raise' or 'apply', got '{nonfinite}'")
    values = [
        float(number if tensor is None else tensor)
        for number, tensor in zip(numbers, on_device or [None] * len(numbers), strict=True)
    ]
    fields = len(values) // groups
    settings = [values[i : i + fields] for i in range(0, len(values), fields)]
    scale = 1.0 if grad_scale is None else float(grad_scale)
    inverse = 1 / scale if scale != 0 else math.inf
    found = [grad for grad in grads if grad is not None]
    scaled_norm = (_norm_of(found, norm_type) if norm is None else float(norm)) * inverse

    overflow = found_inf is not None and float(found_inf) != 0
    skips = overflow or (not math.isfinite(scaled_norm) and nonfinite != "apply")
    raises = skips and not overflow and nonfinite == "raise"
    _, skipped, taken, _ = record.tolist()
    after = [scaled_norm, skipped + (skips and not raises), taken + (not skips), float(raises)]
    record.copy_(torch.tensor(after, dtype=record.dtype, device=record.device))
    if skips:
        return None
    signed = (-inverse if ascends else inverse for ascends in maximize)
    clipped = (_clip_coefficient(scaled_norm, max_norm) for _, max_norm, *_ in settings)
    return _Step(settings, [c * factor for c, factor in zip(clipped, signed, strict=True)])


def _clip_coefficient(norm: float, max_norm: float) -> float:
    coefficient = 1.0 if max_norm == math.inf else max_norm / (norm + 1e-6)
    return 1.0 if coefficient >= 1 else coefficient  # NaN stays


def _norm_of(grads: Tensors, p: float) -> float:
    """``(sum |g|^p)^(1/p)``; in units of the largest gradient where powers leave the numbers' range."""
    norms = _norms(grads, p)
    norm = float(torch.linalg.vector_norm(norms, p))
    least = math.log2(torch.finfo(norms.dtype).tiny) + 62
    if p == math.inf or (0 < norm < math.inf and p * math.log2(norm) > least):
        return norm
    largest = float(_norms(grads, math.inf).amax())
    if not 0 < largest < math.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(_norms(grads, p, largest), p))


def _norms(grads: Tensors, p: float, unit: float = 1.0) -> Tensor:
    """Of each gradient that has elements, and a zero."""
    device = grads[0].device if grads else torch.device("cpu")
    wide = torch.float32 if device.type == "mps" else torch.float64  # which has no other
    zero = torch.zeros((), dtype=wide, device=device)
    held = [grad for grad in grads if grad.numel() > 0]
    if unit != 1:
        held = [grad.to(wide) / unit for grad in held]
    return torch.stack([zero, *(torch._foreach_norm(held, p, dtype=wide) if held else ())])


# --- The update --------------------------------------------------------------------------------------


def _check(params: Tensors, grads: OptionalTensors, states: Tensors, masters: Tensors) -> None:
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is None:
            continue
        for what, tensor in (
            ("the gradient of parameter", grad),
            ("parameter", param),
            ("the state of parameter", states[i]),
            ("the master copy of parameter", masters[i]),
        ):
            _check_dense(what, i, tensor)
            if tensor.device != params[0].device:
                wanted = f"must be on the device of the others, {params[0].device}"
                raise ValueError(f"{what} {i} {wanted}, got {tensor.device}")
            if tensor.shape != param.shape:
                wanted = f"must have the shape of its parameter, {list(param.shape)}"
                raise ValueError(f"{what} {i} {wanted}, got {list(tensor.shape)}")
        if states[i].dtype != _number(param):
            wanted = f"must be {_number(param)}"
            raise ValueError(f"the state of parameter {i} {wanted}, got {states[i].dtype}")
        if any(stride == 0 and size > 1 for stride, size in zip(param.stride(), param.shape, strict=True)):
            wanted = f"must have memory for each element, got strides {list(param.stride())}"
            raise ValueError(f"parameter {i} {wanted} for shape {list(param.shape)}")


def _check_dense(what: str, i: int, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise ValueError(f"{what} {i} must be dense, got layout {tensor.layout}")


def _parts(
    params: Tensors, grads: OptionalTensors, group_ends: list[int], steps: Tensors | None = None
) -> Iterator[tuple[int, list[int]]]:
    """Each group's parameters that are updated, those together that may be one list: of a dtype and a t."""
    parts: dict[tuple[object, ...], list[int]] = {}
    group = 0
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        while i >= group_ends[group]:
            group += 1
        if grad is not None and param.numel() > 0:
            t = None if steps is None else float(steps[i])
            parts.setdefault((group, param.dtype, t), []).append(i)
    for (number, *_), places in parts.items():
        assert isinstance(number, int)
        yield number, places


def _number(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _wide(params: Tensors, masters: Tensors, places: list[int]) -> Tensors:
    """What is updated: the master copy, or the parameter in the dtype that it is computed in."""
    return [masters[i].to(_number(params[i])) for i in places]


def _scaled(params: Tensors, grads: OptionalTensors, places: list[int], c: float) -> Tensors:
    """Gradients times ``c``, in two factors where one would be too small for a float32."""
    first = 2.0**-126 if abs(c) < 2.0**-200 else 2.0**-100 if abs(c) < 2.0**-100 else 1.0
    found = (grads[i] for i in places)
    wide = [grad.to(_number(params[i])) for i, grad in zip(places, found, strict=True) if grad is not None]
    g = torch._foreach_mul(wide, first if first < 1 else c)
    if first < 1:
        torch._foreach_mul_(g, c / first)
    return list(g)


def _put(params: Tensors, theta: Tensors, places: list[int]) -> None:
    """Into the parameters that were not updated in place."""
    others = [(params[i], x) for i, x in zip(places, theta, strict=True) if x is not params[i]]
    if others:
        to, values = (list(tensors) for tensors in zip(*others, strict=True))
        torch._foreach_copy_(to, values)


_warned: list[torch.device] = []


def warn_once(device: torch.device) -> None:
    """Say that there are no kernels for a device."""
    if not _warned:
        _warned.append(device)
        what = "a list of torch operations for a step of an optimizer, in place of one call"
        warnings.warn(warning(device, what), stacklevel=8)  # who makes the optimizer
