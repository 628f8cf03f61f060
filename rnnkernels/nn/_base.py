"""Base class of the layer and the cell: the decay, fixed or learned, initialization and loading."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

Decay = float | Tensor | list[float | Tensor] | tuple[float | Tensor, ...]

# A learned decay starts at this value or above, because the gradient of sigmoid vanishes near 0.
LEAST_LEARNED_DECAY = 1e-3


class LeakyModule(nn.Module):
    """A module with a decay."""

    hidden_size: int
    num_layers: int = 1
    learn_decay: bool
    decay_logit: nn.Parameter

    # Entries that state dicts of torch.nn's modules do not have. They may be missing when loading.
    _own_entries = ("decay", "decay_logit", "h0")

    def _read(self, name: str) -> Any:
        """Return ``getattr(self, name)`` of a parameter, in a tenth of the time.

        Behind a parametrization, which computes the tensor at every access, it is no parameter.
        """
        value = self._parameters.get(name)
        return getattr(self, name) if value is None else value

    def _biases(self, name_ih: str, name_hh: str) -> tuple[Tensor, Tensor] | None:
        bias_ih, bias_hh = self._read(name_ih), self._read(name_hh)
        return None if bias_ih is None or bias_hh is None else (bias_ih, bias_hh)

    @property
    def decay(self) -> float | tuple[float, ...] | Tensor:
        """The fraction of the previous state that is kept, ``d``, as given or as learned so far.

        It is a float; a tuple with a float for each layer; or a buffer ``[H]`` or ``[N, H]``. With
        ``learn_decay`` it is ``sigmoid(decay_logit)``, which carries the gradient and is always below 1.
        """
        if self.learn_decay:
            # The sigmoid of a large logit rounds to 1, which is not a valid decay.
            largest = 1 - torch.finfo(self.decay_logit.dtype).eps / 2
            return torch.sigmoid(self.decay_logit).clamp(max=largest)
        buffer = self._buffers.get("decay")
        return self._given_decay if buffer is None else buffer

    def _set_decay(self, decay: Decay, learn_decay: bool, shape: tuple[int, ...], like: Tensor) -> None:
        """Check and store the decay: as a parameter if it is learned, else as floats or as a buffer.

        Args:
            decay: The user's argument.
            learn_decay: Whether the decay is a parameter.
            shape: Shape of the decays of all units: ``[N, H]`` for a layer, ``[H]`` for a cell.
            like: Tensor with the dtype and device of the parameters.
        """
        self.learn_decay = learn_decay
        self._given_decay = given = self._checked_decay(decay, shape, like.dtype)
        if learn_decay:
            self.decay_logit = nn.Parameter(like.new_empty(shape))
        elif isinstance(given, Tensor):
            # register_buffer would refuse the name, because there is a property of the same name.
            self._buffers["decay"] = torch.empty_like(given, dtype=like.dtype, device=like.device)

    def _checked_decay(
        self, decay: Decay, shape: tuple[int, ...], dtype: torch.dtype
    ) -> float | tuple[float, ...] | Tensor:
        """Return a float, a tuple of floats, or a Tensor ``[H]`` or ``shape``, with values in [0, 1)."""
        if isinstance(decay, (list, tuple)):
            if len(decay) != self.num_layers:
                raise ValueError(
                    f"decay must have one entry for each of the {self.num_layers} layers if it is a "
                    f"{type(decay).__name__} (one value for each unit is a Tensor), got {len(decay)}"
                )
            entries = [self._checked_decay(entry, shape[-1:], dtype) for entry in decay]
            if all(isinstance(entry, float) for entry in entries):
                return tuple(entries)  # type: ignore[arg-type]
            rows = [torch.as_tensor(entry, dtype=torch.float64).expand(shape[-1:]) for entry in entries]
            return torch.stack(rows).repeat_interleave(shape[0] // self.num_layers, 0)
        try:
            values = decay if isinstance(decay, Tensor) else torch.as_tensor(decay, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"decay must be a number or a Tensor, got {decay!r}") from error
        if values.requires_grad:
            raise ValueError("decay must not require gradients: learn_decay=True makes it a parameter")
        if not values.is_floating_point():
            raise TypeError(f"decay must be floating-point, got {values.dtype}")
        allowed = {(), shape[-1:], shape}
        if tuple(values.shape) not in allowed:
            names = f"a number or [H] = {list(shape[-1:])}"
            if len(shape) > 1:
                names += f" or [num_layers * directions, H] = {list(shape)}"
            raise ValueError(f"decay must be {names}, got {list(values.shape)}")
        if not values.is_meta:
            # Check the values as rounded for the kernel, since a value just below 1 may round to 1. With
            # parameters in half precision, the kernel takes a scalar decay in float32.
            half = dtype in (torch.bfloat16, torch.float16)
            rounded = values.to(torch.float32 if half and values.dim() == 0 else dtype)
            if not bool(((rounded >= 0) & (rounded < 1)).all()):
                raise ValueError(f"decay must lie in [0, 1), got {decay}")
        # A float is kept as it is, so that it is not rounded before a later .to(float64).
        return float(values) if values.dim() == 0 else values.detach().clone()

    def _reset_decay(self) -> None:
        """Set the parameter or the buffer to the values that were given to the constructor."""
        given = self._given_decay
        with torch.no_grad():
            if self.learn_decay:
                values = torch.as_tensor(given, dtype=torch.float64)
                if isinstance(given, tuple):
                    rows = self.decay_logit.shape[0] // self.num_layers
                    values = values.repeat_interleave(rows).unsqueeze(1)
                values = values.clamp(min=LEAST_LEARNED_DECAY)
                self.decay_logit.copy_(torch.log(values / (1 - values)))
            elif isinstance(given, Tensor) and not given.is_meta:
                self.decay.copy_(given)  # type: ignore[union-attr]

    def reset_parameters(self) -> None:
        """Initialize all parameters again.

        Weights and biases are drawn from the uniform distribution on ``[-1/sqrt(H), 1/sqrt(H)]``, in the
        order of ``torch.nn.RNN`` and ``torch.nn.RNNCell``: the same seed gives the same weights. The decay
        gets the values given to the constructor, and ``h0`` is set to zero.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name == "h0":
                nn.init.zeros_(parameter)
            elif name != "decay_logit":
                nn.init.uniform_(parameter, -bound, bound)
        self._reset_decay()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], *others: Any,
    ) -> None:  # fmt: skip
        """Load as any module does; missing keys in ``_own_entries`` keep their current values."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *others)
        for name in self._own_entries:
            if prefix + name in missing_keys:
                missing_keys.remove(prefix + name)

    def _decay_repr(self) -> list[str]:
        """Return the part of ``extra_repr`` that describes the decay."""
        if self.learn_decay:
            return ["learn_decay=True"]
        decay = self.decay
        if isinstance(decay, Tensor):
            return ["decay=[H]" if decay.dim() == 1 else "decay=[N, H]"]
        if isinstance(decay, tuple):
            return [f"decay=({', '.join(f'{d:g}' for d in decay)})"]
        return [f"decay={decay:g}"] if decay != 0 else []
