"""The recurrence and NADE as functions of tensors."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._autograd.checkpointing import checkpointed
from rnnkernels._autograd.forward import recurrence
from rnnkernels._checks import check_tensor, checked_size
from rnnkernels._devices import autocasts, has_kernels
from rnnkernels._ops import composite
from rnnkernels._ops.spec import ProjectedTensors, RecurrenceSpec, RecurrenceTensors
from rnnkernels.outputs import _nade_autograd

__all__ = ["leaky_recurrence", "nade_log_prob", "nade_sample", "projected_recurrence"]


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
    r"""Compute the leaky-integration recurrence over all steps in one fused kernel.

    .. math::
        \text{rate:}\quad    h_t &= d\, h_{t-1} + (1-d)\, f(p_t + W_{hh} h_{t-1}) \\
        \text{current:}\quad h_t &= d\, h_{t-1} + (1-d)\, (p_t + W_{hh} f(h_{t-1}))

    The rate form is that of Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), where
    ``d`` is called alpha; with ``d = 0`` it is ``torch.nn.RNN``. The current form leaks before ``f``,
    as rate networks in neuroscience do. The output is the state ``h_t`` in both.

    The function is differentiable in ``pre``, ``h0``, ``weight_hh`` and ``decay``, any number of times, in
    backward and forward mode, and under ``torch.func`` (``vmap`` over ``weight_hh`` is one call over all
    networks). Backward keeps the output and, for ReLU in the rate form, one bit per unit and step; for a
    smooth ``f`` in the rate form, ``f(z_t)``; in the current form nothing else.

    bfloat16 and float16 are storage formats: the state and all sums are float32, and results are rounded
    once. Processors with bfloat16 products also round ``W_hh`` and the state it multiplies to bfloat16. If
    ``decay`` needs a gradient, backward then keeps one more value per unit and step, so that the gradient is
    accurate for a slow decay, too.

    On a device without kernels, the recurrence runs as a loop of torch operations over the steps, with one
    warning per process.

    Args:
        pre: ``p``, the total input of the units besides the recurrence (input projection, biases,
            noise): ``[T, B, H]``, or ``[sum(batch_sizes), H]`` with ``batch_sizes``. float32,
            float64, bfloat16 or float16, any strides.
        h0: State before the first step, ``[B, H]``; None for zero.
        weight_hh: ``W_hh``, ``[H, H]``, any strides.
        decay: ``d``, the fraction of the previous state that is kept, in ``[0, 1)``: a number, a scalar
            tensor, or one value per unit, ``[H]``. May be float32 if ``pre`` is in half precision. The
            values of a tensor are checked on the CPU only: on another device this would synchronize.
        nonlinearity: ``f``: ``"relu"``, ``"tanh"``, ``"sigmoid"`` or ``"softplus"``.
        form: ``"rate"`` or ``"current"``.
        batch_sizes: Rows of each step, as in a ``PackedSequence``: int64, on the CPU, positive, never
            growing.
        reverse: Run from the last step to the first; ``h0`` then precedes a row's last step.

    Returns:
        ``output``, every ``h_t``, shaped like ``pre``; and ``h_n``, the state after each row's last
        step in the order of the time loop, ``[B, H]``.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    spec = RecurrenceSpec(nonlinearity, form, reverse)
    return _checked_recurrence(pre, h0, weight_hh, decay, batch_sizes, spec)


