"""``torch.vmap`` over the recurrence: the examples become batch rows, or networks of one call.

Where all examples share the weights, they are rows of a larger batch. Where they do not, and in packed
sequences, the kernels run G networks at once, and an example is a network (or G of them, if it was a call
of G networks).
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor


def is_nothing(saved: Tensor) -> bool:
    """Whether forward had nothing to save. What it saves of no steps or rows is empty, but a sequence."""
    return saved.dim() == 1


class Networks:
    """One call for ``count`` examples. Arguments come with the dimension where they have their examples, or
    None; ``others`` are the dimensions of the other weights. With ``share_weights=False`` each example is to
    have gradients of its own even of weights that all of them share.
    """

    def __init__(
        self, count: int, weight: tuple[Tensor, int | None], decay: tuple[Tensor, int | None],
        batch_sizes: tuple[Tensor | None, int | None], *, others: tuple[int | None, ...] = (),
        share_weights: bool = True,
    ) -> None:  # fmt: skip
        if batch_sizes[1] is not None:
            raise ValueError("batch_sizes must be the same for all examples of vmap, got one for each")
        (weight_hh, weight_dim), (d, decay_dim) = weight, decay
        self.count = count
        self.grouped = weight_hh.dim() - (weight_dim is not None) == 3
        same = all(dim is None for dim in (weight_dim, decay_dim, *others))
        self.as_rows = same and share_weights and not self.grouped and batch_sizes[0] is None
        if self.as_rows:
            self.weight, self.decay = weight_hh, d
            return
        self.weight = self._in_front(weight_hh, weight_dim)
        # [count, H], or [count, G, H], whatever it is made of.
        d = d.expand(count, *d.shape) if decay_dim is None else d.movedim(decay_dim, 0)
        self.decay_shape = d.shape
        hidden = self.weight.shape[-1]
        if self.grouped:
            if d.dim() < 3:
                d = d.reshape(count, 1, prod(d.shape[1:]))
            self.decay = d.expand(count, self.weight.shape[0] // count, hidden).flatten(0, 1)
        else:
            self.decay = d.reshape(count, prod(d.shape[1:])).expand(count, hidden)

    def _in_front(self, x: Tensor, dim: int | None) -> Tensor:
        x = x.expand(self.count, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.flatten(0, 1) if self.grouped else x

    def _as_rows(self, x: Tensor, dim: int | None, rows_dim: int) -> Tensor:
        """The examples side by side in the batch dimension."""
        x = x.unsqueeze(0).expand(self.count, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.movedim(0, rows_dim).flatten(rows_dim, rows_dim + 1)

    def sequence(self, x: Tensor | None, dim: int | None) -> Tensor | None:
        """A sequence of all examples."""
        if x is None:
            return None
        return self._as_rows(x, dim, 1) if self.as_rows else self._in_front(x, dim)

    def state(self, x: Tensor | None, dim: int | None) -> Tensor | None:
        """A state of all examples."""
        if x is None:
            return None
        return self._as_rows(x, dim, 0) if self.as_rows else self._in_front(x, dim)

    def saved(self, x: Tensor, dim: int | None) -> Tensor:
        """What forward saved of all examples: a sequence of its own kind, or nothing."""
        kept = x if is_nothing(x) else self.sequence(x, dim)
        assert kept is not None
        return kept.contiguous()

    def parameter(self, x: Tensor | None, dim: int | None) -> Tensor | None:
        """Another weight of all examples."""
        return x if x is None or self.as_rows else self._in_front(x, dim)

    def _split(self, x: Tensor) -> tuple[Tensor, int]:
        return (self._unflatten(x, 0) if self.grouped else x), 0

    def _unflatten(self, x: Tensor, dim: int) -> Tensor:
        return x.reshape(*x.shape[:dim], self.count, x.shape[dim] // self.count, *x.shape[dim + 1 :])

    def split_sequence(self, x: Tensor) -> tuple[Tensor, int]:
        """The examples of a resulting sequence, and their dimension."""
        return (self._unflatten(x, 1), 1) if self.as_rows else self._split(x)

    def split_state(self, x: Tensor) -> tuple[Tensor, int]:
        """The examples of a resulting state, and their dimension."""
        return (self._unflatten(x, 0), 0) if self.as_rows else self._split(x)

    def split_results(self, output: Tensor, h_n: Tensor, saved: Tensor) -> Any:
        """The examples of all that a forward operator returns, and their dimensions."""
        empty: tuple[Tensor, int | None] = (saved, None)
        kept = empty if is_nothing(saved) else self.split_sequence(saved)
        return tuple(zip(self.split_sequence(output), self.split_state(h_n), kept, strict=True))

    def split_weight(self, x: Tensor) -> tuple[Tensor, int]:
        """The examples of the gradient of a weight, and their dimension."""
        return self._split(x)

    def split_decay(self, x: Tensor) -> tuple[Tensor, int]:
        """The examples of the gradient of ``decay``, in the shape that each example's decay had."""
        split, _ = self._split(x)
        extra = split.dim() - len(self.decay_shape)
        shape = (self.count, *(1,) * extra, *self.decay_shape[1:])
        return split.sum_to_size(shape).reshape(self.decay_shape), 0
