"""Which transforms surround a call: torch.func's, or forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def in_torch_func() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_batched(*tensors: Tensor | None) -> bool:
    """Whether these are gradients of ``torch.autograd.grad(is_grads_batched=True)``."""
    return any(x is not None and torch._C._functorch.is_legacy_batchedtensor(x) for x in tensors)


def in_forward_mode(tensors: Iterable[Tensor | None]) -> bool:
    if torch.autograd.forward_ad._current_level < 0 or not any(map(_has_tangent, tensors)):
        return False
    if torch.compiler.is_compiling():  # the operator would return a zero tangent
        raise NotImplementedError("forward-mode differentiation inside torch.compile is not available")
    return True


def may_need_gradient(x: Tensor) -> bool:
    """Whether a derivative by ``x`` may be asked for; not all wrappers of torch.func tell."""
    return x.requires_grad or _has_tangent(x) or torch._C._functorch.is_functorch_wrapped_tensor(x)


def _has_tangent(x: Tensor | None) -> bool:
    if x is None:
        return False
    return torch.autograd.forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
