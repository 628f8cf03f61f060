"""NADE with its operators if the device has kernels, otherwise as the composite loop of torch operations.

The operator has first derivatives of its own (csrc/binding/nade_autograd.cpp). Higher derivatives, forward
mode and torch.func's transforms use the loop, which torch can differentiate, in the time and the memory of a
loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._autograd.modes import in_forward_mode, in_torch_func
from rnnkernels._checks import check_generator, check_real
from rnnkernels._devices import autocasts, has_kernels, warn_without_kernels
from rnnkernels.outputs import _nade_composite
from rnnkernels.outputs._base import as_rows, check_draw

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]  # visible_bias, hidden_bias, encoder, decoder


def log_prob(v: Tensor, *given: Tensor) -> Tensor:
    """See :func:`rnnkernels.functional.nade_log_prob`."""
    check_real("v", v)
    tensors = _computed(*given)
    _check_rows("v", v, *tensors[:2])
    has_kernel = has_kernels(v.device, "nade")
    if not has_kernel:
        warn_without_kernels(v.device)
    if not has_kernel or in_torch_func() or in_forward_mode(tensors):
        _check_for_composite(v, *tensors)
        return _nade_composite.nade(v, *tensors)[0]
    b, c, *weights = tensors
    rows: Tensor = _ops.nade(as_rows(v), as_rows(b), as_rows(c), *weights)[0]
    return rows.reshape(b.shape[:-1])


def sample(generator: torch.Generator | None, *given: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`rnnkernels.functional.nade_sample`."""
    tensors = _computed(*given)
    b, c, *weights = tensors
    check_generator(generator, b.device)
    dtype = b.dtype if b.is_floating_point() else None  # another dtype raises an error below
    uniform = torch.rand(b.shape, generator=generator, dtype=dtype, device=b.device)
    _check_rows("uniform", uniform, b, c)
    has_kernel = has_kernels(b.device, "nade_sample")
    if not has_kernel:
        warn_without_kernels(b.device)
    if not has_kernel or in_torch_func():
        _check_for_composite(uniform, *tensors)
        v, logits = _nade_composite.nade_sample(uniform, *tensors)
    else:
        v, logits = _ops.nade_sample(as_rows(uniform), as_rows(b), as_rows(c), *weights)
    check_draw(torch.sigmoid(logits))
    return v.reshape(b.shape), logits.reshape(b.shape)


def _computed(*given: Tensor) -> Tensors:
    """Return the tensors as the kernels take them: half precision becomes float32.

    Under autocast, which mixes dtypes, all get the encoder's.
    """
    if autocasts(given[0].device):
        dtype = torch.promote_types(given[2].dtype, torch.float32)
        return tuple(x.to(dtype) for x in given)  # type: ignore[return-value]
    return tuple(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in given)  # type: ignore[return-value]


def _check_rows(name: str, v: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> None:
    """Raise ValueError unless the dimensions before the last one agree; the operators check the others."""
    if visible_bias.dim() == 0:
        raise ValueError("visible_bias must be [..., D], got a scalar")
    if v.shape != visible_bias.shape:
        raise ValueError(
            f"{name} must have the shape of visible_bias, {list(visible_bias.shape)}, got {list(v.shape)}"
        )
    lead = visible_bias.shape[:-1]
    if hidden_bias.dim() == 0 or hidden_bias.shape[:-1] != lead:
        rows = ", ".join(map(str, (*lead, "H")))
        raise ValueError(f"hidden_bias must be [{rows}], as visible_bias is, got {list(hidden_bias.shape)}")


def _check_for_composite(first: Tensor, visible_bias: Tensor, *others: Tensor) -> None:
    """Raise the operators' errors without calling one, which torch.func's transforms do not support."""
    if visible_bias.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"visible_bias must be float32 or float64, got {visible_bias.dtype}")
    visible, hidden = visible_bias.shape[-1], others[0].shape[-1]
    if visible == 0:
        raise ValueError("visible_bias must have at least one visible unit, got none")
    if hidden == 0:
        raise ValueError("hidden_bias must have at least one hidden unit, got none")
    names = ("hidden_bias", "encoder", "decoder")
    for name, x in zip(names, others, strict=True):
        if name != "hidden_bias" and x.shape != (visible, hidden):
            raise ValueError(f"{name} must be [D, H] = {[visible, hidden]}, got {list(x.shape)}")
        if x.dtype != visible_bias.dtype:
            raise ValueError(
                f"{name} must have the dtype of visible_bias, {visible_bias.dtype}, got {x.dtype}"
            )
    for name, x in (("v", first), *zip(names, others, strict=True)):
        if x.device != visible_bias.device:
            raise ValueError(
                f"{name} must be on the device of visible_bias, {visible_bias.device}, got {x.device}"
            )


def _vjp(
    grad_log_prob: Tensor | None, grad_logits: Tensor | None, v: Tensor, visible_bias: Tensor,
    hidden_bias: Tensor, encoder: Tensor, decoder: Tensor, wanted: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of the operator ``nade``, computed by differentiable operations."""
    tensors = [visible_bias, hidden_bias, encoder, decoder]
    indices = [i for i in range(4) if wanted[i]]

    def results(*chosen: Tensor) -> tuple[Tensor, ...]:
        full = list(tensors)
        for i, x in zip(indices, chosen, strict=True):
            full[i] = x
        return _nade_composite.nade(v, *full)[:2]

    both: Any = torch.func.vjp(results, *(tensors[i] for i in indices))
    values, vjp = both
    given = (grad_log_prob, grad_logits)
    grads = vjp(tuple(torch.zeros_like(x) if g is None else g for g, x in zip(given, values, strict=True)))
    out = [x.new_zeros(0) for x in tensors]
    for i, grad in zip(indices, grads, strict=True):
        out[i] = grad
    return tuple(out)


# Registered for torch.func's transforms too, which would otherwise call it once per example.
for _key in ("CompositeImplicitAutograd", "FuncTorchDynamicLayerFrontMode"):
    _ops.implement("nade_vjp", _key, _vjp)
