"""Truncated backpropagation through time: the state is passed on between pieces, its gradient is not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rnnkernels._checks import check_tensor, checked_size

__all__ = ["truncated_bptt"]


def truncated_bptt(
    rnn: nn.Module, input: Tensor, steps: int, hx: Tensor | None = None, *, drive: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a layer over a long sequence in pieces; each piece starts with the last state of the one before.

    The outputs are those of one call over the whole sequence. Gradients stop at the start of a piece, because
    its first state is detached. Call backward and the optimizer's step inside the loop, so that only one
    piece is in memory:

        pieces = rnnkernels.truncated_bptt(rnn, x, 100)
        for (output, h_n), target in zip(pieces, y.split(100)):
            optimizer.zero_grad()
            loss(output, target).backward()
            optimizer.step()

    Args:
        rnn: A :class:`rnnkernels.LeakyRNN`, or an ``nn.RNN`` (without ``drive``), in one direction.
        input: ``[T, B, I]``; ``[B, T, I]`` if the layer is ``batch_first``; ``[T, I]`` unbatched.
        steps: Steps per piece; the last piece may be shorter.
        hx: State before the first step, as for the layer.
        drive: As for the layer, for all steps.

    Returns:
        An iterator over ``(output, h_n)``, the layer's results for each piece.

    Raises:
        ValueError: The layer is bidirectional, ``steps`` is not positive, or ``drive`` has another number of
            steps or rows than ``input``.
        TypeError: ``input`` is not a Tensor (a ``PackedSequence``, for example), or ``steps`` is not an int.

    Source: Williams and Peng 1990 (doi 10.1162/neco.1990.2.4.490), with one update per piece.
    """
    steps = checked_size("steps", steps)
    check_tensor("input", input)
    if rnn.bidirectional:
        raise ValueError(
            "rnn must not be bidirectional: the reverse direction has no state to pass on to the next piece"
        )
    time = 1 if rnn.batch_first and input.dim() == 3 else 0
    pieces = torch.split(input, steps, time)
    options: list[dict[str, Tensor]] = [{}] * len(pieces)
    if drive is not None:
        check_tensor("drive", drive)
        if drive.shape[:-1] != input.shape[:-1]:
            raise ValueError(
                f"drive must have the steps and rows of the input, {list(input.shape[:-1])}, "
                f"got {list(drive.shape[:-1])}"
            )
        options = [{"drive": piece} for piece in torch.split(drive, steps, time)]
    return _pieces(rnn, pieces, options, hx)


def _pieces(
    rnn: nn.Module, pieces: tuple[Tensor, ...], options: list[dict[str, Tensor]], hx: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    for piece, option in zip(pieces, options, strict=True):
        output, h_n = rnn(piece, hx, **option)
        yield output, h_n
        hx = h_n.detach()
