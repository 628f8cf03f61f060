"""What the layer and the cell share: the decay, fixed or learned, and drawing and loading parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

Decay = float | Tensor | list[float | Tensor] | tuple[float | Tensor, ...]

# sigmoid has no gradient to speak of at 0 or 1, so a decay that is learned starts no lower than this.
LEAST_LEARNED_DECAY = 1e-3


class LeakyModule(nn.Module):
    """A module with a decay."""

    hidden_size: int
    num_layers: int = 1
    learn_decay: bool
    decay_logit: nn.Parameter

    # What a state dict of torch.nn's modules does not have, and need not have.
    _own_entries = ("decay", "decay_logit", "h0")

    @property
    def decay(self) -> float | tuple[float, ...] | Tensor:
        """The share of the previous state that is kept, as it was given or as it has been learned.

        A number; a number for each layer; a buffer ``[H]`` or ``[N, H]``; or, with ``learn_decay``,
        ``sigmoid(decay_logit)``, which carries the gradient and is below 1 whatever the logit is.
        """
        if self.learn_decay:
            # Large logits round to 1, which is no decay any more.
            largest = 1 - torch.finfo(self.decay_logit.dtype).eps / 2
            return torch.sigmoid(self.decay_logit).clamp(max=largest)
        buffer = self._buffers.get("decay")
        return self._given_decay if buffer is None else buffer

    def _set_decay(self, decay: Decay, learn_decay: bool, shape: tuple[int, ...], like: Tensor) -> None:
        """Keep the decay: a setting if it is numbers, a buffer if not, a parameter if it is learned.

        Args:
            decay: As the user gave it.
            learn_decay: Whether it is a parameter.
            shape: Of a value for each unit of every layer and direction, ``[N, H]``; of a cell ``[H]``.
            like: Has the dtype and the device.
        """
        self.learn_decay = learn_decay
        self._given_decay = given = self._checked_decay(decay, shape, like.dtype)
        if learn_decay:
            self.decay_logit = nn.Parameter(like.new_empty(shape))
        elif isinstance(given, Tensor):
            # Not register_buffer, which takes the property of the same name for another attribute.
            self._buffers["decay"] = torch.empty_like(given, dtype=like.dtype, device=like.device)

    def _checked_decay(
        self, decay: Decay, shape: tuple[int, ...], dtype: torch.dtype
    ) -> float | tuple[float, ...] | Tensor:
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
            # As the kernel will see it: a number just below 1 may round to 1. Numbers are float32 there
            # where everything else is in half precision.
            half = dtype in (torch.bfloat16, torch.float16)
            rounded = values.to(torch.float32 if half and values.dim() == 0 else dtype)
            if not bool(((rounded >= 0) & (rounded < 1)).all()):
                raise ValueError(f"decay must lie in [0, 1), got {decay}")
        # A number stays one, so that it is not rounded before .to(float64).
        return float(values) if values.dim() == 0 else values.detach().clone()

    def _reset_decay(self) -> None:
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
        """Draw weights and biases from U(-1/sqrt(H), 1/sqrt(H)); decay and ``h0`` as they were made.

        The draws are those of ``torch.nn.RNN`` and its cell: the same seed gives the same weights.
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
        """As in any module, but what ``torch.nn``'s state dicts lack may be missing: the own stays."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *others)
        for name in self._own_entries:
            if prefix + name in missing_keys:
                missing_keys.remove(prefix + name)

    def _decay_repr(self) -> list[str]:
        """For extra_repr."""
        if self.learn_decay:
            return ["learn_decay=True"]
        decay = self.decay
        if isinstance(decay, Tensor):
            return ["decay=[H]" if decay.dim() == 1 else "decay=[N, H]"]
        if isinstance(decay, tuple):
            return [f"decay=({', '.join(f'{d:g}' for d in decay)})"]
        return [f"decay={decay:g}"] if decay != 0 else []
