"""The cell: one step of the leaky recurrence, with the interface of ``torch.nn.RNNCell``."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from rnnkernels._checks import (
    check_dtype,
    check_like_input,
    check_spec,
    check_tensor,
    checked_flag,
    checked_size,
)
from rnnkernels._devices import autocasts
from rnnkernels._fx import leaf_call
from rnnkernels._ops.spec import ProjectedTensors, RecurrenceSpec
from rnnkernels.functional import run_projected
from rnnkernels.nn._base import LeakyModule

__all__ = ["LeakyRNNCell"]


class LeakyRNNCell(LeakyModule):
    r"""One step of a layer of leaky units. With ``decay=0`` it computes ``torch.nn.RNNCell``.

    .. math::
        p &= W_{ih} x + b_{ih} + b_{hh} \;(+\, \text{drive}) \\
        \text{rate:}\quad    h' &= d\, h + (1-d)\, f(p + W_{hh} h) \\
        \text{current:}\quad h' &= d\, h + (1-d)\, (p + W_{hh} f(h))

    Use the cell in loops whose next input depends on the last state. If all inputs are known in advance,
    :class:`LeakyRNN` computes the same in one call for all steps, which is faster.

        cell = rnnkernels.LeakyRNNCell(88, 200, decay=0.8)
        for x in inputs:  # each [B, 88]
            h = cell(x, h)  # [B, 200]

    The parameters are those of ``torch.nn.RNNCell``: ``weight_ih [H, I]``, ``weight_hh [H, H]``,
    ``bias_ih [H]`` and ``bias_hh [H]``; state dicts load in both directions. A decay per unit is a buffer,
    ``decay [H]``. A learned decay is the sigmoid of a parameter, ``decay_logit [H]``. Both may be missing in
    a state dict that is loaded; missing keys keep their current values. Both are float32 in a cell of half
    precision. A decay can be set, ``cell.decay = 0.9``; see :attr:`decay`.

    Args:
        input_size: ``I``, the number of features of the input.
        hidden_size: ``H``, the number of units.
        bias: Whether the cell has the biases ``b_ih`` and ``b_hh``.
        nonlinearity: ``f``: ``"relu"`` (default; ``nn.RNNCell``'s is tanh), ``"tanh"``, ``"sigmoid"`` or
            ``"softplus"``.
        decay: ``d``, the fraction of the previous state that is kept, in ``[0, 1)``: a number, or one
            value per unit, ``[H]``.
        learn_decay: Whether to train the decay of each unit; see :class:`LeakyRNN`.
        form: ``"rate"`` or ``"current"``.
        device, dtype: Device and dtype of the parameters: float32, float64, bfloat16 or float16. Any device
            works, but only devices with kernels are fast; see :func:`rnnkernels.functional.leaky_recurrence`.

    Raises:
        ValueError, TypeError: An argument is out of range or has the wrong type; the message names it.

    Source: Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901) for the rate form.
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "relu",
        *,
        decay: float | Tensor = 0.0,
        learn_decay: bool = False,
        form: str = "rate",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_spec(nonlinearity, form)
        check_dtype(dtype)
        self.input_size = input_size = checked_size("input_size", input_size)
        self.hidden_size = hidden_size = checked_size("hidden_size", hidden_size)
        self.bias = checked_flag("bias", bias)
        self.nonlinearity = nonlinearity
        self.form = form

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight_ih = parameter(hidden_size, input_size)
        self.weight_hh = parameter(hidden_size, hidden_size)
        self.register_parameter("bias_ih", parameter(hidden_size) if bias else None)
        self.register_parameter("bias_hh", parameter(hidden_size) if bias else None)
        self._init_decay(decay, learn_decay, (hidden_size,), self.weight_hh)
        self.reset_parameters()

    def forward(self, input: Tensor, hx: Tensor | None = None, *, drive: Tensor | None = None) -> Tensor:
        """Take one step.

        Args:
            input: ``x``, ``[B, I]``, or ``[I]`` unbatched, in the dtype of the parameters.
            hx: ``h``, the state before the step, ``[B, H]`` or ``[H]``; None for zero.
            drive: Added to the pre-activation ``p``; ``[B, H]`` or ``[H]``.

        Returns:
            ``h'``, the state after the step, ``[B, H]`` or ``[H]``.

        Raises:
            ValueError, RuntimeError: A tensor has the wrong shape, dtype or device; the message names
                it. The error has the same type as in ``nn.RNNCell``.
            TypeError: An argument is not a Tensor.
        """
        are_tensors = isinstance(input, Tensor) and (hx is None or isinstance(hx, Tensor))
        if not are_tensors or not (drive is None or isinstance(drive, Tensor)):
            return cast(Tensor, self._call_without_tensors(input, hx, drive))
        weight_ih = self._read("weight_ih")
        self._check_input(input, weight_ih)
        if hx is not None:
            self._check_state("hx", hx, input)
        if drive is not None:
            self._check_state("drive", drive, input)
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
            hx, drive = (x if x is None else x.unsqueeze(0) for x in (hx, drive))
        tensors = ProjectedTensors(
            input.unsqueeze(0),
            hx,
            weight_ih,
            self._read("weight_hh"),
            self._biases("bias_ih", "bias_hh"),
            None if drive is None else drive.unsqueeze(0),
            self.decay,
            None,
        )
        _, h_n = run_projected(tensors, RecurrenceSpec(self.nonlinearity, self.form))
        return h_n if batched else h_n.squeeze(0)

    def _call_without_tensors(self, input: Any, hx: Any, drive: Any) -> Any:
        """Record the call if torch.fx traces it, else raise TypeError for the first wrong argument."""
        if (traced := leaf_call(self, input, hx, drive=drive)) is not None:
            return traced
        for name, value in (("input", input), ("hx", hx), ("drive", drive)):
            if value is not None or name == "input":
                check_tensor(name, value)
        raise AssertionError("all arguments are tensors")

    def _check_input(self, input: Tensor, weight: Tensor) -> None:
        if input.dim() not in (1, 2):
            raise ValueError(f"input must be [B, I] or [I], got {list(input.shape)}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size = {self.input_size}, got {list(input.shape)}"
            )
        same_dtype = input.dtype == weight.dtype or autocasts(input.device)
        if not same_dtype or input.device != weight.device:
            raise RuntimeError(
                f"input must have the dtype and device of the weights, {weight.dtype} on {weight.device}, "
                f"got {input.dtype} on {input.device}"
            )

    def _check_state(self, name: str, value: Tensor, input: Tensor) -> None:
        check_tensor(name, value)
        if value.dim() not in (1, 2):
            raise ValueError(f"{name} must be [B, H] or [H], got {list(value.shape)}")
        expected = (*input.shape[:-1], self.hidden_size)
        if value.shape != expected:
            raise RuntimeError(f"{name} must be {list(expected)} beside the input, got {list(value.shape)}")
        check_like_input(name, value, input)

    def extra_repr(self) -> str:
        """Return the sizes and the arguments that differ from the defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in (("nonlinearity", "relu"), ("bias", True), ("form", "rate")):
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(parts + self._decay_repr())
