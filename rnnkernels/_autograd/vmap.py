"""``torch.vmap`` over the recurrence: one kernel call for all examples.

If all examples share the weights, the examples become additional batch rows. Otherwise, and for packed
sequences, the kernels run G networks in one call, and each example is a network (or G of them, if the call
that vmap batches was already a call of G networks).
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from rnnkernels._ops.spec import ROLES


def saves_nothing(saved: Tensor) -> bool:
    """Whether forward saved nothing. A sequence without steps or rows is empty, but has more dimensions."""
    return saved.dim() == 1


def at_least_1d(x: Tensor) -> Tensor:
    """``x``, a scalar as ``[1]``: vmap over no examples cannot combine a scalar with a number or a tensor."""
    return x.unsqueeze(0) if x.dim() == 0 else x


class MergedExamples:
    """The arguments of one call for ``count`` examples, merged as rows or as networks, and its results split.

    Args:
        count: Number of examples.
        tensors: A tuple of tensors from ``rnnkernels._ops.spec``.
        dims: For each of them the dimension of the examples, or None.
        separate_gradients: Each example gets its own gradient of parameters, even of shared ones.
    """

    def __init__(
        self, count: int, tensors: Any, dims: tuple[int | None, ...], *, separate_gradients: bool = False
    ) -> None:
        self.count, self.tensors = count, tensors
        self.dims = dict(zip(tensors._fields, dims, strict=True))
        if self.dims["batch_sizes"] is not None:
            raise ValueError("batch_sizes must be the same for all examples of vmap, got one for each")
        weight_shape = self._shape("weight_hh")
        self.grouped = len(weight_shape) == 3
        parameters = (name for name in self.dims if ROLES[name] in ("parameter", "decay"))
        shared = all(self.dims[name] is None for name in parameters)
        self.as_rows = shared and not separate_gradients and not self.grouped and tensors.batch_sizes is None
        # How many rows or networks one example has. The merged size does not say it if there are no examples.
        if self.as_rows:
            sequence = next(name for name in self.dims if ROLES[name] == "sequence" and self._has(name))
            self.size = self._shape(sequence)[-2]
        else:
            self.size = weight_shape[0] if self.grouped else 1
            d, dim = tensors.decay, self.dims["decay"]
            # [count, ...], whatever the shape of one example's decay is.
            d = d.expand(count, *d.shape) if dim is None else d.movedim(dim, 0)
            self.decay_shape = d.shape

    def batched(self) -> Any:
        """The tensors of the call for all examples, as a tuple of the same type."""
        return type(self.tensors)(*map(self._batch, self.tensors._fields))

    def _has(self, name: str) -> bool:
        return getattr(self.tensors, name) is not None

    def _shape(self, name: str) -> list[int]:
        """The shape of one example's tensor."""
        dim = self.dims[name]
        return [n for i, n in enumerate(getattr(self.tensors, name).shape) if i != dim]

    def _batch(self, name: str) -> Any:
        x, dim = getattr(self.tensors, name), self.dims[name]
        role = ROLES[name]
        if x is None or role == "shared":
            return x
        if role == "saved":
            return x.contiguous() if saves_nothing(x) else self._sequence(x, dim).contiguous()
        if role == "sequence":
            return self._sequence(x, dim)
        if role == "state":
            return self._merge_rows(x, dim, 0) if self.as_rows else self._merge_networks(x, dim)
        if self.as_rows:
            return x
        return self._decay() if role == "decay" else self._merge_networks(x, dim)

    def _sequence(self, x: Tensor, dim: int | None) -> Tensor:
        return self._merge_rows(x, dim, 1) if self.as_rows else self._merge_networks(x, dim)

    def _merge_rows(self, x: Tensor, dim: int | None, rows_dim: int) -> Tensor:
        """The examples side by side in the batch dimension."""
        x = x.unsqueeze(0).expand(self.count, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.movedim(0, rows_dim).flatten(rows_dim, rows_dim + 1)

    def _merge_networks(self, x: Tensor, dim: int | None) -> Tensor:
        """The examples as networks."""
        x = x.expand(self.count, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.flatten(0, 1) if self.grouped else x

    def _decay(self) -> Tensor:
        """``[G, H]`` for all networks of all examples."""
        d: Tensor = self.tensors.decay
        dim = self.dims["decay"]
        d = d.expand(self.decay_shape) if dim is None else d.movedim(dim, 0)
        hidden = self._shape("weight_hh")[-1]
        if not self.grouped:
            return d.reshape(self.count, prod(d.shape[1:])).expand(self.count, hidden)
        if d.dim() < 3:
            d = d.reshape(self.count, 1, prod(d.shape[1:]))
        return d.expand(self.count, self.size, hidden).flatten(0, 1)

    def split(self, name: str, x: Tensor) -> tuple[Tensor, int | None]:
        """The examples of a result that has the role of the tensor ``name``, and their dimension."""
        role = ROLES[name]
        if role == "saved" and saves_nothing(x):
            return x, None
        if role == "decay":
            return self._split_decay(x), 0
        if self.as_rows and role in ("sequence", "saved"):
            return self._unflatten(x, 1), 1
        if self.as_rows and role == "state":
            return self._unflatten(x, 0), 0
        return self._split_networks(x), 0

    def split_outputs(self, output: Tensor, h_n: Tensor, saved: Tensor) -> Any:
        """The examples of all results of a forward operator, and their dimensions."""
        results = (self.split("output", output), self.split("h0", h_n), self.split("saved", saved))
        return tuple(zip(*results, strict=True))

    def split_gradients(self, names: tuple[str, ...], gradients: Any, wanted: Any) -> Any:
        """The examples of the gradients of these tensors, and their dimensions; the others are empty."""
        results = (
            self.split(name, x) if want else (x, None)
            for name, x, want in zip(names, gradients, wanted, strict=True)
        )
        return tuple(zip(*results, strict=True))

    def _split_networks(self, x: Tensor) -> Tensor:
        return self._unflatten(x, 0) if self.grouped else x

    def _unflatten(self, x: Tensor, dim: int) -> Tensor:
        return x.reshape(*x.shape[:dim], self.count, self.size, *x.shape[dim + 1 :])

    def _split_decay(self, x: Tensor) -> Tensor:
        """The gradient of each example's decay, in the shape of that decay."""
        split = self._split_networks(x)
        extra = split.dim() - len(self.decay_shape)
        shape = (self.count, *(1,) * extra, *self.decay_shape[1:])
        return split.sum_to_size(shape).reshape(self.decay_shape)
