"""Base class of the layer and the cell: the decay, fixed or learned, initialization and loading."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rnnkernels._checks import checked_flag

Decay = float | Tensor | list[float | Tensor] | tuple[float | Tensor, ...]

# A decay as numbers, which do not depend on a device, a dtype or a mode of torch: one; a tuple with one for
# each layer; or a list of those of a tensor, [H] or [N, H].
_Numbers = float | tuple[float, ...] | list[float] | list[list[float]]

# A learned decay starts at this value or above, because the gradient of sigmoid vanishes near 0.
LEAST_LEARNED_DECAY = 1e-3

_HALF = (torch.bfloat16, torch.float16)

_Module = TypeVar("_Module", bound="LeakyModule")


class LeakyModule(nn.Module):
    """A module with a decay.

    A learned decay and one per unit are float32 where the module is in half precision, which has no numbers
    between 0.996 and 1 (bfloat16): a time constant of 1000 steps would become infinite.
    """

    hidden_size: int
    num_layers: int = 1
    learn_decay: bool
    decay_logit: nn.Parameter
    _decay_shape: tuple[int, ...]  # of the decays of all units: [N, H] for a layer, [H] for a cell
    _given_decay: _Numbers
    _assigns = False  # whether torch assigns loaded tensors to attributes

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

        It can be set to anything that the constructor accepts, for example to anneal it::

            for epoch in range(100):
                rnn.decay = 0.5 + 0.004 * epoch

        The value is checked first. A buffer and a learned decay keep their tensor, device and dtype and get
        new values in place; do not set them between a forward pass and its backward pass.
        ``reset_parameters`` then starts from the new value. ``torch.compile`` makes a number an input of the
        compiled function at its first change, which compiles the function once more; a tuple of numbers
        compiles it again for each new value; new values of a tensor compile nothing.

        Raises:
            ValueError, TypeError: On assignment, as for the constructor; the decay is then unchanged.
        """
        if self.learn_decay:
            logit: Tensor = self.decay_logit
            if logit.dtype in _HALF:  # as an FSDP policy, for example, may cast it
                logit = logit.float()
            # The sigmoid of a large logit rounds to 1, which is not a valid decay.
            largest = 1 - torch.finfo(logit.dtype).eps / 2
            return torch.sigmoid(logit).clamp(max=largest)
        buffer = self._buffers.get("decay")
        return self._given_decay if buffer is None else buffer  # type: ignore[return-value]

    @decay.setter
    def decay(self, decay: Decay) -> None:
        buffer = self._buffers.get("decay")
        like = self.decay_logit if self.learn_decay else buffer
        given = self._checked_decay(decay, (like if like is not None else next(self.parameters())).dtype)
        if not self.learn_decay and (buffer is not None or isinstance(given, list)):
            self._make_buffer(given, next(self.parameters()) if buffer is None else buffer)
        self._given_decay = given
        self._reset_decay()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set ``decay`` by its property, where torch would write a Tensor into the buffer unchecked."""
        if name == "decay" and not self._assigns:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _init_decay(self, decay: Decay, learn_decay: bool, shape: tuple[int, ...], like: Tensor) -> None:
        """Check and store the decay: as a parameter if it is learned, else as numbers or as a buffer.

        Args:
            decay: The user's argument.
            learn_decay: Whether the decay is a parameter.
            shape: Shape of the decays of all units: ``[N, H]`` for a layer, ``[H]`` for a cell.
            like: Tensor with the dtype and device of the parameters.
        """
        self.learn_decay, self._decay_shape = checked_flag("learn_decay", learn_decay), shape
        self._given_decay = self._checked_decay(decay, like.dtype)
        if self.learn_decay:
            self.decay_logit = nn.Parameter(like.new_empty(shape, dtype=_wide(like.dtype)))
        elif isinstance(self._given_decay, list):
            self._make_buffer(self._given_decay, like)

    def _make_buffer(self, given: _Numbers, like: Tensor) -> None:
        """Make the buffer of a fixed decay, unless there is one that these numbers fit into."""
        before = self._buffers.get("decay")
        shape = self._values(given).shape
        if before is not None:
            shape = torch.broadcast_shapes(shape, before.shape)  # type: ignore[no-untyped-call]
            if shape == before.shape:
                return
        elif isinstance(given, tuple):
            shape = torch.Size(self._decay_shape)
        # register_buffer would refuse the name, because there is a property of the same name.
        self._buffers["decay"] = like.new_empty(shape, dtype=_wide(like.dtype))

    def _checked_decay(self, decay: Decay, dtype: torch.dtype) -> _Numbers:
        """Return the numbers of a decay; raise an error unless they are one of the forms, all in [0, 1)."""
        shape = self._decay_shape
        if not isinstance(decay, (list, tuple)) or len(shape) == 1:
            return _checked_numbers(decay, shape, dtype)
        if len(decay) != self.num_layers:
            raise ValueError(
                f"decay must have one entry for each of the {self.num_layers} layers if it is a "
                f"{type(decay).__name__} (one value for each unit is a Tensor), got {len(decay)}"
            )
        entries = [_checked_numbers(entry, shape[-1:], dtype) for entry in decay]
        if all(isinstance(entry, float) for entry in entries):
            return tuple(entries)  # type: ignore[arg-type]
        rows = [[entry] * shape[-1] if isinstance(entry, float) else list(entry) for entry in entries]
        return [row for row in rows for _ in range(shape[0] // self.num_layers)]

    def _values(self, given: _Numbers) -> Tensor:
        """Return a decay in float64 on the CPU, in a shape that broadcasts to that of all units."""
        values = torch.tensor(given, dtype=torch.float64, device="cpu")
        if isinstance(given, tuple):
            values = values.repeat_interleave(self._decay_shape[0] // self.num_layers).unsqueeze(1)
        return values

    def _reset_decay(self) -> None:
        """Set the parameter or the buffer to the values that were given."""
        target = self.decay_logit if self.learn_decay else self._buffers.get("decay")
        if target is None:
            return
        values = self._values(self._given_decay)
        if self.learn_decay:
            values = values.clamp(min=LEAST_LEARNED_DECAY)
            values = torch.log(values / (1 - values))
        with torch.no_grad():
            _copy_into(target, values)

    def reset_parameters(self) -> None:
        """Initialize all parameters again.

        Weights and biases are drawn from the uniform distribution on ``[-1/sqrt(H), 1/sqrt(H)]``, in the
        order of ``torch.nn.RNN`` and ``torch.nn.RNNCell``: the same seed gives the same weights. The decay
        gets the values given to the constructor, or set since, and ``h0`` is set to zero.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name == "h0":
                nn.init.zeros_(parameter)
            elif name != "decay_logit":
                nn.init.uniform_(parameter, -bound, bound)
        self._reset_decay()

    def _decay_tensor(self) -> Tensor | None:
        """Return the parameter or the buffer that holds the decay, or None."""
        return self._parameters.get("decay_logit") if self.learn_decay else self._buffers.get("decay")

    def _apply(self: _Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Module:
        """Convert and move as any module does, but keep the decay in float32 or float64, and set its values
        when it leaves the meta device, which has none.
        """
        before = self._decay_tensor()
        own = () if before is None else (before, before.grad)

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if converted.dtype not in _HALF or not any(tensor is x for x in own):
                return converted
            source = converted if tensor.dtype in _HALF else tensor
            return source.to(converted.device, torch.float32)

        was_meta = before is not None and before.is_meta
        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        after = self._decay_tensor()
        if was_meta and after is not None and not after.is_meta:
            self._reset_decay()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], *others: Any,
    ) -> None:  # fmt: skip
        """Load as any module does; missing keys in ``_own_entries`` keep their current values. Decays that
        were saved in half precision become float32.
        """
        for name in ("decay", "decay_logit"):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dtype in _HALF:
                state_dict[prefix + name] = value.detach().float()
        self._assigns = True
        try:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *others)
        finally:
            self._assigns = False
        missing = [name for name in self._own_entries if prefix + name in missing_keys]
        for name in missing:
            missing_keys.remove(prefix + name)
        self._leave_meta(missing)

    def _leave_meta(self, names: list[str]) -> None:
        """Give initial values to these tensors where they are on the meta device, and the weights are not."""
        loaded = next((x for x in self.parameters() if not x.is_meta), None)
        if loaded is None:
            return
        for name in names:
            parameter, buffer = self._parameters.get(name), self._buffers.get(name)
            if parameter is not None and parameter.is_meta:
                zeros = torch.zeros_like(parameter, device=loaded.device)
                self._parameters[name] = nn.Parameter(zeros, parameter.requires_grad)
            elif buffer is not None and buffer.is_meta:
                self._buffers[name] = torch.zeros_like(buffer, device=loaded.device)
            else:
                continue
            if name != "h0":
                self._reset_decay()

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


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a decay in a module of this dtype: float64 for float64, otherwise float32."""
    return torch.promote_types(dtype, torch.float32)


def _checked_numbers(decay: Any, shape: tuple[int, ...], dtype: torch.dtype) -> float | list[Any]:
    """Return the numbers of a number or of a Tensor ``[H]`` or ``shape``; raise an error unless all are in
    [0, 1).
    """
    if isinstance(decay, Tensor):
        if decay.requires_grad:
            raise ValueError("decay must not require gradients: learn_decay=True makes it a parameter")
        if not decay.is_floating_point():
            raise TypeError(f"decay must be floating-point, got {decay.dtype}")
    elif isinstance(decay, numbers.Real):
        decay = float(decay)
    elif not (hasattr(decay, "tolist") and hasattr(decay, "shape")):  # an array is taken as a Tensor is
        raise TypeError(f"decay must be a number or a Tensor, got {decay!r}")
    sizes = () if isinstance(decay, float) else tuple(decay.shape)
    if sizes not in {(), shape[-1:], shape}:
        names = f"a number or [H] = {list(shape[-1:])}"
        if len(shape) > 1:
            names += f" or [num_layers * directions, H] = {list(shape)}"
        raise ValueError(f"decay must be {names}, got {list(sizes)}")
    try:
        given: Any = decay if isinstance(decay, float) else decay.tolist()
    except (NotImplementedError, RuntimeError) as error:  # of a meta or a fake tensor
        raise ValueError(
            f"decay must have values, got a tensor on {decay.device} without: make it on the CPU, "
            "from where the module copies it to its own device"
        ) from error
    # Just below 1, a number may round to 1 in the dtype of the kernel.
    below = 1 - torch.finfo(_wide(dtype)).eps / 4
    if not all(0 <= x < below for x in _flat(given)):
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    return given if isinstance(given, list) else float(given)


def _flat(given: Any) -> Iterator[float]:
    if isinstance(given, list):
        for part in given:
            yield from _flat(part)
    else:
        yield given


def _copy_into(target: Tensor, values: Tensor) -> None:
    """Copy values on the CPU into a tensor, which may be a DTensor."""
    values = values.to(target.dtype)
    mesh = getattr(target, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import distribute_tensor

        values = values.expand(target.shape).to(target.device)
        values = distribute_tensor(values, mesh, target.placements)  # type: ignore[attr-defined]
    target.copy_(values)
