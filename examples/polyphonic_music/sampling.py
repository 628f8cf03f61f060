"""Sampling a piece from a trained network, frame by frame."""

from __future__ import annotations

import numpy as np
import torch

from polyphonic_music.model import Predictor
from polyphonic_music.rolls import Roll


@torch.no_grad()
def sample_piece(model: Predictor, beginning: Roll, steps: int, generator: torch.Generator) -> Roll:
    """Return a roll ``[steps, 88]`` that begins with the given frames; draw the others given the past.

    ``beginning`` is ``[T, 88]``, ``1 <= T <= steps``; the model must be in eval mode. The roll is uint8.
    """
    if not 1 <= len(beginning) <= steps:
        raise ValueError(f"beginning must have 1 to {steps} steps, got {len(beginning)}")
    inputs = torch.from_numpy(beginning).float()
    states, h = model.rnn(inputs)
    frames = [inputs]
    state = states[-1:]
    for _ in range(steps - len(beginning)):
        frame = model.output.sample(state, generator=generator)
        frames.append(frame)
        state, h = model.rnn(frame, h)
    return torch.cat(frames).numpy().astype(np.uint8)
