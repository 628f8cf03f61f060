"""A restricted Boltzmann machine whose biases the state gives.

E(v, h) = -b.v - c.h - h.W v        p(v) = sum_h exp(-E(v, h)) / Z = exp(-F(v)) / Z
b = visible_bias(state),   c = hidden_bias(state)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnkernels._checks import check_generator, check_sizes
from rnnkernels.outputs import _rbm
from rnnkernels.outputs._base import (
    ConditionalModel,
    bernoulli,
    check_binary,
    copies_at_a_time,
    wide,
    without_autocast,
)
from rnnkernels.outputs.ais import estimate_log_partition

__all__ = ["RBM"]

# Up to so many units on the smaller side, Z is a sum over all of their states.
MOST_ENUMERATED = 20


class RBM(ConditionalModel):
    r"""A restricted Boltzmann machine over the frame, with biases from the state.

    .. math::
        p(v \mid s) = \frac{e^{-F(v)}}{Z}, \qquad
        F(v) = -b \cdot v - \sum_{j=1}^{H} \log(1 + e^{c_j + W_j \cdot v})

    with ``b`` of :attr:`visible_bias` and ``c`` of :attr:`hidden_bias`, both linear in the state ``s``. Each
    hidden unit can hold any pattern of units, in no order; the price is ``Z``, which is not known, so that
    probabilities are estimated, gradients sampled, and samples the end of a chain. On a recurrent network it
    is the RNN-RBM of Boulanger-Lewandowski, Bengio and Vincent 2012.

    Parameter: ``weight``, ``W``, ``[H, D]``, drawn from a normal distribution of width 0.01. That, and the 15
    steps of the chain, are those of Boulanger-Lewandowski's own code (code/rnnrbm.py in the
    DeepLearningTutorials of lisa-lab).

    Args:
        num_visible: ``D``, units of a frame.
        num_hidden: ``H``, hidden units.
        condition_size: ``C``, size of the state.
        gibbs_steps: ``k``, steps of the chain behind a gradient, where a call names no other number.
        device, dtype: Of the parameters; states have the same.

    Raises:
        ValueError, TypeError: An argument is out of its range or of the wrong type.
    """

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        condition_size: int,
        gibbs_steps: int = 15,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_visible, num_hidden, condition_size, device, dtype)
        check_sizes(gibbs_steps=gibbs_steps)
        self.gibbs_steps = gibbs_steps
        self.weight = nn.Parameter(torch.empty(num_hidden, num_visible, device=device, dtype=dtype))
        self._reset_weights()

    def free_energy(self, v: Tensor, state: Tensor) -> Tensor:
        """``F(v)``, ``[...]``: minus the logarithm of the probability, but for ``log Z`` of the state.

        Args:
            v: ``[..., D]``, bool or zeros and ones of any dtype. No gradient flows to it.
            state: ``[..., C]``.

        Returns:
            ``[...]``; float64 for float64 and else float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check(v, state)
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            return _rbm.free_energy(v.detach().to(b.dtype), b, c, weight)

    def loss(
        self,
        v: Tensor,
        state: Tensor,
        *,
        steps: int | None = None,
        chain: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Contrastive divergence: ``F(v) - F(v_k)``, whose gradient stands for that of ``-log p(v)``.

        ``v_k`` is where a chain of ``k`` steps from the data ended (CD-k; Hinton 2002), and is a constant to
        the gradient. The value itself measures nothing; look at :meth:`estimate_log_prob`.

        With a ``chain`` the walk goes on where the last call left it (persistent contrastive divergence,
        Tieleman 2008). Here every row has biases of its own, and so a chain of its own: keep one for every
        frame of the training set, beginning at the frame itself, and give those of the frames at hand.

            chains = frames.clone()  # once; bool will do
            chain = chains[rows]  # the rows of this batch
            loss = rbm.loss(frames[rows], state, chain=chain).mean()
            chains[rows] = chain

        Between two visits the biases change as the weights do, by a few updates of training.

        Args:
            v: ``[..., D]``, bool or zeros and ones of any dtype. No gradient flows to it.
            state: ``[..., C]``.
            steps: ``k``; ``gibbs_steps`` if None.
            chain: Where the chains stand, like ``v``; overwritten with ``v_k``. None: at ``v``.
            generator: Of the draws, on the device of the state.

        Returns:
            ``[...]``; float64 for float64 and else float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check(v, state)
        steps = self._checked_steps(steps)
        check_generator(generator, state.device)
        if chain is not None:
            check_binary("chain", chain, tuple(v.shape), state.device)
            if chain.requires_grad:
                raise ValueError("chain must not require gradients: it is overwritten")
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            rows = v.detach().to(b.dtype)
            start = rows if chain is None else chain.to(b.dtype)
            end, _ = _rbm.gibbs(start, b, c, weight, steps, generator)
            if chain is not None:
                chain.copy_(end)
            return _rbm.free_energy(rows, b, c, weight) - _rbm.free_energy(end, b, c, weight)

    def log_prob(self, v: Tensor, state: Tensor) -> Tensor:
        """The logarithm of the probability of each frame: exact, and for small models only.

        Each row has a ``Z`` of its own, a sum over all states of the hidden or the visible units, whichever
        are fewer; the other side is summed in closed form. Where a gradient is asked for, memory grows with
        the number of states.

        Args:
            v: ``[..., D]``, bool or zeros and ones of any dtype. No gradient flows to it.
            state: ``[..., C]``.

        Returns:
            ``[...]``; float64 for float64 and else float32.

        Raises:
            ValueError: Both sides have more than 20 units; or as for :meth:`free_energy`.
            TypeError: As for :meth:`free_energy`.
        """
        self._check(v, state)
        fewer = min(self.num_visible, self.num_hidden)
        if fewer > MOST_ENUMERATED:
            raise ValueError(
                f"log_prob goes through all states of the smaller side, of at most {MOST_ENUMERATED} units, "
                f"got {fewer}: estimate_log_prob estimates it for any size"
            )
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            energy = _rbm.free_energy(v.detach().to(b.dtype), b, c, weight)
            return -energy - _rbm.log_partition(b, c, weight)

    @torch.no_grad()
    def estimate_log_prob(
        self,
        v: Tensor,
        state: Tensor,
        *,
        chains: int = 100,
        temperatures: int = 1000,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""An estimate of the logarithm of the probability of each frame, by annealed importance sampling.

        .. math:: \ell = -F(v) - \log \hat Z, \qquad \hat Z = \frac{1}{M} \sum_{i=1}^{M} w_i Z_0

        of ``M`` chains for each row, each with a weight ``w`` (Neal 2001; Salakhutdinov and Murray 2008). It
        costs ``chains * temperatures`` steps of Gibbs sampling a row, in bounded memory.

        The estimate of ``Z`` has no bias. Its logarithm has: by Jensen's inequality ``log Z`` is too low in
        expectation, and so ``l`` too high, by about half the square of the standard error.
        :func:`rnnkernels.mean_with_interval` takes that off. The standard error is that of the delta method,
        :math:`s(w) / (\bar w \sqrt M)`, and knows only what the chains have seen: where the distribution has
        parts that none of them came to, ``Z`` and the error are too small, without a sign of it. More
        temperatures help against that, more chains against the error itself.

        Args:
            v: ``[..., D]``, bool or zeros and ones of any dtype.
            state: ``[..., C]``.
            chains: ``M``, at least 2, for each row.
            temperatures: ``T``, steps from independent units to the RBM.
            generator: Of the draws, on the device of the state.

        Returns:
            ``l`` and its standard error, each ``[...]``; float64 for float64 and else float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check(v, state)
        check_sizes(chains=chains, temperatures=temperatures)
        if chains < 2:
            raise ValueError(f"chains must be at least 2, for a standard error, got {chains}")
        check_generator(generator, state.device)
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            energy = _rbm.free_energy(v.to(b.dtype), b, c, weight)
            b, c = b.reshape(-1, b.shape[-1]), c.reshape(-1, c.shape[-1])
            log_z, error = estimate_log_partition(b, c, weight, chains, temperatures, generator)
        return -energy - log_z.reshape(energy.shape), error.reshape(energy.shape)

    @torch.no_grad()
    def gibbs(
        self,
        v: Tensor,
        state: Tensor,
        steps: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Walk a chain from ``v``: draw the hidden units given the frame, then the frame given them.

        Args:
            v: ``[..., D]``, bool or zeros and ones of any dtype.
            state: ``[..., C]``.
            steps: How often; ``gibbs_steps`` if None.
            generator: Of the draws, on the device of the state.

        Returns:
            The last frame, ``[..., D]``: zeros and ones in the dtype of the state.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check(v, state)
        steps = self._checked_steps(steps)
        check_generator(generator, state.device)
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            return _rbm.gibbs(v.to(b.dtype), b, c, weight, steps, generator)[0].to(state.dtype)

    @torch.no_grad()
    def sample(self, state: Tensor, *, steps: int = 100, generator: torch.Generator | None = None) -> Tensor:
        """A frame for each row of the state: the end of a chain that begins at units drawn by their biases.

        Args:
            state: ``[..., C]``.
            steps: Of the chain. The more there are, the nearer are its ends to the distribution.
            generator: Of the draws, on the device of the state.

        Returns:
            ``[..., D]``: zeros and ones in the dtype of the state.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check_state(state)
        check_sizes(steps=steps)
        check_generator(generator, state.device)
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            return _rbm.gibbs(bernoulli(b, generator), b, c, weight, steps, generator)[0].to(state.dtype)

    @torch.no_grad()
    def marginals(
        self,
        state: Tensor,
        *,
        samples: int = 100,
        steps: int = 100,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """An estimate of ``p(v_i = 1)``: the mean of ``p(v_i = 1 | h)`` where chains end.

        Args:
            state: ``[..., C]``.
            samples: Chains for each row.
            steps: Of each chain.
            generator: Of the draws, on the device of the state.

        Returns:
            ``[..., D]``; float64 for float64 and else float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
        """
        self._check_state(state)
        check_sizes(samples=samples, steps=steps)
        check_generator(generator, state.device)
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            total = torch.zeros_like(b)
            for n in copies_at_a_time(samples, state, max(self.num_visible, self.num_hidden)):
                start = bernoulli(b.expand(n, *b.shape), generator)
                _, logits = _rbm.gibbs(start, b, c, weight, steps, generator)
                total += torch.sigmoid(logits).sum(0)
        return total / samples

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        super().reset_parameters()
        self._reset_weights()

    def extra_repr(self) -> str:
        """The sizes, and the steps of the chain."""
        return f"{super().extra_repr()}, gibbs_steps={self.gibbs_steps}"

    def _reset_weights(self) -> None:
        nn.init.normal_(self.weight, std=0.01)

    def _parameters_for(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``b``, ``c`` and ``W`` in float32 or float64."""
        b, c = self._biases(state)
        return wide(b), wide(c), wide(self.weight)

    def _checked_steps(self, steps: int | None) -> int:
        if steps is None:
            return self.gibbs_steps
        check_sizes(steps=steps)
        return steps