def projected_recurrence(
    input: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    decay: float | Tensor,
    *,
    drive: Tensor | None = None,
    nonlinearity: str = "relu",
    form: str = "rate",
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    batch_first: bool = False,
    checkpoint_every: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Compute the input projection and the leaky recurrence over all steps.

    .. math::
        p_t &= W_{ih} x_t + b \;(+\, \text{drive}_t) \\
        \text{rate:}\quad    h_t &= d\, h_{t-1} + (1-d)\, f(p_t + W_{hh} h_{t-1}) \\
        \text{current:}\quad h_t &= d\, h_{t-1} + (1-d)\, (p_t + W_{hh} f(h_{t-1}))

    With ``checkpoint_every=k``, backward keeps every k-th state besides the arguments and recomputes the
    ``k`` steps that follow it (including their projection): memory for ``T/k + k`` steps instead of ``T``,
    for one more forward pass. The output of all steps is returned in any case and lives as long as the
    caller keeps it. Results have the same bits. The gradients of the weights are added up segment by segment,
    so they agree to rounding. In half precision the recomputed steps start from the rounded state, and the
    gradient that is passed from one segment to the next is rounded. Under ``torch.func``'s transforms nothing
    is recomputed.

    Under autocast the projection runs in autocast's dtype and the recurrence in float32 (float64 if
    ``weight_hh`` is float64), because rounding the state at every step would accumulate errors.

    Args:
        input: ``x``, ``[T, B, I]``; ``[B, T, I]`` with ``batch_first``; ``[sum(batch_sizes), I]`` with
            ``batch_sizes``. float32, float64, bfloat16 or float16.
        h0: State before the first step, ``[B, H]``; None for zero.
        weight_ih: ``W_ih``, ``[H, I]``.
        weight_hh: ``W_hh``, ``[H, H]``.
        bias: ``b``, ``[H]`` or None.
        decay: ``d``, the fraction of the previous state that is kept, in ``[0, 1)``: a number, a scalar
            tensor, or ``[H]``.
        drive: Added to the pre-activation: ``[T, B, H]``; ``[B, T, H]`` with ``batch_first``; packed rows.
        nonlinearity: ``f``, as for :func:`leaky_recurrence`.
        form: ``"rate"`` or ``"current"``.
        batch_sizes: Rows of each step, as in a ``PackedSequence``.
        reverse: Run from the last step to the first.
        batch_first: ``input`` and ``drive`` are ``[B, T, ...]``; not with ``batch_sizes``. The output is
            time-first in any case, because the kernel writes it so.
        checkpoint_every: ``k``; None keeps everything that backward needs.

    Returns:
        ``output``, ``[T, B, H]`` (or ``[sum(batch_sizes), H]``); and ``h_n``, ``[B, H]``.

    Raises:
        ValueError, TypeError: As :func:`leaky_recurrence`, and if ``checkpoint_every`` is not a positive int
            or ``batch_first`` is combined with ``batch_sizes``.
    """
    if batch_first and batch_sizes is not None:
        raise ValueError("batch_first must be False with batch_sizes: packed rows have no batch dimension")
    if drive is not None and drive.shape != (expected := (*input.shape[:-1], weight_hh.shape[-1])):
        raise ValueError(
            f"drive must be {list(expected)}, as the input and weight_hh say, got {list(drive.shape)}"
        )
    if batch_first:
        input = input.transpose(0, 1)
        drive = None if drive is None else drive.transpose(0, 1)
    check_tensor("weight_hh", weight_hh)
    tensors = ProjectedTensors(input, h0, weight_ih, weight_hh, bias, drive, decay, batch_sizes)
    return run_projected(tensors, RecurrenceSpec(nonlinearity, form, reverse), checkpoint_every)


def nade_log_prob(
    v: Tensor, visible_bias: Tensor, hidden_bias: Tensor, encoder: Tensor, decoder: Tensor
) -> Tensor:
    r"""Compute the log-probability of binary rows under a NADE, in one fused kernel.

    .. math::
        a_1 = c, \qquad h_i = \sigma(a_i), \qquad l_i = b_i + V_i \cdot h_i, \qquad
        a_{i+1} = a_i + v_i W_i \\
        \log p(v) = \sum_i v_i l_i - \log(1 + e^{l_i})

    ``h_i`` changes only after a unit with ``v_i = 1``, so the kernel computes sigmoids only there; piano
    rolls have about 4 ones among 88 keys. Backward keeps the logits ``l`` besides the arguments, so memory
    does not grow with ``D H``.

    A second kernel computes the first derivatives, with respect to all arguments except ``v``. Higher
    derivatives, forward mode and ``torch.func`` use a loop of torch operations over the ``D`` units, and cost
    its time and memory. Values that are not finite affect only their own row, except in the gradients of
    ``encoder`` and ``decoder``, which are sums over rows. If ``v_i`` is 0, the kernel ignores ``W_i`` even if
    it is not finite, whereas the loop multiplies it by zero.

    On a device without kernels, the same loop of torch operations runs, with one warning per process.

        log_p = rnnkernels.functional.nade_log_prob(v, b, c, encoder, decoder)  # [..., D] to [...]
        (-log_p.mean()).backward()

    Args:
        v: Zeros and ones, ``[..., D]``, bool, integers (uint8, int8 to int64) or floats (16 to 64 bits). It
            gets no gradient. Values are checked on the CPU only. On a GPU, where a check would synchronize,
            every value other than zero is a one.
        visible_bias: ``b``, ``[..., D]``. float32 or float64; half precision is computed in float32.
        hidden_bias: ``c``, ``[..., H]``.
        encoder: ``W``, ``[D, H]``, any strides.
        decoder: ``V``, ``[D, H]``, any strides.

    Returns:
        ``log p(v)``, ``[...]``; float64 for float64, otherwise float32.

    Raises:
        ValueError, TypeError: An argument has the wrong type, shape, dtype, device or value; the message
            names it.

    Source: Larochelle and Murray 2011, "The neural autoregressive distribution estimator".
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
    r"""Draw binary rows from a NADE, unit by unit, in one fused kernel.

    .. math::
        a_1 = c, \qquad h_i = \sigma(a_i), \qquad l_i = b_i + V_i \cdot h_i, \qquad
        v_i \sim \text{Bernoulli}(\sigma(l_i)), \qquad a_{i+1} = a_i + v_i W_i

    The samples and the logits carry no gradient. For the gradient of the log-probability of the samples, call
    :func:`nade_log_prob`.

    Args:
        visible_bias: ``b``, ``[..., D]``. float32 or float64; half precision is computed in float32.
        hidden_bias: ``c``, ``[..., H]``.
        encoder: ``W``, ``[D, H]``, any strides.
        decoder: ``V``, ``[D, H]``, any strides.
        generator: Generator of the uniform random values; ``v_i`` is 1 if its value is less than
            ``sigmoid(l_i)``. None uses torch's default generator of the device.

    Returns:
        ``v``, uint8, and the logits ``l``, both ``[..., D]``.

    Raises:
        ValueError, TypeError: As :func:`nade_log_prob`.
        RuntimeError: The probabilities to draw from are NaN; on CUDA a device-side assertion.

    Source: Larochelle and Murray 2011, "The neural autoregressive distribution estimator".
    """
    tensors = {
        "visible_bias": visible_bias, "hidden_bias": hidden_bias, "encoder": encoder, "decoder": decoder
    }  # fmt: skip
    _check_tensors(**tensors)
    return _nade_autograd.sample(generator, *tensors.values())


