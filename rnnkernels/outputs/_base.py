"""Base classes of the output models, and their checks, dtype rules and random draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rnnkernels._autograd.modes import in_torch_func
from rnnkernels._checks import INTEGERS, check_dtype, check_floating, check_real, check_tensor, checked_size
from rnnkernels._devices import autocasts
from rnnkernels._fx import leaf_call


class OutputModel(nn.Module):
    """A distribution over the next frame with biases that are linear in the state: ``b = A s + a``."""

    def __init__(
        self,
        num_visible: int,
        condition_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        self.num_visible = checked_size("num_visible", num_visible)
        self.condition_size = checked_size("condition_size", condition_size)
        self.visible_bias = nn.Linear(self.condition_size, self.num_visible, device=device, dtype=dtype)

    def log_prob(self, v: Tensor, state: Tensor) -> Tensor:
        """Return the logarithm of the probability of each frame, ``[...]``."""
        raise NotImplementedError

    def loss(self, v: Tensor, state: Tensor) -> Tensor:
        """Return the training loss of each row, ``[...]``: ``-log_prob``."""
        return -self.log_prob(v, state)

    def forward(self, v: Tensor, state: Tensor, **options: Any) -> Tensor:
        """Return :meth:`loss`, so that hooks and wrappers such as DistributedDataParallel work."""
        if isinstance(v, Tensor) and isinstance(state, Tensor):
            return self.loss(v, state, **options)
        traced = leaf_call(self, v, state, **options)  # None unless torch.fx traces the call
        return self.loss(v, state, **options) if traced is None else traced

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        for module in self.children():
            module.reset_parameters()  # type: ignore[operator]

    def _check_state(self, state: Tensor) -> None:
        """Raise an error unless the state is ``[..., C]`` with the dtype and device of the weights."""
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
        check_floating("state", state)
        if state.dtype != weight.dtype and not autocasts(state.device):
            raise ValueError(f"state must have the dtype of the weights, {weight.dtype}, got {state.dtype}")

    def _check(self, v: Tensor, state: Tensor) -> None:
        """Raise an error unless the state and the frames, ``[..., D]``, are valid."""
        self._check_state(state)
        if isinstance(v, Tensor) and v.layout is not torch.strided:
            raise ValueError(f"v must be a dense tensor, got layout {v.layout}")
        check_binary("v", v, (*state.shape[:-1], self.num_visible), state.device)


class ConditionalModel(OutputModel):
    """An output model with hidden units, whose biases are linear in the state as well."""

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        condition_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(num_visible, condition_size, device, dtype)
        self.num_hidden = checked_size("num_hidden", num_hidden)
        self.hidden_bias = nn.Linear(self.condition_size, self.num_hidden, device=device, dtype=dtype)

    def _biases(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``b``, ``[..., D]``, and ``c``, ``[..., H]``."""
        return self.visible_bias(state), self.hidden_bias(state)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        super().reset_parameters()
        self._reset_weights()

    def _reset_weights(self) -> None:
        """Initialize the parameters of the model itself."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.num_visible}, {self.num_hidden}, condition_size={self.condition_size}"


def check_binary(name: str, v: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise an error unless ``v`` has zeros and ones, this shape and this device.

    Values are checked on the CPU only, because reading them from another device would synchronize.
    """
    check_tensor(name, v)
    check_real(name, v)
    if tuple(v.shape) != shape:
        raise ValueError(f"{name} must be [..., D] = {list(shape)}, as the state is, got {list(v.shape)}")
    if v.device != device:
        raise ValueError(f"{name} must be on the device of the state, {device}, got {v.device}")
    if v.dtype == torch.bool or not has_readable_values(v):
        return
    if not bool(((v == 0) | (v == 1)).all()):
        raise ValueError(f"{name} must be binary, zeros and ones, got other values")


def has_readable_values(x: Tensor) -> bool:
    """Return whether values exist (no tracing, no transform) and can be read without synchronizing."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not in_torch_func()


def check_integers(name: str, x: Tensor) -> None:
    """Raise an error unless ``x`` is a tensor with an integer dtype."""
    check_tensor(name, x)
    if x.dtype not in INTEGERS:
        raise ValueError(f"{name} must have an integer dtype, got {x.dtype}")


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in, float64 or float32; half precision is for storage only."""
    return torch.promote_types(x.dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 or float64."""
    return x.to(wide_dtype(x))


def as_rows(x: Tensor) -> Tensor:
    """Return ``[..., n]`` as a matrix of rows."""
    return x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)


def uniform_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return uniform random values in [0, 1) with the shape, dtype and device of ``x``."""
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def check_draw(probabilities: Tensor) -> None:
    """Raise RuntimeError if a probability to draw from is NaN, as ``torch.bernoulli`` does.

    The values lie in [0, 1], so their sum is NaN if and only if one of them is. On CUDA the error is a
    device-side assertion, as in ``torch.bernoulli``, because reading the sum would synchronize.
    """
    if not torch.compiler.is_compiling():
        # The values of all examples: vmap has no rule for an assertion.
        while torch._C._functorch.is_functorch_wrapped_tensor(probabilities):
            probabilities = torch._C._functorch.get_unwrapped(probabilities)
    total = probabilities.sum()
    message = "the probabilities to draw from must not be NaN: the state or a parameter is not finite"
    if total.device.type in ("cpu", "cuda", "meta"):
        torch._assert_async(total == total, message)
    elif bool(total != total):
        raise RuntimeError(message)


def bernoulli(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return 1 with probability ``sigmoid(logits)``, else 0, in the dtype of ``logits``."""
    probabilities = torch.sigmoid(logits)
    check_draw(probabilities)
    return (uniform_like(logits, generator) < probabilities).to(logits.dtype)


# Most values in an intermediate tensor: 16 MB in float32.
MAX_VALUES = 1 << 22


def split_samples(samples: int, state: Tensor, units: int) -> list[int]:
    """Split a number of samples per row into parts, so that intermediate tensors stay below a fixed size.

    Args:
        samples: Samples per row of the state.
        state: ``[..., C]``.
        units: Values per row and sample in the largest intermediate tensor.

    Returns:
        The number of samples in each part; they add up to ``samples``.
    """
    rows = math.prod(state.shape[:-1])
    most = max(1, MAX_VALUES // max(rows * units, 1))
    return [min(most, samples - begin) for begin in range(0, samples, most)]
