"""The layer: ``torch.nn.RNN``'s interface over the fused recurrence."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkernels import _C
from rnnkernels.functional import leaky_recurrence

__all__ = ["LeakyRNN"]


class LeakyRNN(nn.Module):
    r"""A recurrent layer of leaky units; with ``decay=0``, ``torch.nn.RNN``.

    .. math::
        p_t &= W_{ih} x_t + b_{ih} + b_{hh} \;(+\, \text{drive}_t) \\
        \text{rate:}\quad    h_t &= d\, h_{t-1} + (1-d)\, f(p_t + W_{hh} h_{t-1}) \\
        \text{current:}\quad h_t &= d\, h_{t-1} + (1-d)\, (p_t + W_{hh} f(h_{t-1}))

    The rate form is that of Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), where
    ``d`` is called alpha; the current form is that of most rate networks in neuroscience. The output
    is the state ``h_t`` in both: apply ``f`` to it for rates in the current form.

    Parameters, their names, shapes, order and initialisation are those of ``torch.nn.RNN``
    (``weight_ih_l0 [H, I]``, ``weight_hh_l0 [H, H]``, ``bias_ih_l0 [H]``, ``bias_hh_l0 [H]``), so
    state dicts load in both directions. A decay of one number is a setting and not in the state dict;
    a decay for each unit is a buffer, ``decay``, and is (but need not be in a dict that is loaded).

    Args:
        input_size: ``I``.
        hidden_size: ``H``.
        num_layers: 1; more are not available yet.
        nonlinearity: ``f``: ``"relu"`` (default; ``nn.RNN``'s is tanh) or ``"tanh"``.
        bias: Whether there are ``b_ih`` and ``b_hh``.
        batch_first: Input, output and drive are ``[B, T, ...]`` instead of ``[T, B, ...]``.
        dropout: As in ``nn.RNN``, between layers, so without effect in one.
        bidirectional: False; True is not available yet.
        decay: ``d``, the share of the previous state that is kept, in ``[0, 1)``: a number, or one
            value for each unit. See :func:`rnnkernels.decay_from_tau`.
        learn_decay: False; True is not available yet.
        form: ``"rate"`` or ``"current"``.
        device, dtype: Of the parameters: CPU, and float32 or float64.

    Raises:
        ValueError, TypeError: An argument is out of its range or of the wrong type.
        NotImplementedError: An argument asks for what is not available yet; the message names it.
    """

    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    bias_hh_l0: nn.Parameter
    decay: float | Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "relu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        decay: float | Tensor = 0.0,
        learn_decay: bool = False,
        form: str = "rate",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        _check_flags(bias=bias, batch_first=batch_first, bidirectional=bidirectional, learn_decay=learn_decay)
        _check_choice("nonlinearity", nonlinearity, _C.nonlinearities())
        _check_choice("form", form, ["rate", "current"])
        _check_dropout(dropout, num_layers)
        for name, asked in (
            (f"num_layers={num_layers}", num_layers > 1),
            ("bidirectional=True", bidirectional),
            ("learn_decay=True", learn_decay),
        ):
            if asked:
                raise NotImplementedError(f"LeakyRNN with {name} is not available yet")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.nonlinearity = nonlinearity
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.form = form
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih_l0": (hidden_size, input_size),
            "weight_hh_l0": (hidden_size, hidden_size),
        }
        if bias:
            shapes |= {"bias_ih_l0": (hidden_size,), "bias_hh_l0": (hidden_size,)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._set_decay(decay)
        self.reset_parameters()

    def _set_decay(self, decay: float | Tensor) -> None:
        try:
            values = decay if isinstance(decay, Tensor) else torch.as_tensor(decay, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"decay must be a number or a Tensor, got {decay!r}") from error
        if values.requires_grad:
            raise NotImplementedError("LeakyRNN with a decay that is trained is not available yet")
        if not values.is_floating_point():
            raise TypeError(f"decay must be floating-point, got {values.dtype}")
        if values.dim() > 1 or (values.dim() == 1 and len(values) != self.hidden_size):
            raise ValueError(
                f"decay must be a number or [H] = [{self.hidden_size}], got {list(values.shape)}"
            )
        if values.device.type != "meta":
            # As the kernel will see it: a number just below 1 may round to 1.
            rounded = values.to(self.weight_hh_l0.dtype)
            if not bool(((rounded >= 0) & (rounded < 1)).all()):
                raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if values.dim() == 0:
            # A number stays one, so that it is not rounded before .to(float64).
            self.decay = float(values)
        else:
            like = self.weight_hh_l0
            self.register_buffer("decay", values.detach().to(like.device, like.dtype, copy=True))

    def reset_parameters(self) -> None:
        """Draw all parameters from U(-1/sqrt(H), 1/sqrt(H)), as ``nn.RNN`` does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing: there is no cuDNN buffer to flatten into. Here for code written for nn.RNN."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        drive: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer over a batch of sequences.

        Args:
            input: ``[T, B, I]``; ``[B, T, I]`` with ``batch_first``; ``[T, I]`` unbatched.
            hx: State before the first step, ``[1, B, H]``, or ``[1, H]`` unbatched. Zero if None.
            drive: Added to the pre-activation: shaped like the output.

        Returns:
            ``output``: ``h_t`` of every step, ``[T, B, H]`` (or ``[B, T, H]``, ``[T, H]``); and
            ``h_n``: the last state, ``[1, B, H]`` (or ``[1, H]``).

        Raises:
            ValueError, RuntimeError: A tensor has the wrong shape, dtype or device; the message names
                it. The types are those of ``nn.RNN``.
            NotImplementedError: ``input`` is a ``PackedSequence``.
        """
        if isinstance(input, PackedSequence):
            raise NotImplementedError("LeakyRNN on a PackedSequence is not available yet")
        self._check_input(input)
        batched = input.dim() == 3
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
        bias = self.bias_ih_l0 + self.bias_hh_l0 if self.bias else None
        pre = nn.functional.linear(input, self.weight_ih_l0, bias)
        if drive is not None:
            pre = pre + self._checked_drive(drive, pre, batched)
        if self.batch_first:
            pre = pre.transpose(0, 1)
        h0 = None if hx is None else self._checked_state(hx, pre, batched)
        output, h_n = leaky_recurrence(
            pre, h0, self.weight_hh_l0, self.decay, nonlinearity=self.nonlinearity, form=self.form
        )
        if not batched:
            return output.squeeze(1), h_n
        return output.transpose(0, 1) if self.batch_first else output, h_n.unsqueeze(0)

    def _check_input(self, input: Tensor) -> None:
        _check_tensor("input", input)
        if input.dim() not in (2, 3):
            raise ValueError(
                f"input must be 2D ([T, I], unbatched) or 3D ([T, B, I]), got {list(input.shape)}"
            )
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size = {self.input_size}, got {list(input.shape)}"
            )
        weight = self.weight_ih_l0
        if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
            raise ValueError(f"input must have the dtype of the weights, {weight.dtype}, got {input.dtype}")
        if input.device != weight.device:
            raise RuntimeError(
                f"input must be on the device of the weights, {weight.device}, got {input.device}"
            )

    def _checked_state(self, hx: Tensor, pre: Tensor, batched: bool) -> Tensor:
        _check_tensor("hx", hx)
        expected = (1, pre.shape[1], self.hidden_size) if batched else (1, self.hidden_size)
        if tuple(hx.shape) != expected:
            names = "[1, B, H]" if batched else "[1, H]"
            raise RuntimeError(f"hx must be {names} = {list(expected)}, got {list(hx.shape)}")
        if hx.dtype != pre.dtype or hx.device != pre.device:
            raise RuntimeError(
                f"hx must have the dtype and device of the input, {pre.dtype} on {pre.device}, "
                f"got {hx.dtype} on {hx.device}"
            )
        return hx[0] if batched else hx

    def _checked_drive(self, drive: Tensor, pre: Tensor, batched: bool) -> Tensor:
        """``drive``, shaped like ``pre``, which has a batch dimension in any case."""
        _check_tensor("drive", drive)
        batch_dim = 0 if self.batch_first else 1
        expected = pre.shape if batched else pre.squeeze(batch_dim).shape
        if drive.shape != expected:
            raise RuntimeError(
                f"drive must be shaped like the output, {list(expected)}, got {list(drive.shape)}"
            )
        if drive.dtype != pre.dtype or drive.device != pre.device:
            raise RuntimeError(
                f"drive must have the dtype and device of the input, {pre.dtype} on {pre.device}, "
                f"got {drive.dtype} on {drive.device}"
            )
        return drive if batched else drive.unsqueeze(batch_dim)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], *others: Any,
    ) -> None:  # fmt: skip
        """As in any module, but a dict without a decay (``nn.RNN``'s) leaves the layer's own."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *others)
        if prefix + "decay" in missing_keys:
            missing_keys.remove(prefix + "decay")

    def extra_repr(self) -> str:
        """The arguments that differ from the defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in (
            ("nonlinearity", "relu"),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("form", "rate"),
        ):
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        if isinstance(self.decay, Tensor):
            parts.append("decay=[H]")
        elif self.decay != 0:
            parts.append(f"decay={self.decay:g}")
        return ", ".join(parts)


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} must be an int, got {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero, got {size}")


def _check_flags(**flags: bool) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {type(flag).__name__}")


def _check_choice(name: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_dropout(dropout: float, num_layers: int) -> None:
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be a number in [0, 1], got {dropout!r}")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"dropout acts between layers, so dropout={dropout} does nothing in one layer", stacklevel=3
        )
