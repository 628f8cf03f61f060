"""The recurrence in operators that every exporter supports: torch's scan over the steps, for programs that
leave torch (for example as ONNX), where the package's own operators are unknown.

    h_t = d h_{t-1} + (1-d) y_t,   y_t = f(p_t + W h_{t-1})  or  p_t + W f(h_{t-1})
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnkernels import _ops
from rnnkernels._ops.composite import step
from rnnkernels._ops.spec import ProjectedTensors, RecurrenceTensors, split_arguments

__all__ = ["decompositions"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Decompositions of the package's operators, for ``ExportedProgram.run_decompositions``.

    The decomposed program runs wherever torch's ``scan`` runs. ONNX represents it as ``Scan``, so an exported
    model takes any number of steps and rows:

        batch = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
        program = torch.export.export(model.eval(), (x,), dynamic_shapes=(batch,))
        program = program.run_decompositions(rnnkernels.decompositions())
        torch.onnx.export(program, f="model.onnx", dynamo=True)  # pip install 'rnnkernels[onnx]'

    The decomposed program is for inference: it saves nothing for a backward pass.

    Returns:
        A dictionary from operator to decomposition, for the package's operators only. To decompose other
        operators as well, update their dictionary with this one.

    Raises:
        NotImplementedError: ``run_decompositions`` raises it for a program with packed sequences, whose
            number of rows changes from step to step.
    """
    return {
        _ops.leaky_recurrence.default: _leaky_recurrence,
        _ops.projected_recurrence.default: _projected_recurrence,
    }


def _leaky_recurrence(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from torch._higher_order_ops.scan import scan_op  # imported here because it is slow to import

    (pre, h0, weight_hh, decay, batch_sizes), spec, _ = split_arguments(RecurrenceTensors, arguments)
    if batch_sizes is not None:
        raise NotImplementedError("decompositions of a PackedSequence are not available: pad it")

    def scanned(h: Tensor, p: Tensor, weight: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        h = step(h, p, weight, d, spec)
        return h, h.clone()  # the state and the output of the step; scan requires two different tensors

    # Half precision is a storage format, as in the kernels.
    wide = torch.promote_types(pre.dtype, torch.float32)
    start = pre.new_zeros(pre.shape[1], pre.shape[2]) if h0 is None else h0
    sequence = pre.flip(0) if spec.reverse else pre
    others = (weight_hh.to(wide), decay.to(wide))
    h_n, output = scan_op(scanned, [start.to(wide)], [sequence.to(wide)], others)
    output = output.flip(0) if spec.reverse else output
    return output.to(pre.dtype), h_n.to(pre.dtype), pre.new_zeros(0)


def _projected_recurrence(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, spec, save = split_arguments(ProjectedTensors, arguments)
    pre = torch.nn.functional.linear(x.input, x.weight_ih, x.bias)
    if x.drive is not None:
        pre = pre + x.drive
    tensors = RecurrenceTensors(pre, x.h0, x.weight_hh, x.decay, x.batch_sizes)
    return _leaky_recurrence(*tensors, *spec, save)
