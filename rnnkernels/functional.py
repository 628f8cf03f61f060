"""The recurrence and NADE as functions of tensors."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from rnnkernels import _autograd, _fallback
from rnnkernels._checks import has_kernels
from rnnkernels.outputs import _nade_autograd

__all__ = ["leaky_recurrence", "nade_log_prob", "nade_sample"]


def leaky_recurrence(
    pre: Tensor,
    h0: Tensor | None,
    weight_hh: Tensor,
    decay: float | Tensor,
    *,
    nonlinearity: str = "relu",
    form: str = "rate",
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""The leaky-integration recurrence over all steps, in one fused kernel.

    .. math::
        \text{rate:}\quad    h_t &= d\, h_{t-1} + (1-d)\, f(p_t + W_{hh} h_{t-1}) \\
        \text{current:}\quad h_t &= d\, h_{t-1} + (1-d)\, (p_t + W_{hh} f(h_{t-1}))

    The rate form is that of Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), where
    ``d`` is called alpha; with ``d = 0`` it is ``torch.nn.RNN``. The current form leaks before ``f``,
    as rate networks in neuroscience do. The output is the state ``h_t`` in both.

    Differentiable in ``pre``, ``h0``, ``weight_hh`` and ``decay``, any number of times, backward and
    forward mode, and under ``torch.func`` (``vmap`` over ``weight_hh`` is one call over all networks).
    Backward keeps the output and, for ReLU in the rate form, one bit for each unit and step; for a
    smooth ``f`` in the rate form, ``f(z_t)``; in the current form nothing more.

    bfloat16 and float16 are for storing: the state and all sums are float32, results are rounded once.
    Processors with products of bfloat16 round what ``W_hh`` is multiplied with to it as well.

    On a device without kernels it is a loop of torch's operations over the steps, and one warning says so.

    Args:
        pre: ``p``, all that reaches the units besides the recurrence (input projection, biases,
            noise): ``[T, B, H]``, or ``[sum(batch_sizes), H]`` with ``batch_sizes``. float32,
            float64, bfloat16 or float16, any strides.
        h0: State before the first step, ``[B, H]``; None for zero.
        weight_hh: ``W_hh``, ``[H, H]``, any strides.
        decay: ``d``, the share of the previous state that is kept, in ``[0, 1)``: a number, a scalar
            tensor, or one value for each unit, ``[H]``. May be float32 where ``pre`` is in half
            precision. A tensor's values are looked at on the CPU only: on another device that would
            wait for it.
        nonlinearity: ``f``: ``"relu"``, ``"tanh"``, ``"sigmoid"`` or ``"softplus"``.
        form: ``"rate"`` or ``"current"``.
        batch_sizes: Rows at each step, as in a ``PackedSequence``: int64, on the CPU, positive, never
            growing.
        reverse: Walk from the last step to the first; ``h0`` then comes before a row's last step.

    Returns:
        ``output``, every ``h_t``, shaped like ``pre``; and ``h_n``, the state after each row's last
        step in the direction of the walk, ``[B, H]``.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    _check_tensors(pre=pre, weight_hh=weight_hh)
    _check_tensors(**{k: x for k, x in (("h0", h0), ("batch_sizes", batch_sizes)) if x is not None})
    d = decay_tensor(decay, pre)
    if weight_hh.dim() != 2:
        raise ValueError(f"weight_hh must be [H, H], got {list(weight_hh.shape)}")
    if batch_sizes is not None and h0 is None:
        h0 = zero_h0(batch_sizes, pre, weight_hh)
    others = (batch_sizes, nonlinearity, form, reverse)
    if has_kernels(pre.device):
        return _autograd.leaky_recurrence(pre, h0, weight_hh, d, *others)
    return _fallback.leaky_recurrence(pre, h0, weight_hh, d if d is decay else float(decay), *others)


def nade_log_prob(
    v: Tensor, visible_bias: Tensor, hidden_bias: Tensor, encoder: Tensor, decoder: Tensor
) -> Tensor:
    r"""The logarithm of what a NADE says of binary rows, in one fused kernel.

    .. math::
        a_1 = c, \qquad h_i = \sigma(a_i), \qquad l_i = b_i + V_i \cdot h_i, \qquad
        a_{i+1} = a_i + v_i W_i \\
        \log p(v) = \sum_i v_i l_i - \log(1 + e^{l_i})

    Larochelle and Murray 2011, "The neural autoregressive distribution estimator". ``h`` changes only behind
    a one, so the kernel makes sigmoids there alone; music has 4 ones among 88 keys. For backward it keeps the
    logits besides its arguments, so memory does not grow with ``D H``.

    First derivatives, for all arguments but ``v``, are another kernel's. Higher ones, forward mode and
    ``torch.func`` work through a loop of torch's operations over the ``D`` units, in the time and memory of
    such a loop. Numbers that are not finite stay in their row, but for the gradients of the weights, which
    are sums over rows; what ``v_i = 0`` leaves out is left out, where the loop would multiply it by zero.

    On a device without kernels it is that loop, and one warning says so.

    Args:
        v: Zeros and ones, ``[..., D]``: bool or numbers of any dtype. No gradient flows to it. On a GPU
            whatever is not zero is a one, for to look would be to wait.
        visible_bias: ``b``, ``[..., D]``. float32 or float64; half precision is computed in float32.
        hidden_bias: ``c``, ``[..., H]``.
        encoder: ``W``, ``[D, H]``, any strides.
        decoder: ``V``, ``[D, H]``, any strides.

    Returns:
        ``[...]``; float64 for float64 and else float32.

    Raises:
        ValueError, TypeError: An argument has the wrong type, shape, dtype, device or value; the message
            names it.
    """
    tensors = {
        "visible_bias": visible_bias, "hidden_bias": hidden_bias, "encoder": encoder, "decoder": decoder
    }  # fmt: skip
    _check_tensors(v=v, **tensors)
    return _nade_autograd.log_prob(v, *tensors.values())


def nade_sample(
    visible_bias: Tensor,
    hidden_bias: Tensor,
    encoder: Tensor,
    decoder: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draw binary rows from a NADE, unit by unit, in one fused kernel; see :func:`nade_log_prob`.

    No gradient flows through it; that of the drawn rows' probability is ``nade_log_prob``'s.

    Args:
        visible_bias: ``b``, ``[..., D]``. float32 or float64; half precision is computed in float32.
        hidden_bias: ``c``, ``[..., H]``.
        encoder: ``W``, ``[D, H]``, any strides.
        decoder: ``V``, ``[D, H]``, any strides.
        generator: Of the uniform numbers: ``v_i`` is 1 where one is less than ``sigmoid(l_i)``.

    Returns:
        ``v``, uint8, and the logits ``l`` along the way, both ``[..., D]``.

    Raises:
        ValueError, TypeError: As :func:`nade_log_prob`.
    """
    tensors = {
        "visible_bias": visible_bias, "hidden_bias": hidden_bias, "encoder": encoder, "decoder": decoder
    }  # fmt: skip
    _check_tensors(**tensors)
    return _nade_autograd.sample(generator, *tensors.values())


