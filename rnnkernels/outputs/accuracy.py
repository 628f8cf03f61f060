"""How well marginals predict frames: the frame-level accuracy of polyphonic music.

accuracy = TP / (TP + FP + FN),   E TP = sum v m,   E FP = sum (1-v) m,   E FN = sum v (1-m)
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnkernels._checks import check_tensor
from rnnkernels.outputs._base import check_binary, wide

__all__ = ["expected_accuracy"]


def expected_accuracy(v: Tensor, marginals: Tensor) -> Tensor:
    r"""The frame-level accuracy with the counts that are expected of draws.

    .. math::
        \text{accuracy} = \frac{TP}{TP + FP + FN} = \frac{\sum v m}{\sum v + \sum m - \sum v m}

    with each sum over all units of all frames, and ``m`` the probability that a unit is on: a ratio of
    what the counts of draws from the model would be on average. Silence that was predicted counts for
    nothing. The measure is that of Bay, Ehmann and Downie 2009.

    It is no mean over frames: give it all frames of a set at once.

    Args:
        v: ``[..., D]``, bool or zeros and ones of any dtype.
        marginals: ``m``, ``[..., D]``, as :meth:`marginals` of a model returns them.

    Returns:
        A scalar, from 0 to 1; NaN where nothing is on and nothing is expected.

    Raises:
        ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
    """
    check_tensor("marginals", marginals)
    if not marginals.is_floating_point():
        raise ValueError(f"marginals must have a floating-point dtype, got {marginals.dtype}")
    check_binary("v", v, tuple(marginals.shape), marginals.device)
    m = wide(marginals)
    rows = v.detach().to(m.dtype)
    hits = torch.sum(rows * m)
    return hits / (rows.sum() + m.sum() - hits)
