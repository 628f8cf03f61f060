"""The example of a gradient penalty: its gradients are the loop's, and training brings the norm to 1."""

from __future__ import annotations

import gradient_penalty
import torch
from eager import EagerLeakyRNN
from helpers import distance


def test_the_penalty_s_gradients_are_those_of_the_loop():
    critic = gradient_penalty.Critic(3, 6).double()
    loop = gradient_penalty.Critic(3, 6).double()
    loop.rnn = EagerLeakyRNN(3, 6, "tanh", decay=0.8).double()
    loop.load_state_dict(critic.state_dict())
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    found = []
    for model in (critic, loop):
        penalty = gradient_penalty.gradient_penalty(model, x)
        names = ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "readout.weight"]
        grads = torch.autograd.grad(penalty, [model.get_parameter(name) for name in names])
        found.append([penalty.detach(), *grads])
    for a, b in zip(*found, strict=True):
        assert distance(a, b) < 1e-12


def test_training_with_the_penalty_brings_the_norm_towards_one():
    penalized, free = (gradient_penalty.train(100, weight)[-20:] for weight in (10.0, 0.0))
    assert sum(penalized) < 0.3 * 20
    assert sum(penalized) < sum(free) / 2
