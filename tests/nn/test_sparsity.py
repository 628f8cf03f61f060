"""The fractions of active units and of nonzero gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from rnnkernels import LeakyRNN, activity_penalty, sparsity


def test_fractions_are_counted():
    output = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.0, 0.5]])
    found = sparsity(output, [torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 0.0, -1.0]])])
    assert found.active == 3 / 6
    assert found.gradient == 2 / 5
    assert sparsity(output, torch.tensor([0.0, 1.0])).gradient == 1 / 2


def test_the_gradient_of_a_parameter_is_counted():
    a, b, c = (nn.Parameter(torch.ones(4)) for _ in range(3))
    a.grad, b.grad = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4)
    assert sparsity(torch.ones(1), iter([a, b, c])).gradient == 1 / 8


def test_without_values_fractions_are_nan():
    active, gradient = sparsity(torch.ones(3, 0))
    assert math.isnan(active)
    assert math.isnan(gradient)
    assert math.isnan(sparsity(torch.ones(1), [nn.Parameter(torch.ones(2))]).gradient)


def test_a_packed_sequence_counts_its_real_steps_only():
    sequences = [torch.ones(3, 2), torch.zeros(1, 2)]
    assert sparsity(pack_sequence(sequences)).active == 6 / 8


def test_the_drive_of_an_inactive_unit_has_no_gradient():
    torch.manual_seed(0)
    rnn, x = LeakyRNN(3, 40), torch.randn(10, 8, 3)
    drive = torch.zeros(10, 8, 40, requires_grad=True)
    output, _ = rnn(x, drive=drive)
    output.square().sum().backward()
    found = sparsity(output, [drive.grad])
    assert 0.2 < found.active == found.gradient < 0.8
    assert sparsity(output, rnn.parameters()).gradient > found.gradient


def test_a_penalty_makes_activity_sparser():
    fractions = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        rnn, x = LeakyRNN(3, 40), torch.randn(10, 8, 3)
        optimizer = torch.optim.Adam(rnn.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            output, _ = rnn(x)
            ((output.sum(-1) - x.sum(-1)).square().mean() + activity_penalty(output, l1=weight)).backward()
            optimizer.step()
        fractions.append(sparsity(rnn(x)[0]).active)
    assert fractions[1] < fractions[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0],), "output must be a Tensor, got list"),
        ((torch.ones(1), [None]), "each of the gradients must be a Tensor, got NoneType"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        sparsity(*arguments)
