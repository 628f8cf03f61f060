"""The global norm, the clip coefficient, and the decision whether a step is taken.

    norm     = (sum over all gradients |g|^p)^(1/p), or max |g| for p = inf, divided by the loss scale
    c        = min(1, max_norm / (norm + 1e-6))
    overflow = found_inf of the loss scaler is not 0
    skips    = overflow, or the norm is infinite or NaN and nonfinite is not "apply"
    raises   = skips and not overflow and nonfinite is "raise"

The kernels follow the same rules (csrc/core/optimizer.h). The functions here serve devices without kernels
and norms that span several processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NONFINITE = ("skip", "raise", "apply")

# Fields of the record, a float64 tensor that is kept over all steps: the norm of the last step, the numbers
# of skipped and of taken steps, and whether the last step must raise (0 or 1).
NORM, SKIPPED, TAKEN, RAISES = range(4)
RECORD_FIELDS = 4


def check_nonfinite(nonfinite: object) -> None:
    """Raise ValueError unless ``nonfinite`` is one of the modes."""
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be 'skip', 'raise' or 'apply', got {nonfinite!r}")


def decide(record: Tensor, norm: float, overflow: bool, nonfinite: str) -> bool:
    """Return whether a step is taken, and write the record.

    Args:
        record: ``[4]``, float64; overwritten.
        norm: The norm over all gradients, divided by the loss scale.
        overflow: Whether the loss scaler found a gradient that is not finite.
        nonfinite: ``"skip"``, ``"raise"`` or ``"apply"``.
    """
    skips = overflow or (not math.isfinite(norm) and nonfinite != "apply")
    raises = skips and not overflow and nonfinite == "raise"
    after: list[float] = record.tolist()
    after[NORM] = norm
    after[SKIPPED] += skips and not raises
    after[TAKEN] += not skips
    after[RAISES] = raises
    record.copy_(torch.tensor(after, dtype=record.dtype, device=record.device))
    return not skips


def first_nonfinite(grads: list[Tensor | None]) -> int | None:
    """Return the index of the first infinite or NaN gradient."""
    found = (i for i, grad in enumerate(grads) if grad is not None and not bool(torch.isfinite(grad).all()))
    return next(found, None)


def clip_coefficient(norm: float, max_norm: float) -> float:
    """Return ``min(1, max_norm / (norm + 1e-6))``: NaN if the norm is NaN, 1 if ``max_norm`` is infinite."""
    coefficient = 1.0 if max_norm == math.inf else max_norm / (norm + 1e-6)
    return 1.0 if coefficient >= 1 else coefficient


def norm_over(norm_in_units: Callable[[float, float], Tensor], p: float) -> Tensor:
    """Return ``(sum |g|^p)^(1/p)``, or ``max |g|`` for ``p = inf``, where powers may overflow or underflow.

    Where they do, they are summed again in units of the largest gradient.

    Args:
        norm_in_units: Called as ``norm_in_units(p, unit)``; returns the scalar ``(sum |g / unit|^p)^(1/p)``.
        p: Positive, or inf.
    """
    norm = norm_in_units(p, 1.0)
    least = math.log2(torch.finfo(norm.dtype).tiny) + 62
    if p == math.inf or (0 < float(norm) < math.inf and p * math.log2(float(norm)) > least):
        return norm
    largest = norm_in_units(math.inf, 1.0)
    if not 0 < float(largest) < math.inf:
        return largest
    return largest * norm_in_units(p, float(largest))
