"""Binary units that are independent given the state: one logistic regression per unit.

p(v_i = 1) = sigmoid(b_i),   b = visible_bias(state)        log p(v) = sum_i v_i b_i - softplus(b_i)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rnnkernels._checks import check_generator
from rnnkernels.outputs._base import OutputModel, bernoulli, wide

__all__ = ["IndependentBernoulli"]


class IndependentBernoulli(OutputModel):
    r"""Binary units that are independent given the state.

    .. math:: p(v_i = 1 \mid s) = \sigma(b_i), \qquad b = A s + a

    This is the usual sigmoid readout with binary cross-entropy. It cannot express dependencies between units,
    such as two notes that sound together.

    Example, with the output of a layer as the state::

        model = IndependentBernoulli(num_visible=88, condition_size=200)
        loss = model.loss(frames, output).mean()  # frames [T, B, 88], output [T, B, 200]

    Args:
        num_visible: ``D``, units of a frame.
        condition_size: ``C``, size of the state.
        device, dtype: Device and dtype of the parameters; the state must have the same.

    Raises:
        ValueError, TypeError: An argument has the wrong type or is out of range; the message names it.
    """

    def __init__(
        self,
        num_visible: int,
        condition_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_visible, condition_size, device, dtype)

    def log_prob(self, v: Tensor, state: Tensor) -> Tensor:
        """Return the logarithm of the probability of each frame.

        Args:
            v: Frames, ``[..., D]``, zeros and ones, bool, integers or floats. No gradient flows to them.
            state: ``[..., C]``, of the parameters' dtype.

        Returns:
            ``[...]``, float64 for float64 states, otherwise float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check(v, state)
        logits = wide(self.visible_bias(state))
        entropy = functional.binary_cross_entropy_with_logits(
            logits, v.detach().to(logits.dtype), reduction="none"
        )
        return -entropy.sum(-1)

    @torch.no_grad()
    def sample(self, state: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw a frame for each row of the state: ``[..., D]``, zeros and ones in the dtype of the state.

        Raises RuntimeError if the probabilities are NaN, on CUDA as a device-side assertion.
        """
        self._check_state(state)
        check_generator(generator, state.device)
        return bernoulli(wide(self.visible_bias(state)), generator).to(state.dtype)

    def marginals(
        self, state: Tensor, *, samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the exact ``p(v_i = 1)``: ``[..., D]``, float64 for float64, otherwise float32.

        ``samples`` and ``generator`` are ignored; other models use them.
        """
        self._check_state(state)
        return torch.sigmoid(wide(self.visible_bias(state)))

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.num_visible}, condition_size={self.condition_size}"
