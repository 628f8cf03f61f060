"""A leaky recurrent network that predicts the next frame with one of the output models.

h_t = d h_{t-1} + (1-d) f(W_ih v_t + W_hh h_{t-1} + b)        v_{t+1} ~ p(v | h_t)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from polyphonic_music.recipes import Settings
from polyphonic_music.rolls import KEYS
from rnnkernels import NADE, RBM, IndependentBernoulli, LeakyRNN, draw_decay


class Predictor(nn.Module):
    """``forward`` maps packed frames to packed states; ``output`` maps states to probabilities."""

    output: IndependentBernoulli | NADE | RBM

    def __init__(self, model: str, settings: Settings, frequency: NDArray[np.float64]) -> None:
        super().__init__()
        hidden = settings.hidden
        slowest = settings.slowest
        decay = 0.0 if slowest is None else draw_decay(hidden, low=slowest, high=1.0, log_uniform=True)
        self.rnn = LeakyRNN(KEYS, hidden, nonlinearity=settings.nonlinearity, decay=decay)
        self.dropout = settings.dropout
        if model == "RNN":
            self.output = IndependentBernoulli(KEYS, hidden)
        elif model == "RNN-NADE":
            self.output = NADE(KEYS, settings.output_hidden, hidden)
        else:
            self.output = RBM(KEYS, settings.output_hidden, hidden, settings.gibbs_steps)
        with torch.no_grad():
            self.output.visible_bias.bias.copy_(torch.logit(torch.from_numpy(frequency).float()))
            # The eigenvalues of a matrix of independent entries of variance 1 / H fill the unit circle.
            nn.init.normal_(self.rnn.weight_hh_l0, std=settings.radius / hidden**0.5)  # type: ignore[arg-type]

    def forward(self, inputs: PackedSequence, drive: Tensor | None = None) -> PackedSequence:
        """Return states, packed like the frames. ``drive``, packed likewise, is added to the units' input."""
        kept = inputs._replace(data=self._dropped(inputs.data))
        states: PackedSequence
        states, _ = self.rnn(kept) if drive is None else self.rnn(kept, drive=inputs._replace(data=drive))
        return states._replace(data=self._dropped(states.data))

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.training and self.dropout else x
