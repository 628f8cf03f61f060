"""The arguments of the recurrence's operators, spelled out once for all Python code.

A call of an operator is a tuple of tensors, one :class:`RecurrenceSpec`, and a last argument of its own
(``save`` of a forward operator, ``wanted`` of a backward one):

    operator(*tensors, *spec, last)

Functions pass the tuple and the spec on whole. Only the operators' schemas (csrc/binding/operators.cpp) and
the autograd Functions, which have the operators' signatures, are flat; :func:`split_arguments` undoes that.

To add a setting to the recurrence, add a field to ``RecurrenceSpec``. To add a tensor, add a field to the
tuples below and its role for vmap to ``ROLES``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from torch import Tensor


class RecurrenceSpec(NamedTuple):
    """Which recurrence is computed: all arguments of a call that are not tensors.

    The fields are in the order of the operators' schemas. The operators check the values
    (csrc/binding/arguments.cpp).
    """

    nonlinearity: str = "relu"
    form: str = "rate"
    reverse: bool = False


class RecurrenceTensors(NamedTuple):
    """The tensors of ``leaky_recurrence``."""

    pre: Tensor  # p, [T, B, H] or packed rows [sum(batch_sizes), H]
    h0: Tensor | None  # [B, H]
    weight_hh: Tensor  # [H, H]
    decay: Tensor  # scalar or [H]
    batch_sizes: Tensor | None  # [T]

    def for_backward(self, output: Tensor, saved: Tensor) -> BackwardTensors:
        """The tensors of the backward operator, without incoming gradients."""
        return BackwardTensors(
            None, None, output, saved, self.h0, self.weight_hh, self.decay, self.batch_sizes
        )


class ProjectedTensors(NamedTuple):
    """The tensors of ``projected_recurrence``."""

    input: Tensor  # x, [T, B, I] or packed rows
    h0: Tensor | None
    weight_ih: Tensor  # [H, I]
    weight_hh: Tensor
    bias: Any  # [H]; two of them are added; or None
    drive: Tensor | None  # shaped like the output
    decay: Any  # a tensor; a number is made one where there are kernels
    batch_sizes: Tensor | None

    def for_backward(self, output: Tensor, saved: Tensor) -> ProjectedBackwardTensors:
        """The tensors of the backward operator, without incoming gradients."""
        return ProjectedBackwardTensors(
            None, None, output, saved, self.input, self.h0, self.weight_ih, self.weight_hh, self.decay,
            self.batch_sizes,
        )  # fmt: skip


class BackwardTensors(NamedTuple):
    """The tensors of ``leaky_recurrence_backward``."""

    grad_output: Tensor | None  # shaped like output
    grad_h_n: Tensor | None  # [B, H]
    output: Tensor  # of the forward operator
    saved: Tensor  # of the forward operator
    h0: Tensor | None
    weight_hh: Tensor
    decay: Tensor
    batch_sizes: Tensor | None


class ProjectedBackwardTensors(NamedTuple):
    """The tensors of ``projected_recurrence_backward``."""

    grad_output: Tensor | None
    grad_h_n: Tensor | None
    output: Tensor
    saved: Tensor
    input: Tensor
    h0: Tensor | None
    weight_ih: Tensor
    weight_hh: Tensor
    decay: Tensor
    batch_sizes: Tensor | None

    def of_recurrence(self) -> BackwardTensors:
        """The tensors of the recurrence alone."""
        return BackwardTensors(
            self.grad_output, self.grad_h_n, self.output, self.saved, self.h0, self.weight_hh, self.decay,
            self.batch_sizes,
        )  # fmt: skip


class LinearTensors(NamedTuple):
    """The tensors of ``linear_recurrence``."""

    drive: Tensor  # r, a sequence
    h0: Tensor | None
    weight_hh: Tensor
    decay: Tensor
    alpha: Tensor | None  # sequences shaped like drive; None for ones
    beta: Tensor | None
    batch_sizes: Tensor | None


# What each tensor is to vmap: a sequence of rows, one row for each batch element, a parameter of the network,
# the decay, what forward saved, or shared by all examples.
ROLES = {
    "pre": "sequence", "input": "sequence", "drive": "sequence", "output": "sequence",
    "grad_output": "sequence", "alpha": "sequence", "beta": "sequence",
    "h0": "state", "grad_h_n": "state",
    "weight_ih": "parameter", "weight_hh": "parameter", "bias": "parameter",
    "decay": "decay", "saved": "saved", "batch_sizes": "shared",
}  # fmt: skip

# The tensors whose gradients the backward operators return, in the order of their argument `wanted`.
GRADIENTS = ("pre", "h0", "weight_hh", "decay")
PROJECTED_GRADIENTS = ("input", "h0", "weight_ih", "weight_hh", "bias", "drive", "decay")

# The values of `save`: what a forward operator saves for its backward operator. The last one differs in half
# precision only, where an accurate gradient of the decay needs more than the output.
SAVE_NOTHING, SAVE_FOR_BACKWARD, SAVE_FOR_DECAY = range(3)

AnyTensors = TypeVar("AnyTensors", bound=tuple[Any, ...])


def split_arguments(kind: type[AnyTensors], arguments: Any) -> tuple[AnyTensors, RecurrenceSpec, Any]:
    """An operator's flat arguments as its tensors, its spec and its last argument."""
    count = len(kind._fields)  # type: ignore[attr-defined]
    return kind(*arguments[:count]), RecurrenceSpec(*arguments[count:-1]), arguments[-1]
