"""The output models in plain NumPy and float64, written as their equations; the tests compare with them.

NADE (Larochelle and Murray 2011) with ``b``, ``c``, ``W [D, H]``, ``V [D, H]``:

    a_1 = c    l_i = b_i + V_i . sigmoid(a_i)    a_{i+1} = a_i + v_i W_i    p(v_i = 1 | v_<i) = sigmoid(l_i)

RBM with ``b``, ``c``, ``W [H, D]``, as sums over all pairs of a visible and a hidden state:

    E(v, h) = -b.v - c.h - h.W v     p(v, h) = exp(-E(v, h)) / Z

Each row of ``v`` has its own biases: ``b [N, D]``, ``c [N, H]``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rnnkernels.testing.recurrence import Array

__all__ = [
    "NADEGradients",
    "all_states",
    "nade",
    "nade_backward",
    "nade_sample",
    "rbm_joint",
    "rbm_log_partition",
    "rbm_log_prob",
]


def sigmoid(z: Array) -> Array:
    """Return ``1 / (1 + exp(-z))``."""
    return np.exp(-np.logaddexp(0, -z))


def all_states(units: int) -> Array:
    """Return every row of ``n`` zeros and ones, ``[2^n, n]``."""
    return ((np.arange(2**units)[:, None] >> np.arange(units)) & 1).astype(np.float64)


# --- NADE --------------------------------------------------------------------------------------------


def nade(v: Array, b: Array, c: Array, encoder: Array, decoder: Array) -> tuple[Array, Array, Array]:
    """Return ``log p(v) [N]``, the logits ``[N, D]`` and ``a_{D+1} [N, H]``."""
    logits = np.empty_like(b)
    a = c.copy()
    for i in range(b.shape[1]):
        logits[:, i] = b[:, i] + sigmoid(a) @ decoder[i]
        a += np.outer(v[:, i], encoder[i])
    return (v * logits - np.logaddexp(0, logits)).sum(1), logits, a


class NADEGradients(NamedTuple):
    """Derivatives of ``sum(grad_log_prob * log_prob) + sum(grad_logits * logits)``."""

    visible_bias: Array
    hidden_bias: Array
    encoder: Array
    decoder: Array


def nade_backward(
    grad_log_prob: Array, grad_logits: Array, v: Array, b: Array, c: Array, encoder: Array, decoder: Array
) -> NADEGradients:
    """Return the gradients of :func:`nade`, derived by hand.

    With ``g_i`` the gradient of ``l_i``, ``e_i`` that of ``a_i``, and ``h_i = sigmoid(a_i)``:

        g_i = grad_log_prob (v_i - sigmoid(l_i)) + grad_logits_i        db_i = g_i        dV_i = sum_n g_i h_i
        dW_i = sum_n v_i e_{i+1}        e_i = e_{i+1} + g_i V_i h_i (1 - h_i)     e_{D+1} = 0     dc = e_1
    """
    _, logits, a = nade(v, b, c, encoder, decoder)
    g = grad_log_prob[:, None] * (v - sigmoid(logits)) + grad_logits
    e = np.zeros_like(c)
    d_encoder, d_decoder = np.empty_like(encoder), np.empty_like(decoder)
    for i in reversed(range(b.shape[1])):
        a = a - np.outer(v[:, i], encoder[i])
        h = sigmoid(a)
        d_encoder[i] = v[:, i] @ e
        d_decoder[i] = g[:, i] @ h
        e = e + g[:, i : i + 1] * decoder[i] * h * (1 - h)
    return NADEGradients(g, e, d_encoder, d_decoder)


def nade_sample(uniform: Array, b: Array, c: Array, encoder: Array, decoder: Array) -> tuple[Array, Array]:
    """Return ``v [N, D]``, which is 1 where ``uniform < sigmoid(l)``, and the logits ``[N, D]``."""
    v, logits = np.zeros_like(b), np.empty_like(b)
    for i in range(b.shape[1]):
        logits[:, i] = b[:, i] + sigmoid(c + v[:, :i] @ encoder[:i]) @ decoder[i]
        v[:, i] = uniform[:, i] < sigmoid(logits[:, i])
    return v, logits


# --- RBM ---------------------------------------------------------------------------------------------


def _negative_energies(b: Array, c: Array, weight: Array) -> Array:
    """Return ``-E`` of every pair of states, ``[N, 2^D, 2^H]``."""
    v, h = all_states(b.shape[1]), all_states(c.shape[1])
    return (b @ v.T)[:, :, None] + (c @ h.T)[:, None, :] + (h @ weight @ v.T).T


def rbm_log_partition(b: Array, c: Array, weight: Array) -> Array:
    """Return ``log Z``, ``[N]``."""
    energies = _negative_energies(b, c, weight)
    largest = energies.max((1, 2))
    total = np.exp(energies - largest[:, None, None]).sum((1, 2))
    return np.asarray(largest + np.log(total))


def rbm_joint(b: Array, c: Array, weight: Array) -> Array:
    """Return ``p(v, h)`` of every pair of states, ``[N, 2^D, 2^H]``, in the order of :func:`all_states`."""
    log_z = rbm_log_partition(b, c, weight)
    return np.asarray(np.exp(_negative_energies(b, c, weight) - log_z[:, None, None]))


def rbm_log_prob(v: Array, b: Array, c: Array, weight: Array) -> Array:
    """Return ``log p(v)``, ``[N]``."""
    index = (v @ 2.0 ** np.arange(v.shape[1])).astype(np.int64)  # of each row among all states
    return np.asarray(np.log(rbm_joint(b, c, weight).sum(2)[np.arange(len(v)), index]))
