"""Which row comes before which: shifts along the walk, for padded batches and packed sequences alike.

Sequences are ``[T, B, H]``, or ``[sum(batch_sizes), H]`` with ``batch_sizes``; states are ``[B, H]``;
both with a leading ``G`` for G networks. All methods are made of differentiable torch operations.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Steps:
    """The steps of one walk over sequences shaped like ``like``; with ``batch_sizes`` there is an ``h0``."""

    def __init__(self, like: Tensor, h0: Tensor | None, batch_sizes: Tensor | None, reverse: bool) -> None:
        self.batch_sizes, self.reverse = batch_sizes, reverse
        if batch_sizes is None:
            self.count, self.batch = like.shape[-3], like.shape[-2]
            self.row_count = self.count * self.batch
        else:
            assert h0 is not None
            self.count, self.batch, self.row_count = len(batch_sizes), h0.shape[-2], like.shape[-2]

    def reversed(self) -> Steps:
        """The same steps, walked the other way."""
        other = object.__new__(Steps)
        other.__dict__.update(self.__dict__, reverse=not self.reverse)
        return other

    def zero_state(self, like: Tensor) -> Tensor:
        """Zeros ``[B, H]`` (or ``[G, B, H]``) for a sequence like this one."""
        lead = like.shape[: -2 if self.batch_sizes is not None else -3]
        return like.new_zeros(*lead, self.batch, like.shape[-1])

    def before(self, x: Tensor, start: Tensor | None) -> Tensor:
        """For every step the rows of ``x`` one step earlier in the walk; ``start`` (None: zeros) where
        a row has none.
        """
        if start is None:
            start = x.new_zeros(
                *x.shape[: -2 if self.batch_sizes is not None else -3], self.batch, x.shape[-1]
            )
        if self.batch_sizes is not None:
            return torch.cat([start, x], -2).index_select(-2, self._index_before().to(x.device))
        if self.count == 0:
            return x
        if self.reverse:
            return torch.cat([x.narrow(-3, 1, self.count - 1), start.unsqueeze(-3)], -3)
        return torch.cat([start.unsqueeze(-3), x.narrow(-3, 0, self.count - 1)], -3)

    def after(self, x: Tensor | None) -> Tensor | None:
        """The rows one step later in the walk, zero where there are none; None stays None."""
        return None if x is None else self.reversed().before(x, None)

    def last(self, x: Tensor) -> Tensor:
        """The rows of each batch element's last step in the walk, ``[B, H]``."""
        if self.batch_sizes is not None:
            return x.index_select(-2, self._index_last().to(x.device))
        return x.select(-3, 0 if self.reverse else self.count - 1)

    def first(self, x: Tensor) -> Tensor:
        """The rows of each batch element's first step in the walk."""
        return self.reversed().last(x)

    def add_to_last(self, x: Tensor, state: Tensor) -> Tensor:
        """``x`` with ``state`` added where :meth:`last` would take from."""
        if self.batch_sizes is not None:
            return x.index_add(-2, self._index_last().to(x.device), state)
        at = 0 if self.reverse else self.count - 1
        return torch.select_scatter(x, x.select(-3, at) + state, -3, at)

    def rows(self, x: Tensor) -> Tensor:
        """All rows in one dimension: ``[rows, H]``, or ``[G, rows, H]``."""
        return x if self.batch_sizes is not None else x.reshape(*x.shape[:-3], self.row_count, x.shape[-1])

    def times(self, x: Tensor, matrix: Tensor) -> Tensor:
        """``x_t matrix`` for every row."""
        return (self.rows(x) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])

    def outer(self, u: Tensor, x: Tensor) -> Tensor:
        """The sum of ``u_t^T x_t`` over all rows."""
        return self.rows(u).mT @ self.rows(x)

    def per_unit(self, value: Tensor, like: Tensor) -> Tensor:
        """``value``, a scalar, ``[H]`` or ``[G, H]``, so that it broadcasts over ``like``."""
        value = value.to(like.dtype)
        if value.dim() < 2:
            return value
        return value.reshape(value.shape[0], *(1,) * (like.dim() - 2), value.shape[1])

    def sum_per_unit(self, x: Tensor, value: Tensor) -> Tensor:
        """The transpose of :meth:`per_unit`: ``x`` summed over what ``value`` would be repeated over."""
        return self.rows(x).sum(-2).sum_to_size(value.shape).to(value.dtype)

    def _rows_of_steps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sizes and offsets of the steps; and of every row its step and its place there."""
        assert self.batch_sizes is not None
        sizes = self.batch_sizes
        offsets = sizes.cumsum(0) - sizes
        step = torch.repeat_interleave(torch.arange(self.count), sizes, output_size=self.row_count)
        return sizes, offsets, step, torch.arange(self.row_count) - offsets[step]

    def _index_before(self) -> Tensor:
        """Into ``[start, x]``."""
        sizes, offsets, step, place = self._rows_of_steps()
        other = step + 1 if self.reverse else step - 1
        exists = (other >= 0) & (other < self.count)
        other = other.clamp(0, self.count - 1)
        exists &= place < sizes[other]
        return torch.where(exists, self.batch + offsets[other] + place, place)

    def _index_last(self) -> Tensor:
        sizes, offsets, _, _ = self._rows_of_steps()
        element = torch.arange(self.batch)
        if self.reverse:
            return element
        lengths = (sizes.unsqueeze(1) > element).sum(0)
        return offsets[lengths - 1] + element