def run_projected(
    tensors: ProjectedTensors, spec: RecurrenceSpec, checkpoint_every: int | None = None
) -> tuple[Tensor, Tensor]:
    """Project and run the recurrence, for checked arguments.

    This is the only place that decides which dtype runs where: in half precision and under autocast, and on a
    device for which the operator with the projection has no kernel, torch projects.
    """
    if checkpoint_every is not None:
        checkpoint_every = checked_size("checkpoint_every", checkpoint_every)
    elif not torch.compiler.is_compiling():
        result: tuple[Tensor, Tensor] | None = _ops.projected_recurrence_directly(*tensors, *spec)
        if result is not None:
            return result
    if isinstance(tensors.bias, tuple):
        tensors = tensors._replace(bias=tensors.bias[0] + tensors.bias[1])
    tensors = tensors._replace(decay=_decay_operand(tensors.decay, tensors.weight_hh))
    if tensors.batch_sizes is not None and tensors.h0 is None:
        tensors = tensors._replace(h0=_zero_h0(tensors.batch_sizes, tensors.input, tensors.weight_hh))
    if checkpoint_every is not None:
        return checkpointed(run_projected, tensors, spec, checkpoint_every)
    input = tensors.input
    if (
        input.dtype in (torch.float32, torch.float64)
        and has_kernels(input.device, "projected_recurrence")
        and not autocasts(input.device)
    ):
        return recurrence(tensors, spec)
    return _project_with_torch(tensors, spec)


