"""Constraints on weights, to register with ``torch.nn.utils.parametrize``.

    from torch.nn.utils.parametrize import register_parametrization

    register_parametrization(rnn, "weight_hh_l0", DaleLaw(signs))
    register_parametrization(rnn, "weight_hh_l0", no_self_connections(rnn.hidden_size))

The parameter that is trained is then ``rnn.parametrizations.weight_hh_l0.original``, and
``rnn.weight_hh_l0`` the constrained weight computed from it, which every call of the layer uses and
through which the gradient flows. Several constraints apply in the order in which they were registered;
:class:`LowRank`, which trains two factors, comes first. ``W[i, j]`` is the connection from unit ``j``
to unit ``i``, so a column holds what one unit sends.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DaleLaw", "LowRank", "Mask", "no_self_connections"]


class DaleLaw(nn.Module):
    r"""Each unit is excitatory or inhibitory: all that it sends has its sign.

    .. math:: W_{ij} = |V_{ij}| \, s_j

    where ``V`` is trained. (Song, Yang and Wang 2016, doi 10.1371/journal.pcbi.1004792.) Magnitudes rather
    than ReLU, so that a connection that reaches zero is not lost: it comes back.

    For recurrent weights, or an output layer's; the weight at registration keeps its magnitudes and
    takes the signs. The signs are a buffer and in the state dict.

    Args:
        signs: ``s``, one of +1 or -1 for each sending unit, ``[H]``.

    Raises:
        ValueError: ``signs`` has another shape or other values.
    """

    signs: Tensor

    def __init__(self, signs: Tensor) -> None:
        super().__init__()
        if signs.dim() != 1 or not bool((signs.abs() == 1).all()):
            raise ValueError(f"signs must be +1 or -1 for each unit, [H], got {signs}")
        self.register_buffer("signs", signs.detach().to(torch.get_default_dtype(), copy=True))

    def forward(self, weight: Tensor) -> Tensor:
        """``W [.., H]`` from ``V [.., H]``."""
        return weight.abs() * self.signs.to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """``V`` to begin with."""
        if weight.shape[-1] != len(self.signs):
            raise ValueError(
                f"signs must be one for each of the {weight.shape[-1]} columns of the weight, "
                f"got {len(self.signs)}"
            )
        return weight.abs()


class Mask(nn.Module):
    r"""Some connections do not exist.

    .. math:: W_{ij} = V_{ij} \;\text{where the mask is True, otherwise}\; 0

    where ``V`` is trained; its entries outside of the mask get no gradient. The mask is a buffer and in
    the state dict.

    Args:
        mask: Which connections exist: bool, shaped like the weight.

    Raises:
        ValueError: ``mask`` is not bool, or not shaped like the weight it is registered for.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, got {mask.dtype}")
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """``W`` from ``V``, of the mask's shape."""
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """``V`` to begin with."""
        if weight.shape != self.mask.shape:
            raise ValueError(
                f"mask must be shaped like the weight, {list(weight.shape)}, got {list(self.mask.shape)}"
            )
        return weight


def no_self_connections(hidden_size: int, device: torch.device | str | None = None) -> Mask:
    """The mask without the diagonal: no unit sends to itself.

    Args:
        hidden_size: ``H``.
        device: Where the weight is.

    Returns:
        A :class:`Mask` for a weight ``[H, H]``.
    """
    return Mask(~torch.eye(hidden_size, dtype=torch.bool, device=device))


class LowRank(nn.Module):
    r"""A weight of low rank, as the product of two factors.

    .. math:: W = L R \qquad L: [H, rank] \quad R: [rank, H]

    Both factors are trained: ``original0`` is ``L`` and ``original1`` is ``R``. They begin at the best
    approximation of the weight at registration (its largest singular values, shared evenly). (Mastrogiuseppe
    and Ostojic 2018, doi 10.1016/j.neuron.2018.07.003, whose ``m n^T / N`` is ``L R``.)

    Args:
        rank: At most the smaller side of the weight.

    Raises:
        ValueError: ``rank`` is not positive, or larger than the weight.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be greater than zero, got {rank}")
        self.rank = rank

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """``W`` from ``L`` and ``R``."""
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """``L`` and ``R`` to begin with."""
        if self.rank > min(weight.shape):
            raise ValueError(
                f"rank must be at most {min(weight.shape)} for {list(weight.shape)}, got {self.rank}"
            )
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        roots = values[: self.rank].sqrt()
        return left[:, : self.rank] * roots, roots[:, None] * right[: self.rank]

    def extra_repr(self) -> str:
        """The rank."""
        return f"rank={self.rank}"
