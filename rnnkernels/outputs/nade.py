"""NADE: the probability of each unit given the units before it (Larochelle and Murray 2011).

p(v_i = 1 | v_<i) = sigmoid(b_i + V_i . h_i)      h_i = sigmoid(c + sum_{j<i} v_j W_j)
b = visible_bias(state),   c = hidden_bias(state)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rnnkernels._checks import check_generator, checked_size
from rnnkernels.outputs import _nade_autograd
from rnnkernels.outputs._base import ConditionalModel, split_samples, wide

__all__ = ["NADE"]


class NADE(ConditionalModel):
    r"""The neural autoregressive distribution estimator, with biases from the state.

    .. math::
        p(v \mid s) &= \prod_{i=1}^{D} p(v_i \mid v_{<i}, s) \\
        p(v_i = 1 \mid v_{<i}, s) &= \sigma(b_i + V_i \cdot h_i) \qquad
        h_i = \sigma\Big(c + \sum_{j<i} v_j W_j\Big)

    ``b`` is :attr:`visible_bias` and ``c`` is :attr:`hidden_bias`, both linear in the state ``s``. The units
    are ordered as in the frame. Probabilities and samples are exact, and the gradient needs no sampling.

    The weights are ``encoder`` (``W``, ``[D, H]``) and ``decoder`` (``V``, ``[D, H]``). As in Magenta's
    RNN-NADE (magenta/common/nade.py), they are initialized from a normal distribution with standard deviation
    ``1 / sqrt(D)``, truncated at two standard deviations.

    Example, with the output of a layer as the state::

        nade = NADE(num_visible=88, num_hidden=150, condition_size=200)
        loss = nade.loss(frames, output).mean()  # frames [T, B, 88], output [T, B, 200]

    Args:
        num_visible: ``D``, units of a frame.
        num_hidden: ``H``, hidden units.
        condition_size: ``C``, size of the state.
        device, dtype: Device and dtype of the parameters; the state must have the same.

    Raises:
        ValueError, TypeError: An argument has the wrong type or is out of range; the message names it.

    Source: Larochelle and Murray 2011, "The neural autoregressive distribution estimator"; on a recurrent
    network, Boulanger-Lewandowski, Bengio and Vincent 2012.
    """

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        condition_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_visible, num_hidden, condition_size, device, dtype)
        shape = (self.num_visible, self.num_hidden)
        self.encoder = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.decoder = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self._reset_weights()

    def log_prob(self, v: Tensor, state: Tensor) -> Tensor:
        """Return the exact logarithm of the probability of each frame.

        Args:
            v: Frames, ``[..., D]``, zeros and ones, bool, integers or floats. No gradient flows to them.
            state: ``[..., C]``, of the parameters' dtype.

        Returns:
            ``[...]``, float64 for float64 states, otherwise float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check(v, state)
        return _nade_autograd.log_prob(v, *self._biases(state), self.encoder, self.decoder)

    @torch.no_grad()
    def sample(self, state: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw a frame for each row of the state: ``[..., D]``, zeros and ones in the dtype of the state.

        Raises RuntimeError if the probabilities are NaN, on CUDA as a device-side assertion.
        """
        self._check_state(state)
        check_generator(generator, state.device)
        return self._draw(*self._biases(state), generator)[0].to(state.dtype)

    @torch.no_grad()
    def marginals(
        self, state: Tensor, *, samples: int = 100, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return an estimate of ``p(v_i = 1)``: the mean of ``p(v_i = 1 | v_<i)`` over drawn frames.

        Its error is at most that of the mean of the frames themselves (Rao-Blackwell), and zero for the first
        unit.

        Args:
            state: ``[..., C]``, of the parameters' dtype.
            samples: Frames drawn per row.
            generator: Random generator, on the device of the state.

        Returns:
            ``[..., D]``, float64 for float64 states, otherwise float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check_state(state)
        samples = checked_size("samples", samples)
        check_generator(generator, state.device)
        b, c = self._biases(state)
        total = torch.zeros_like(wide(b))
        for n in split_samples(samples, state, self.num_visible + self.num_hidden):
            _, logits = self._draw(b.expand(n, *b.shape), c.expand(n, *c.shape), generator)
            total += torch.sigmoid(logits).sum(0)
        return total / samples

    def _reset_weights(self) -> None:
        std = 1 / math.sqrt(self.num_visible)
        for weight in (self.encoder, self.decoder):
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    def _draw(self, b: Tensor, c: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return _nade_autograd.sample(generator, b, c, self.encoder, self.decoder)
