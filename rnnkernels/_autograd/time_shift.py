"""The order of rows in time: shifts by one step, and products and sums over all rows, for padded batches and
packed sequences.

Sequences are ``[T, B, H]``, or ``[sum(batch_sizes), H]`` with ``batch_sizes``; states are ``[B, H]``; all may
have a leading ``G`` for G networks. All methods are made of differentiable torch operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnnkernels._autograd.vmap import at_least_1d


class TimeShift:
    """The order of the steps of sequences shaped like ``like``; ``batch_sizes`` requires an ``h0``.

    "Previous" and "next", "first" and "last" refer to the order in which the time loop takes the steps: with
    ``reverse`` it starts at step ``T-1``.
    """

    def __init__(self, like: Tensor, h0: Tensor | None, batch_sizes: Tensor | None, reverse: bool) -> None:
        # All indices come from one copy, because another thread may change the caller's tensor.
        self.batch_sizes = None if batch_sizes is None else batch_sizes.clone()
        self.reverse = reverse
        if batch_sizes is None:
            self.count, self.batch = like.shape[-3], like.shape[-2]
            self.row_count = self.count * self.batch
        else:
            assert h0 is not None
            self.count, self.batch, self.row_count = len(batch_sizes), h0.shape[-2], like.shape[-2]

    def reversed(self) -> TimeShift:
        """The same steps in the opposite order."""
        other = object.__new__(TimeShift)
        other.__dict__.update(self.__dict__, reverse=not self.reverse)
        return other

    def zero_state(self, like: Tensor) -> Tensor:
        """Zeros ``[B, H]`` (or ``[G, B, H]``) for a sequence like this one."""
        lead = like.shape[: -2 if self.batch_sizes is not None else -3]
        return like.new_zeros(*lead, self.batch, like.shape[-1])

    def previous(self, x: Tensor, start: Tensor | None) -> Tensor:
        """For every row of ``x`` the row of the previous step; ``start`` (None: zeros) if it has none."""
        if start is None:
            start = self.zero_state(x)
        if self.batch_sizes is not None:
            return torch.cat([start, x], -2).index_select(-2, self._previous_index().to(x.device))
        if self.count == 0:
            return x
        if self.reverse:
            return torch.cat([x.narrow(-3, 1, self.count - 1), start.unsqueeze(-3)], -3)
        return torch.cat([start.unsqueeze(-3), x.narrow(-3, 0, self.count - 1)], -3)

    def next(self, x: Tensor | None) -> Tensor | None:
        """For every row the row of the next step, zero where there is none; None stays None."""
        return None if x is None else self.reversed().previous(x, None)

    def last(self, x: Tensor) -> Tensor:
        """The row of each batch element's last step, ``[B, H]``."""
        if self.batch_sizes is not None:
            return x.index_select(-2, self._last_index().to(x.device))
        return x.select(-3, 0 if self.reverse else self.count - 1)

    def first(self, x: Tensor) -> Tensor:
        """The row of each batch element's first step, ``[B, H]``."""
        return self.reversed().last(x)

    def add_to_last(self, x: Tensor, state: Tensor) -> Tensor:
        """``x`` with ``state`` added to the rows that :meth:`last` returns."""
        if self.batch_sizes is not None:
            return x.index_add(-2, self._last_index().to(x.device), state)
        last = 0 if self.reverse else self.count - 1
        return torch.select_scatter(x, x.select(-3, last) + state, -3, last)

    def rows(self, x: Tensor) -> Tensor:
        """All rows in one dimension: ``[rows, H]``, or ``[G, rows, H]``."""
        return x if self.batch_sizes is not None else x.reshape(*x.shape[:-3], self.row_count, x.shape[-1])

    def matmul(self, x: Tensor, matrix: Tensor) -> Tensor:
        """``x_t matrix`` for every row."""
        return (self.rows(x) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])

    def outer(self, u: Tensor, x: Tensor) -> Tensor:
        """The sum of ``u_t^T x_t`` over all rows."""
        return self.rows(u).mT @ self.rows(x)

    def per_unit(self, value: Tensor, like: Tensor) -> Tensor:
        """``value``, a scalar, ``[H]`` or ``[G, H]``, reshaped so that it broadcasts over ``like``."""
        value = at_least_1d(value).to(like.dtype)
        if value.dim() == 1:
            return value
        return value.reshape(value.shape[0], *(1,) * (like.dim() - 2), value.shape[1])

    def sum_per_unit(self, x: Tensor, value: Tensor) -> Tensor:
        """The transpose of :meth:`per_unit`: ``x`` summed to the shape of ``value``."""
        wide = torch.promote_types(x.dtype, value.dtype)
        return self.rows(x).sum(-2, dtype=wide).sum_to_size(value.shape).to(value.dtype)

    def _step_of_each_row(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Batch sizes and first rows of the steps; and for every row its step and its place in that step."""
        assert self.batch_sizes is not None
        sizes = self.batch_sizes
        offsets = sizes.cumsum(0) - sizes
        step = torch.repeat_interleave(_indices(self.count), sizes, output_size=self.row_count)
        return sizes, offsets, step, _indices(self.row_count) - offsets[step]

    def _previous_index(self) -> Tensor:
        """For every row the index of its previous row in ``[start, x]``."""
        sizes, offsets, step, place = self._step_of_each_row()
        previous = step + 1 if self.reverse else step - 1
        exists = (previous >= 0) & (previous < self.count)
        previous = previous.clamp(0, self.count - 1)
        exists &= place < sizes[previous]
        return torch.where(exists, self.batch + offsets[previous] + place, place)

    def _last_index(self) -> Tensor:
        sizes, offsets, _, _ = self._step_of_each_row()
        element = _indices(self.batch)
        if self.reverse:
            return element
        lengths = (sizes.unsqueeze(1) > element).sum(0)
        return offsets[lengths - 1] + element


def _indices(count: int) -> Tensor:
    """0, 1, 2, ..., on the CPU, where batch_sizes are."""
    return torch.arange(count, device="cpu")