def decay_tensor(decay: float | Tensor, like: Tensor) -> Tensor:
    """``decay`` as the operators take it, for a sequence like this one."""
    if isinstance(decay, Tensor):
        _check_tensors(decay=decay)
        return decay
    if not isinstance(decay, numbers.Real):
        raise TypeError(f"decay must be a number or a Tensor, got {type(decay).__name__}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    # The nearest float32 to a number just below 1 may be 1 itself, which the kernel refuses.
    dtype = torch.float32 if like.dtype in (torch.bfloat16, torch.float16) else like.dtype
    return torch.full((), decay, dtype=dtype, device=like.device)


def zero_h0(batch_sizes: Tensor, rows: Tensor, weight_hh: Tensor) -> Tensor:
    """The zero state of a packed sequence, whose number of rows nothing else tells the operators."""
    return rows.new_zeros(_first_batch_size(batch_sizes, rows), weight_hh.shape[-1])


def _check_tensors(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got layout {tensor.layout}")


def _first_batch_size(batch_sizes: Tensor, rows: Tensor) -> int:
    """How many rows a zero h0 needs; the operator checks the rest."""
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
        raise ValueError(
            "batch_sizes must be a one-dimensional int64 tensor on the CPU, got "
            f"{batch_sizes.dtype} {list(batch_sizes.shape)} on {batch_sizes.device}"
        )
    if rows.dim() != 2 or len(batch_sizes) == 0:
        return 0
    first = int(batch_sizes[0])
    # A traced value cannot be looked at; there the operator finds out when it runs.
    if not torch.compiler.is_compiling() and not 0 <= first <= len(rows):
        raise ValueError(
            f"batch_sizes must be positive and add up to the {len(rows)} rows of pre, got {first}"
        )
    return first