def _project_with_torch(tensors: ProjectedTensors, spec: RecurrenceSpec) -> tuple[Tensor, Tensor]:
    """The projection as torch operations; under autocast in its dtype, but the recurrence in float32."""
    input, h0, weight_ih, weight_hh, bias, drive, decay, batch_sizes = tensors
    pre = torch.nn.functional.linear(input, weight_ih, bias)
    if autocasts(input.device):
        dtype = torch.promote_types(weight_hh.dtype, torch.float32)
        pre, weight_hh = pre.to(dtype), weight_hh.to(dtype)
        h0, drive = (x if x is None else x.to(dtype) for x in (h0, drive))
        decay = decay.to(dtype) if isinstance(decay, Tensor) else decay
    if drive is not None:
        pre = pre + drive
    return _checked_recurrence(pre, h0, weight_hh, decay, batch_sizes, spec)


def _checked_recurrence(
    pre: Tensor, h0: Tensor | None, weight_hh: Tensor, decay: float | Tensor, batch_sizes: Tensor | None,
    spec: RecurrenceSpec,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The recurrence alone, by the operator or by torch operations."""
    _check_tensors(pre=pre, weight_hh=weight_hh)
    if h0 is not None or batch_sizes is not None:
        _check_tensors(**{k: x for k, x in (("h0", h0), ("batch_sizes", batch_sizes)) if x is not None})
    d = decay_tensor(decay, pre)
    if weight_hh.dim() != 2:
        raise ValueError(f"weight_hh must be [H, H], got {list(weight_hh.shape)}")
    if batch_sizes is not None and h0 is None:
        h0 = _zero_h0(batch_sizes, pre, weight_hh)
    tensors = RecurrenceTensors(pre, h0, weight_hh, d, batch_sizes)
    if has_kernels(pre.device):
        return recurrence(tensors, spec)
    return composite.leaky_recurrence(tensors, d if d is decay else float(decay), spec)


def _decay_operand(decay: Any, like: Tensor) -> float | Tensor:
    """``decay`` as a tensor for the kernels; without kernels a number stays one, for the composite."""
    return decay_tensor(decay, like) if has_kernels(like.device) else decay


def decay_tensor(decay: float | Tensor, like: Tensor) -> Tensor:
    """``decay`` as a tensor for the operators, for sequences of the dtype and device of ``like``."""
    if isinstance(decay, Tensor):
        _check_tensors(decay=decay)
        return decay
    if not isinstance(decay, numbers.Real):
        raise TypeError(f"decay must be a number or a Tensor, got {type(decay).__name__}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    # The nearest float32 to a number just below 1 may be 1 itself, which the kernel refuses.
    # A dtype that the operators refuse may have no values at all.
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.full((), decay, dtype=dtype, device=like.device)


def _zero_h0(batch_sizes: Tensor, rows: Tensor, weight_hh: Tensor) -> Tensor:
    """The zero state of a packed sequence. The operators take the number of rows from it."""
    _check_tensors(batch_sizes=batch_sizes, weight_hh=weight_hh)
    if weight_hh.dim() == 0:
        raise ValueError("weight_hh must be [H, H], got []")
    return rows.new_zeros(_first_batch_size(batch_sizes, rows), weight_hh.shape[-1])


def _check_tensors(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got layout {tensor.layout}")


def _first_batch_size(batch_sizes: Tensor, rows: Tensor) -> int:
    """The number of rows of a zero ``h0``; the operator checks everything else."""
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
        raise ValueError(
            "batch_sizes must be a one-dimensional int64 tensor on the CPU, got "
            f"{batch_sizes.dtype} {list(batch_sizes.shape)} on {batch_sizes.device}"
        )
    if rows.dim() != 2 or len(batch_sizes) == 0:
        return 0
    first = int(batch_sizes[0])
    # While tracing there is no value to check; the operator checks it when it runs.
    if not torch.compiler.is_compiling() and not 0 <= first <= len(rows):
        raise ValueError(
            f"batch_sizes must be positive and add up to the {len(rows)} rows of pre, got {first}"
        )
    return first
