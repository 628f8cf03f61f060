"""Truncated backpropagation through time: the state is carried on, its gradient is not.

Williams and Peng 1990 (doi 10.1162/neco.1990.2.4.490), with as many steps between updates as are
differentiated through.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rnnkernels._checks import check_sizes, check_tensor

__all__ = ["truncated_bptt"]


def truncated_bptt(
    rnn: nn.Module, input: Tensor, steps: int, hx: Tensor | None = None, *, drive: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a layer over a long sequence in pieces, each of which starts where the last one ended.

    The outputs are those of one call over everything. Gradients stop at the start of a piece: its state
    is detached from the piece before. Backward and the optimizer's step belong in the loop, so that one
    piece is in memory at a time:

        pieces = rnnkernels.truncated_bptt(rnn, x, 100)
        for (output, h_n), target in zip(pieces, y.split(100)):
            optimizer.zero_grad()
            loss(output, target).backward()
            optimizer.step()

    Args:
        rnn: A :class:`rnnkernels.LeakyRNN`, or an ``nn.RNN`` (without ``drive``), in one direction.
        input: ``[T, B, I]``; ``[B, T, I]`` if the layer is ``batch_first``; ``[T, I]`` unbatched.
        steps: Steps of a piece; the last piece may be shorter.
        hx: State before the first step, as for the layer.
        drive: As for the layer, over all steps.

    Returns:
        An iterator over the pieces: of each what the layer returns.

    Raises:
        ValueError: The layer is bidirectional: its second direction has no state to carry on.
            ``steps`` is not positive, or ``drive`` has another number of steps.
        TypeError: ``input`` is no Tensor (a ``PackedSequence``), or ``steps`` no int.
    """
    check_sizes(steps=steps)
    check_tensor("input", input)
    if rnn.bidirectional:
        raise ValueError("rnn must not be bidirectional: a walk from the end has no state to carry on")
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
