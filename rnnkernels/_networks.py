"""``torch.vmap`` over the recurrence: the examples become batch rows, or networks of one call.

Where all examples share the weights, they are rows of a larger batch. Where they do not, the kernels
run G networks at once, and an example is a network (or G of them, if it was a call of G networks).
"""

from __future__ import annotations

from torch import Tensor


class Networks:
    """One call for ``count`` examples; ``dim`` is where an argument has its examples, or None."""

    def __init__(
        self, count: int, weight: Tensor, weight_dim: int | None, decay: Tensor, decay_dim: int | None,
        batch_sizes: Tensor | None, batch_sizes_dim: int | None, *, share_weights: bool = True,
    ) -> None:  # fmt: skip
        if batch_sizes_dim is not None:
            raise ValueError("batch_sizes must be the same for all examples of vmap, got one for each")
        self.count = count
        self.grouped = weight.dim() - (weight_dim is not None) == 3
        same = weight_dim is None and decay_dim is None
        self.as_rows = same and share_weights and not self.grouped and batch_sizes is None
        if self.as_rows:
            self.weight, self.decay = weight, decay
            return
        self.weight = self._in_front(weight, weight_dim)
        # [count, H], or [count, G, H], whatever it is made of.
        decay = decay.expand(count, *decay.shape) if decay_dim is None else decay.movedim(decay_dim, 0)
        self.decay_shape = decay.shape
        hidden = self.weight.shape[-1]
        if self.grouped:
            if decay.dim() < 3:
                decay = decay.reshape(count, 1, -1)
            self.decay = decay.expand(count, self.weight.shape[0] // count, hidden).flatten(0, 1)
        else:
            self.decay = decay.reshape(count, -1).expand(count, hidden)

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

    def split_weight(self, x: Tensor) -> tuple[Tensor, int]:
        """The examples of the gradient of ``weight_hh``, and their dimension."""
        return self._split(x)

    def split_decay(self, x: Tensor) -> tuple[Tensor, int]:
        """The examples of the gradient of ``decay``, in the shape that each example's decay had."""
        split, _ = self._split(x)
        extra = split.dim() - len(self.decay_shape)
        shape = (self.count, *(1,) * extra, *self.decay_shape[1:])
        return split.sum_to_size(shape).reshape(self.decay_shape), 0
