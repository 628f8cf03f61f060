"""The reference of the output models, compared with sums over all states and finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np

from rnnkernels.testing import outputs as reference

D, H = 4, 3


def problem(seed=0, rows=1):
    random = np.random.default_rng(seed)
    b, c = random.standard_normal((rows, D)), random.standard_normal((rows, H))
    return b, c, random.standard_normal((D, H)), random.standard_normal((D, H))


def repeated(x, rows):
    return np.repeat(x, rows, 0)


def test_all_states_are_ordered_by_their_binary_value():
    states = reference.all_states(3)
    assert {tuple(row) for row in states} == set(itertools.product((0.0, 1.0), repeat=3))
    np.testing.assert_array_equal(states @ [1, 2, 4], np.arange(8))


def test_nade_probabilities_sum_to_one():
    b, c, encoder, decoder = problem()
    v = reference.all_states(D)
    log_prob, _, _ = reference.nade(v, repeated(b, len(v)), repeated(c, len(v)), encoder, decoder)
    assert abs(np.exp(log_prob).sum() - 1) < 1e-14


def test_nade_equals_its_formula_for_one_row():
    b, c, encoder, decoder = problem(1)
    v = [1, 0, 1, 1]
    total = 0.0
    for i in range(D):
        logit = b[0, i]
        for j in range(H):
            a = c[0, j] + sum(v[k] * encoder[k, j] for k in range(i))
            logit += decoder[i, j] / (1 + math.exp(-a))
        on = 1 / (1 + math.exp(-logit))
        total += math.log(on if v[i] else 1 - on)
    found, _, a = reference.nade(np.array([v], np.float64), b, c, encoder, decoder)
    np.testing.assert_allclose(found, [total], rtol=1e-14)
    np.testing.assert_allclose(a, c + v @ encoder, rtol=1e-14)


def test_nade_gradients_equal_central_differences():
    rows, eps = 3, 1e-6
    arguments = dict(zip(("b", "c", "encoder", "decoder"), problem(2, rows), strict=True))
    random = np.random.default_rng(3)
    v = (random.random((rows, D)) < 0.5).astype(np.float64)
    grads = random.standard_normal(rows), random.standard_normal((rows, D))

    def loss(**changed):
        log_prob, logits, _ = reference.nade(v, **(arguments | changed))
        return (grads[0] * log_prob).sum() + (grads[1] * logits).sum()

    found = reference.nade_backward(*grads, v, **arguments)
    for (name, point), gradient in zip(arguments.items(), found, strict=True):
        for index in np.ndindex(*point.shape):
            moved = [point.copy(), point.copy()]
            moved[0][index] += eps
            moved[1][index] -= eps
            difference = (loss(**{name: moved[0]}) - loss(**{name: moved[1]})) / (2 * eps)
            assert abs(gradient[index] - difference) < 1e-8, (name, index)


def test_nade_sample_frequencies_equal_the_probabilities():
    # On a grid of 8^4 midpoints, the fraction of points with a frame is its probability, up to the grid's
    # width.
    b, c, encoder, decoder = problem(4)
    cells = (np.arange(8) + 0.5) / 8
    uniform = np.array(list(itertools.product(cells, repeat=D)))
    v, logits = reference.nade_sample(
        uniform, repeated(b, len(uniform)), repeated(c, len(uniform)), encoder, decoder
    )
    log_prob, again, _ = reference.nade(v, repeated(b, len(v)), repeated(c, len(v)), encoder, decoder)
    np.testing.assert_allclose(logits, again, rtol=0, atol=1e-14)
    numbers, where, counts = np.unique(v @ 2.0 ** np.arange(D), return_index=True, return_counts=True)
    assert len(numbers) > 8
    np.testing.assert_allclose(counts / len(v), np.exp(log_prob[where]), atol=D / 16)


def test_rbm_joint_probabilities_follow_from_energies_and_sum_to_one():
    b, c, _, _ = problem(5)
    weight = np.random.default_rng(6).standard_normal((H, D))
    joint = reference.rbm_joint(b, c, weight)[0]
    assert joint.shape == (2**D, 2**H)
    assert abs(joint.sum() - 1) < 1e-14
    states = reference.all_states(D), reference.all_states(H)
    for m, n in ((3, 5), (0, 0), (15, 7), (9, 2)):
        v, h = states[0][m], states[1][n]
        energy = -b[0] @ v - c[0] @ h - h @ weight @ v
        expected = -energy - reference.rbm_log_partition(b, c, weight)[0]
        assert abs(math.log(joint[m, n]) - expected) < 1e-12
    on = joint.sum(1)
    np.testing.assert_allclose(
        reference.rbm_log_prob(states[0], repeated(b, 2**D), repeated(c, 2**D), weight), np.log(on)
    )
