"""A categorical distribution over K classes, given the state: softmax regression.

p(v = k) = exp(b_k) / sum_j exp(b_j),   b = visible_bias(state)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rnnkernels._checks import check_generator, checked_size
from rnnkernels.outputs._base import OutputModel, check_draw, check_integers, has_readable_values, wide

__all__ = ["Categorical"]


class Categorical(OutputModel):
    r"""A categorical distribution over ``K`` classes, for one symbol per step, such as a letter.

    .. math:: p(v = k \mid s) = \frac{e^{b_k}}{\sum_j e^{b_j}}, \qquad b = A s + a

    Example, with the output of a layer as the state::

        model = Categorical(num_classes=27, condition_size=200)
        loss = model.loss(letters, output).mean()  # letters [T, B], output [T, B, 200]

    Args:
        num_classes: ``K``.
        condition_size: ``C``, size of the state.
        device, dtype: Device and dtype of the parameters; the state must have the same.

    Raises:
        ValueError, TypeError: An argument has the wrong type or is out of range; the message names it.
    """

    def __init__(
        self,
        num_classes: int,
        condition_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        num_classes = checked_size("num_classes", num_classes)
        super().__init__(num_classes, condition_size, device, dtype)
        self.num_classes = num_classes

    def log_prob(self, v: Tensor, state: Tensor) -> Tensor:
        """Return the logarithm of the probability of each row's class.

        Args:
            v: Classes, ``[...]``, of an integer dtype, from 0 to K - 1. The range is checked on the CPU only.
            state: ``[..., C]``, of the parameters' dtype.

        Returns:
            ``[...]``, float64 for float64 states, otherwise float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check_state(state)
        check_integers("v", v)
        if v.shape != state.shape[:-1]:
            raise ValueError(
                f"v must be [...] = {list(state.shape[:-1])}, as the state is, got {list(v.shape)}"
            )
        if v.device != state.device:
            raise ValueError(f"v must be on the device of the state, {state.device}, got {v.device}")
        if has_readable_values(v) and not bool(((v >= 0) & (v < self.num_classes)).all()):
            raise ValueError(f"v must lie in 0..{self.num_classes - 1}, got {int(v.min())}..{int(v.max())}")
        every = functional.log_softmax(wide(self.visible_bias(state)), -1)
        return every.gather(-1, v.long().unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def sample(self, state: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw a class for each row of the state: ``[...]``, int64.

        Raises RuntimeError if the probabilities are NaN, on CUDA as a device-side assertion.
        """
        self._check_state(state)
        check_generator(generator, state.device)
        logits = wide(self.visible_bias(state))
        check_draw(torch.softmax(logits, -1))
        # The first of K arrivals with these rates. torch.multinomial supports neither more than two
        # dimensions nor empty batches.
        waits = torch.empty_like(logits).exponential_(generator=generator)
        return (logits - waits.log()).argmax(-1)

    def marginals(
        self, state: Tensor, *, samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the exact probabilities of the classes: ``[..., K]``, float64 for float64, otherwise
        float32.

        ``samples`` and ``generator`` are ignored; other models use them.
        """
        self._check_state(state)
        return torch.softmax(wide(self.visible_bias(state)), -1)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"{self.num_classes}, condition_size={self.condition_size}"
