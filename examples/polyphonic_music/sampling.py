"""A piece that a trained network makes up by itself, frame by frame."""

from __future__ import annotations

import numpy as np
import torch

from polyphonic_music.model import Predictor
from polyphonic_music.rolls import Roll


@torch.no_grad()
def sample_piece(model: Predictor, beginning: Roll, steps: int, generator: torch.Generator) -> Roll:
    """A roll ``[steps, 88]`` that begins with these frames, each of the others drawn given all before it.

    Args:
        model: In eval mode.
        beginning: ``[T, 88]``, one frame at least.
        steps: How long the piece is, ``T`` at least.
        generator: Of the draws.

    Returns:
        0 and 1 as uint8.
    """
    if not 1 <= len(beginning) <= steps:
        raise ValueError(f"beginning must have 1 to {steps} steps, got {len(beginning)}")
    heard = torch.from_numpy(beginning).float()
    states, h = model.rnn(heard)
    frames = [heard]
    state = states[-1:]
    for _ in range(steps - len(beginning)):
        frame = model.output.sample(state, generator=generator)
        frames.append(frame)
        state, h = model.rnn(frame, h)
    return torch.cat(frames).numpy().astype(np.uint8)
