"""A restricted Boltzmann machine with biases that are linear in the state.

E(v, h) = -b.v - c.h - h.W v        p(v) = sum_h exp(-E(v, h)) / Z = exp(-F(v)) / Z
b = visible_bias(state),   c = hidden_bias(state)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnkernels._checks import check_generator, checked_size
from rnnkernels._devices import without_autocast
from rnnkernels.outputs import _rbm
from rnnkernels.outputs._base import (
    ConditionalModel,
    as_rows,
    bernoulli,
    check_binary,
    split_samples,
    wide,
)
from rnnkernels.outputs.ais import estimate_log_partition

__all__ = ["RBM"]

# Most units on the smaller side for which log_prob sums Z over all of their states.
MAX_ENUMERATED = 20


class RBM(ConditionalModel):
    r"""A restricted Boltzmann machine over the frame, with biases from the state.

    .. math::
        p(v \mid s) = \frac{e^{-F(v)}}{Z}, \qquad
        F(v) = -b \cdot v - \sum_{j=1}^{H} \log(1 + e^{c_j + W_j \cdot v})

    ``b`` is :attr:`visible_bias` and ``c`` is :attr:`hidden_bias`, both linear in the state ``s``. The model
    has no order of the units. The partition function ``Z`` is unknown except for small models, so
    probabilities are estimated, gradients are approximated by sampling, and a sample is the end of a Gibbs
    chain.

    The weight is ``weight`` (``W``, ``[H, D]``), initialized from a normal distribution with standard
    deviation 0.01. That value and the 15 Gibbs steps are those of Boulanger-Lewandowski's own code
    (code/rnnrbm.py in the DeepLearningTutorials of lisa-lab).

    Example, with the output of a layer as the state::

        rbm = RBM(num_visible=88, num_hidden=150, condition_size=200)
        loss = rbm.loss(frames, output).mean()  # frames [T, B, 88], output [T, B, 200]

    Args:
        num_visible: ``D``, units of a frame.
        num_hidden: ``H``, hidden units.
        condition_size: ``C``, size of the state.
        gibbs_steps: ``k``, Gibbs steps per gradient, where a call does not give ``steps``.
        device, dtype: Device and dtype of the parameters; the state must have the same.

    Raises:
        ValueError, TypeError: An argument has the wrong type or is out of range; the message names it.

    Source: Boulanger-Lewandowski, Bengio and Vincent 2012, "Modeling temporal dependencies in
    high-dimensional sequences": the RNN-RBM.
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
        self.gibbs_steps = checked_size("gibbs_steps", gibbs_steps)
        shape = (self.num_hidden, self.num_visible)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self._reset_weights()

    def free_energy(self, v: Tensor, state: Tensor) -> Tensor:
        """Return the free energy ``F(v)``: ``-log p(v) - log Z``, where ``Z`` depends on the state only.

        Args:
            v: Frames, ``[..., D]``, zeros and ones, bool, integers or floats. No gradient flows to them.
            state: ``[..., C]``, of the parameters' dtype.

        Returns:
            ``[...]``, float64 for float64 states, otherwise float32.

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
        r"""Return ``F(v) - F(v_k)``, whose gradient approximates that of ``-log p(v)`` (contrastive
        divergence).

        ``v_k`` is the end of a Gibbs chain of ``k`` steps that starts at ``v`` (CD-k), and is constant for
        the gradient. The value of this loss does not measure the fit; :meth:`estimate_log_prob` does.

        With ``chain``, the Gibbs chains continue from the end of the last call (persistent contrastive
        divergence). Each row has its own biases, and so its own chain. Keep one chain for every frame of the
        training set, start it at the frame itself, and pass the chains of the frames in the batch:

            chains = frames.clone()  # once; may be bool
            chain = chains[rows]  # the rows of this batch
            loss = rbm.loss(frames[rows], state, chain=chain).mean()
            chains[rows] = chain

        Between two calls for the same frame, its biases change by a few updates of training.

        Args:
            v: Frames, ``[..., D]``, zeros and ones, bool, integers or floats. No gradient flows to them.
            state: ``[..., C]``, of the parameters' dtype.
            steps: ``k``, Gibbs steps; ``gibbs_steps`` if None.
            chain: Start of the chains, shaped like ``v``, overwritten with ``v_k``; ``v`` if None.
            generator: Random generator, on the device of the state.

        Returns:
            ``[...]``, float64 for float64 states, otherwise float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
            RuntimeError: The probabilities to draw from are NaN; on CUDA a device-side assertion. ``chain``
                is left as it was.

        Source: Hinton 2002 (contrastive divergence); Tieleman 2008 (the persistent variant).
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
        """Return the exact logarithm of the probability of each frame; for small models only.

        ``Z`` of each row is a sum over all states of the hidden or of the visible units, whichever are fewer;
        the other side is summed in closed form. With gradients, memory grows with the number of states.

        Args:
            v: Frames, ``[..., D]``, zeros and ones, bool, integers or floats. No gradient flows to them.
            state: ``[..., C]``, of the parameters' dtype.

        Returns:
            ``[...]``, float64 for float64 states, otherwise float32.

        Raises:
            ValueError: Both sides have more than 20 units, or an argument has the wrong shape, dtype, device
                or value.
            TypeError: An argument is not a tensor.
        """
        self._check(v, state)
        fewer = min(self.num_visible, self.num_hidden)
        if fewer > MAX_ENUMERATED:
            raise ValueError(
                f"log_prob goes through all states of the smaller side, of at most {MAX_ENUMERATED} units, "
                f"got {fewer}: estimate_log_prob estimates it for any size"
            )
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            energy = _rbm.free_energy(v.detach().to(b.dtype), b, c, weight)
            log_z = _rbm.log_partition(b, c, weight)
            # In one more dimension, because vmap over no examples cannot subtract scalars.
            return (-energy.unsqueeze(-1) - log_z.unsqueeze(-1)).squeeze(-1)

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
        r"""Estimate the logarithm of the probability of each frame by annealed importance sampling.

        .. math:: \ell = -F(v) - \log \hat Z, \qquad \hat Z = \frac{1}{M} \sum_{i=1}^{M} w_i Z_0

        There are ``M`` chains per row, each with a weight ``w``. The cost is ``chains * temperatures`` Gibbs
        steps per row; memory is bounded.

        The estimate of ``Z`` is unbiased, but its logarithm is not: by Jensen's inequality ``log Z`` is too
            low
        in expectation, and so ``l`` too high, by about half the square of the standard error.
        :func:`rnnkernels.mean_with_interval` corrects that. The standard error is that of the delta method,
        :math:`s(w) / (\bar w \sqrt M)`. It does not account for regions that no chain has visited: there,
        both ``Z`` and the error are too small, and nothing indicates it. More temperatures reduce that risk;
        more chains reduce the error itself.

        Example::

            log_prob, error = rbm.estimate_log_prob(frames, states)
            mean, low, high = rnnkernels.mean_with_interval(log_prob, error)

        Args:
            v: ``[..., D]``, zeros and ones, bool, integers or floats.
            state: ``[..., C]``, of the parameters' dtype.
            chains: ``M``, at least 2, for each row.
            temperatures: ``T``, steps from independent units to the RBM.
            generator: Random generator, on the device of the state.

        Returns:
            ``l`` and its standard error, each ``[...]``, float64 for float64 states, otherwise float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
            RuntimeError: The probabilities to draw from are NaN; on CUDA a device-side assertion.
        """
        self._check(v, state)
        chains = checked_size("chains", chains)
        temperatures = checked_size("temperatures", temperatures)
        if chains < 2:
            raise ValueError(f"chains must be at least 2, for a standard error, got {chains}")
        check_generator(generator, state.device)
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            energy = _rbm.free_energy(v.to(b.dtype), b, c, weight)
            log_z, error = estimate_log_partition(
                as_rows(b), as_rows(c), weight, chains, temperatures, generator
            )
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
        """Run a Gibbs chain from ``v``: draw the hidden units given the frame, then the frame given them.

        Args:
            v: ``[..., D]``, zeros and ones, bool, integers or floats.
            state: ``[..., C]``, of the parameters' dtype.
            steps: Number of Gibbs steps; ``gibbs_steps`` if None.
            generator: Random generator, on the device of the state.

        Returns:
            The last frame of each row, ``[..., D]``: zeros and ones in the dtype of the state.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
            RuntimeError: The probabilities to draw from are NaN; on CUDA a device-side assertion.
        """
        self._check(v, state)
        steps = self._checked_steps(steps)
        check_generator(generator, state.device)
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            return _rbm.gibbs(v.to(b.dtype), b, c, weight, steps, generator)[0].to(state.dtype)

    @torch.no_grad()
    def sample(self, state: Tensor, *, steps: int = 100, generator: torch.Generator | None = None) -> Tensor:
        """Draw a frame for each row of the state: the end of a Gibbs chain that starts at independent units.

        The first frame of the chain is drawn from ``sigmoid(b)``. The longer the chain, the closer is the
        distribution of its end to that of the model.

        Args:
            state: ``[..., C]``, of the parameters' dtype.
            steps: Number of Gibbs steps.
            generator: Random generator, on the device of the state.

        Returns:
            ``[..., D]``: zeros and ones in the dtype of the state.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
            RuntimeError: The probabilities to draw from are NaN; on CUDA a device-side assertion.
        """
        self._check_state(state)
        steps = checked_size("steps", steps)
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
        """Return an estimate of ``p(v_i = 1)``: the mean of ``p(v_i = 1 | h)`` at the ends of Gibbs chains.

        Args:
            state: ``[..., C]``, of the parameters' dtype.
            samples: Chains per row.
            steps: Number of Gibbs steps of each chain.
            generator: Random generator, on the device of the state.

        Returns:
            ``[..., D]``, float64 for float64 states, otherwise float32.

        Raises:
            ValueError, TypeError: An argument has the wrong shape, dtype, device or value.
            RuntimeError: The probabilities to draw from are NaN; on CUDA a device-side assertion.
        """
        self._check_state(state)
        samples, steps = checked_size("samples", samples), checked_size("steps", steps)
        check_generator(generator, state.device)
        b, c, weight = self._parameters_for(state)
        with without_autocast(state):
            total = torch.zeros_like(b)
            for n in split_samples(samples, state, max(self.num_visible, self.num_hidden)):
                start = bernoulli(b.expand(n, *b.shape), generator)
                _, logits = _rbm.gibbs(start, b, c, weight, steps, generator)
                total += torch.sigmoid(logits).sum(0)
        return total / samples

    def extra_repr(self) -> str:
        """Return the sizes and the number of Gibbs steps."""
        return f"{super().extra_repr()}, gibbs_steps={self.gibbs_steps}"

    def _reset_weights(self) -> None:
        nn.init.normal_(self.weight, std=0.01)

    def _parameters_for(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``b``, ``c`` and ``W`` in float32 or float64."""
        b, c = self._biases(state)
        return wide(b), wide(c), wide(self.weight)

    def _checked_steps(self, steps: int | None) -> int:
        if steps is None:
            return self.gibbs_steps
        return checked_size("steps", steps)
