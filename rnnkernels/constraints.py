"""Constraints on weights, to register with ``torch.nn.utils.parametrize``.

    from torch.nn.utils.parametrize import register_parametrization

    register_parametrization(rnn, "weight_hh_l0", DaleLaw(signs))
    register_parametrization(rnn, "weight_hh_l0", no_self_connections(rnn.hidden_size))

The trained parameter is then ``rnn.parametrizations.weight_hh_l0.original``, and ``rnn.weight_hh_l0`` is the
constrained weight computed from it. Every call of the layer uses the constrained weight, and the gradient
flows through it. Several constraints apply in the order of registration; :class:`LowRank`, which trains two
factors, must be the first. ``W[i, j]`` is the connection from unit ``j`` to unit ``i``, so a column holds the
outgoing connections of one unit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rnnkernels._checks import checked_size, has_values

__all__ = ["DaleLaw", "LowRank", "Mask", "no_self_connections"]


class DaleLaw(nn.Module):
    r"""Each unit is excitatory or inhibitory: all of its outgoing connections have its sign.

    .. math:: W_{ij} = |V_{ij}| \, s_j

    where ``V`` is trained. It uses magnitudes and not a ReLU, so that a connection that crosses zero is
    not lost: it grows again. At zero, the slope of the magnitude counts as 1, so that a connection that is
    exactly zero is trained as well. To keep connections at zero, add a :class:`Mask`.

    It suits recurrent weights and the weights of an output layer. At registration the weight keeps its
    magnitudes and gets the signs. The signs are a buffer, and part of the state dict.

        signs = torch.ones(100)
        signs[80:] = -1  # 20 inhibitory units
        register_parametrization(rnn, "weight_hh_l0", DaleLaw(signs))

    Args:
        signs: ``s``, +1 or -1 for each sending unit, ``[H]``: a tensor, a NumPy array or a list. On the meta
            device they have no values to check, and must be loaded.

    Raises:
        ValueError: ``signs`` has another shape or other values.
        TypeError: ``signs`` is not a tensor, an array or a list of numbers.

    Source: Song, Yang and Wang 2016, doi 10.1371/journal.pcbi.1004792.
    """

    signs: Tensor

    def __init__(self, signs: Tensor | Any) -> None:
        super().__init__()
        values = _as_tensor("signs", signs)
        allowed = values.dim() == 1 and values.dtype != torch.bool
        if not allowed or (has_values(values) and not bool((values.abs() == 1).all())):
            raise ValueError(f"signs must be +1 or -1 for each unit, [H], got {signs}")
        self.register_buffer("signs", _placed(values.to(torch.get_default_dtype()), signs))

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``W``, ``[..., H]``, for ``V``, ``[..., H]``."""
        signs = self.signs.to(weight.dtype)
        return weight * torch.where(weight < 0, -signs, signs)  # |V| s; the gradient of abs would be 0 at 0

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the initial ``V`` for the weight at registration."""
        if weight.shape[-1] != len(self.signs):
            raise ValueError(
                f"signs must be one for each of the {weight.shape[-1]} columns of the weight, "
                f"got {len(self.signs)}"
            )
        return weight.abs()


class Mask(nn.Module):
    r"""Connections outside of a mask are zero.

    .. math:: W_{ij} = V_{ij} \;\text{where the mask is True, otherwise}\; 0

    where ``V`` is trained; its entries outside of the mask get a gradient of zero. The mask is a buffer, and
    part of the state dict.

        register_parametrization(rnn, "weight_hh_l0", Mask(torch.rand(100, 100) < 0.1))

    Args:
        mask: True where a connection exists: bool, shaped like the weight; a tensor, a NumPy array or nested
            lists.

    Raises:
        ValueError: ``mask`` is not bool, or not shaped like the weight it is registered for.
        TypeError: ``mask`` is not a tensor, an array or nested lists of bools.
    """

    mask: Tensor

    def __init__(self, mask: Tensor | Any) -> None:
        super().__init__()
        values = _as_tensor("mask", mask)
        if values.dtype != torch.bool:
            raise ValueError(f"mask must be bool, got {values.dtype}")
        self.register_buffer("mask", _placed(values, mask))

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``W`` for ``V``, both of the mask's shape."""
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the initial ``V`` for the weight at registration."""
        if weight.shape != self.mask.shape:
            raise ValueError(
                f"mask must be shaped like the weight, {list(weight.shape)}, got {list(self.mask.shape)}"
            )
        return weight


def _as_tensor(name: str, values: Tensor | Any) -> Tensor:
    """Return a copy of a tensor, or of a NumPy array or a list as a tensor on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().clone()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a tensor, an array or a list of numbers, got {values!r}") from error


def _placed(x: Tensor, given: Tensor | Any) -> Tensor:
    """Return ``x`` on the device where torch would put what was given."""
    return x if isinstance(given, Tensor) else x.to(torch.get_default_device())


def no_self_connections(hidden_size: int, device: torch.device | str | None = None) -> Mask:
    """Return the mask that is False on the diagonal, so that no unit has a connection to itself.

    Args:
        hidden_size: ``H``.
        device: Device of the weight.

    Returns:
        A :class:`Mask` for a weight ``[H, H]``.
    """
    return Mask(~torch.eye(hidden_size, dtype=torch.bool, device=device))


class LowRank(nn.Module):
    r"""A weight of low rank, as the product of two factors.

    .. math:: W = L R \qquad L: [H, rank] \quad R: [rank, H]

    Both factors are trained: ``original0`` is ``L`` and ``original1`` is ``R``. At registration they become
    the best approximation of the weight: its largest singular values, with the square root of each in either
    factor.

        register_parametrization(rnn, "weight_hh_l0", LowRank(2))

    Args:
        rank: Positive, and at most the smaller side of the weight.

    Raises:
        ValueError: ``rank`` is not positive, or larger than the smaller side of the weight.
        TypeError: ``rank`` is not an int.

    Source: Mastrogiuseppe and Ostojic 2018, doi 10.1016/j.neuron.2018.07.003; their ``m n^T / N`` is ``L R``.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = checked_size("rank", rank)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``W``, ``[H, H]``, for ``L``, ``[H, rank]``, and ``R``, ``[rank, H]``."""
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the initial ``L`` and ``R`` for the weight at registration."""
        if self.rank > min(weight.shape):
            raise ValueError(
                f"rank must be at most {min(weight.shape)} for {list(weight.shape)}, got {self.rank}"
            )
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        roots = values[: self.rank].sqrt()
        return left[:, : self.rank] * roots, roots[:, None] * right[: self.rank]

    def extra_repr(self) -> str:
        """Return the rank."""
        return f"rank={self.rank}"
