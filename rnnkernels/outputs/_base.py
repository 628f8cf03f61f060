"""What the output models share: biases from the state, checks of what is given, draws."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from rnnkernels._autograd.modes import in_torch_func
from rnnkernels._checks import autocasts, check_sizes, check_tensor

_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class OutputModel(nn.Module):
    """A distribution over the next frame, of which the state gives the biases."""

    def __init__(
        self,
        num_visible: int,
        condition_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_sizes(condition_size=condition_size)
        self.num_visible = num_visible
        self.condition_size = condition_size
        self.visible_bias = nn.Linear(condition_size, num_visible, device=device, dtype=dtype)

    def log_prob(self, v: Tensor, state: Tensor) -> Tensor:
        """The logarithm of the probability of each frame, ``[...]``."""
        raise NotImplementedError

    def loss(self, v: Tensor, state: Tensor) -> Tensor:
        """What training minimizes, one number a row, ``[...]``: ``-log_prob``."""
        return -self.log_prob(v, state)

    def forward(self, v: Tensor, state: Tensor, **options: Any) -> Tensor:
        """The :meth:`loss`, so that hooks and wrappers for several devices see the training."""
        return self.loss(v, state, **options)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for module in self.children():
            module.reset_parameters()  # type: ignore[operator]

    def _check_state(self, state: Tensor) -> None:
        """Refuse a state that is not [..., C], or not like the weights."""
        if not isinstance(state, Tensor):
            packed = " (of a PackedSequence give .data)" if isinstance(state, tuple) else ""
            raise TypeError(f"state must be a Tensor, got {type(state).__name__}{packed}")
        weight = self.visible_bias.weight
        if state.dim() == 0 or state.shape[-1] != self.condition_size:
            raise ValueError(
                f"state must be [..., C] = [..., {self.condition_size}], got {list(state.shape)}"
            )
        if state.device != weight.device:
            raise ValueError(
                f"state must be on the device of the weights, {weight.device}, got {state.device}"
            )
        if not state.is_floating_point():
            raise ValueError(f"state must have a floating-point dtype, got {state.dtype}")
        if state.dtype != weight.dtype and not autocasts(state.device):
            raise ValueError(f"state must have the dtype of the weights, {weight.dtype}, got {state.dtype}")

    def _check(self, v: Tensor, state: Tensor) -> None:
        """Refuse a state as above, and rows that are not [..., D] of zeros and ones."""
        self._check_state(state)
        check_binary("v", v, (*state.shape[:-1], self.num_visible), state.device)


class ConditionalModel(OutputModel):
    """An output model with hidden units, which have a bias of the state, too."""

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        condition_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_sizes(num_visible=num_visible, num_hidden=num_hidden)
        super().__init__(num_visible, condition_size, device, dtype)
        self.num_hidden = num_hidden
        self.hidden_bias = nn.Linear(condition_size, num_hidden, device=device, dtype=dtype)

    def _biases(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., D]`` and ``[..., H]``."""
        return self.visible_bias(state), self.hidden_bias(state)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.num_visible}, {self.num_hidden}, condition_size={self.condition_size}"


def check_binary(name: str, v: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse what is not zeros and ones of this shape, there. Values are looked at on the CPU only."""
    check_tensor(name, v)
    if tuple(v.shape) != shape:
        raise ValueError(f"{name} must be [..., D] = {list(shape)}, as the state is, got {list(v.shape)}")
    if v.device != device:
        raise ValueError(f"{name} must be on the device of the state, {device}, got {v.device}")
    if v.dtype == torch.bool or not can_look_at(v):
        return
    if not bool(((v == 0) | (v == 1)).all()):
        raise ValueError(f"{name} must be binary, zeros and ones, got other values")


def can_look_at(x: Tensor) -> bool:
    """Whether values can be compared without waiting for a device, and are there at all."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not in_torch_func()


def check_integers(name: str, x: Tensor) -> None:
    """Refuse another dtype than one of integers."""
    check_tensor(name, x)
    if x.dtype not in _INTEGERS[1:]:
        raise ValueError(f"{name} must have an integer dtype, got {x.dtype}")


def wide(x: Tensor) -> Tensor:
    """In float32 at least: half precision is storage."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """What is worked out in it keeps the dtype of its arguments."""
    on = autocasts(like.device)
    return torch.autocast(like.device.type, enabled=False) if on else contextlib.nullcontext()


def uniform_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers in [0, 1) of x's shape, dtype and device."""
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def bernoulli(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """1 with probability ``sigmoid(logits)``, in their dtype. Of NaN it makes 0, where torch.bernoulli
    would stop a GPU's whole context.
    """
    return (uniform_like(logits, generator) < torch.sigmoid(logits)).to(logits.dtype)


def copies_at_a_time(samples: int, state: Tensor, largest: int) -> list[int]:
    """How many copies of all rows to work on at once, for bounded memory: they add up to samples."""
    rows = math.prod(state.shape[:-1])
    most = max(1, MOST_VALUES // max(rows * largest, 1))
    return [min(most, samples - begin) for begin in range(0, samples, most)]


# 16 MB of float32 in each tensor that is worked on.
MOST_VALUES = 1 << 22
