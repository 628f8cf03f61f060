"""The frame-level accuracy of polyphonic music, from marginal probabilities.

accuracy = TP / (TP + FP + FN),   E TP = sum v m,   E FP = sum (1-v) m,   E FN = sum v (1-m)
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnkernels._checks import check_floating, check_tensor
from rnnkernels.outputs._base import check_binary, wide

__all__ = ["expected_accuracy"]


def expected_accuracy(v: Tensor, marginals: Tensor) -> Tensor:
    r"""Return the frame-level accuracy, with expected counts of true and false positives.

    .. math::
        \text{accuracy} = \frac{TP}{TP + FP + FN} = \frac{\sum v m}{\sum v + \sum m - \sum v m}

    Each sum goes over all units of all frames, and ``m`` is the probability that a unit is on. The counts
    are the averages over frames drawn from the model. Units that are correctly predicted to be off do not
    count. The accuracy is a ratio of sums and not a mean over frames, so pass all frames of a set at once.

        accuracy = expected_accuracy(frames, nade.marginals(states))

    Args:
        v: Frames, ``[..., D]``, zeros and ones, bool, integers or floats.
        marginals: ``m``, ``[..., D]``, floating-point: the result of a model's ``marginals``.

    Returns:
        A scalar from 0 to 1, float64 for float64 marginals, otherwise float32; NaN if both sums are 0.

    Raises:
        ValueError, TypeError: An argument has the wrong shape, dtype, device or value.

    Source: Bay, Ehmann and Downie 2009, "Evaluation of multiple-F0 estimation and tracking systems".
    """
    check_tensor("marginals", marginals)
    check_floating("marginals", marginals)
    check_binary("v", v, tuple(marginals.shape), marginals.device)
    m = wide(marginals)
    rows = v.detach().to(m.dtype)
    hits = torch.sum(rows * m)
    return hits / (rows.sum() + m.sum() - hits)
