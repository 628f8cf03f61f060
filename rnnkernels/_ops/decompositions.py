"""The recurrence in operators that every exporter knows: torch's scan over the steps, for programs that
leave torch (ONNX, for one), where the package's own operators mean nothing.

    h_t = d h_{t-1} + (1-d) y_t,   y_t = f(p_t + W h_{t-1})  or  p_t + W f(h_{t-1})
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._ops.composite import step

__all__ = ["decompositions"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What the package's operators are made of, for ``ExportedProgram.run_decompositions``.

    A program without the package's operators runs wherever torch's ``scan`` does; ONNX has it as ``Scan``,
    so an exported model takes any number of steps and rows:

        batch = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
        program = torch.export.export(model.eval(), (x,), dynamic_shapes=(batch,))
        program = program.run_decompositions(rnnkernels.decompositions())
        torch.onnx.export(program, f="model.onnx", dynamo=True)  # pip install 'rnnkernels[onnx]'

    For inference: the decomposed program keeps nothing for a backward pass.

    Returns:
        A table of the package's operators only; every other operator stays as it is. Update another table
        with it to decompose those, too.

    Raises:
        NotImplementedError: By ``run_decompositions``, for a program with packed sequences, whose number of
            rows changes from step to step.
    """
    return {
        _ops.leaky_recurrence.default: _leaky_recurrence,
        _ops.projected_recurrence.default: _projected_recurrence,
    }


def _leaky_recurrence(
    pre: Tensor, h0: Tensor | None, weight_hh: Tensor, decay: Tensor, batch_sizes: Tensor | None,
    nonlinearity: str, form: str, reverse: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from torch._higher_order_ops.scan import scan_op  # loaded where it is needed

    if batch_sizes is not None:
        raise NotImplementedError("decompositions of a PackedSequence are not available: pad it")

    def scanned(h: Tensor, p: Tensor, weight: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        h = step(h, p, weight, d, nonlinearity, form)
        return h, h.clone()  # the state and the output of the step: two tensors, as scan wants them

    # Half precision is storage, as in the kernels.
    wide = torch.promote_types(pre.dtype, torch.float32)
    start = pre.new_zeros(pre.shape[1], pre.shape[2]) if h0 is None else h0
    sequence = pre.flip(0) if reverse else pre
    others = (weight_hh.to(wide), decay.to(wide))
    h_n, output = scan_op(scanned, [start.to(wide)], [sequence.to(wide)], others)
    output = output.flip(0) if reverse else output
    return output.to(pre.dtype), h_n.to(pre.dtype), pre.new_zeros(0)


def _projected_recurrence(
    input: Tensor, h0: Tensor | None, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None,
    drive: Tensor | None, *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    pre = torch.nn.functional.linear(input, weight_ih, bias)
    if drive is not None:
        pre = pre + drive
    return _leaky_recurrence(pre, h0, weight_hh, *others)
