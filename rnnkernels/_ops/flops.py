"""The operators' numbers of floating-point operations, for ``torch.utils.flop_counter``.

Only matrix products count, with two operations per multiply-add, as for torch's own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

from torch.utils.flop_counter import flop_registry, register_flop_formula

from rnnkernels import _ops

Shape = tuple[int, ...]


Formula = TypeVar("Formula", bound=Callable[..., int])


def _formula_of(operator: Any) -> Callable[[Formula], Formula]:
    """Register the formula of an operator, unless an earlier import of the package has done so."""
    if operator in flop_registry:
        return lambda formula: formula
    return register_flop_formula(operator)  # type: ignore[return-value]


def _flops(sequence: Shape, weight: Shape) -> int:
    """A product with ``weight`` ``[H, n]`` for each row of a sequence."""
    return 2 * prod(sequence[:-1]) * prod(weight[-2:])


@_formula_of(_ops.leaky_recurrence)
def _forward(pre: Shape, h0: Any, weight_hh: Shape, *_: Any, **__: Any) -> int:
    return _flops(pre, weight_hh)


@_formula_of(_ops.projected_recurrence)
def _projected(input: Shape, h0: Any, weight_ih: Shape, weight_hh: Shape, *_: Any, **__: Any) -> int:
    return _flops(input, weight_ih) + _flops(input, weight_hh)


@_formula_of(_ops.leaky_recurrence_backward)
def _backward(
    grad_output: Any, grad_h_n: Any, output: Shape, saved: Any, h0: Any, weight_hh: Shape, *rest: Any,
    **_: Any,
) -> int:  # fmt: skip
    wanted: list[bool] = rest[-1]
    return (1 + wanted[2]) * _flops(output, weight_hh)


@_formula_of(_ops.projected_recurrence_backward)
def _projected_backward(
    grad_output: Any, grad_h_n: Any, output: Shape, saved: Any, input: Any, h0: Any, weight_ih: Shape,
    weight_hh: Shape, *rest: Any, **_: Any,
) -> int:  # fmt: skip
    wanted: list[bool] = rest[-1]
    projection = (wanted[0] + wanted[2]) * _flops(output, weight_ih)
    return projection + (1 + wanted[3]) * _flops(output, weight_hh)


@_formula_of(_ops.linear_recurrence)
def _linear(drive: Shape, h0: Any, weight_hh: Shape, *_: Any, **__: Any) -> int:
    return _flops(drive, weight_hh)


@_formula_of(_ops.nade)
def _nade(v: Shape, visible_bias: Any, hidden_bias: Any, encoder: Shape, *_: Any, **__: Any) -> int:
    return _flops(v, encoder)


@_formula_of(_ops.nade_sample)
def _nade_sample(
    uniform: Shape, visible_bias: Any, hidden_bias: Any, encoder: Shape, *_: Any, **__: Any
) -> int:
    return _flops(uniform, encoder)


@_formula_of(_ops.nade_backward)
def _nade_backward(
    grad_log_prob: Any, grad_logits: Any, v: Shape, logits: Any, hidden_bias: Any, encoder: Shape,
    decoder: Any, wanted: list[bool], **_: Any,
) -> int:  # fmt: skip
    return 2 * any(wanted[1:]) * _flops(v, encoder)
