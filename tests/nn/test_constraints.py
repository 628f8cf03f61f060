"""Constraints on weights: a constrained layer trains, and the constraint holds afterwards."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers import ROOT, run_python
from torch import nn
from torch.nn.utils import parametrize

from rnnkernels import LeakyRNN, LeakyRNNCell
from rnnkernels.constraints import DaleLaw, LowRank, Mask, no_self_connections

HIDDEN = 12
SIGNS = torch.tensor([1.0] * 9 + [-1.0] * 3)
MASK = torch.rand(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1)) < 0.4


def follows_dale(weight):
    return bool((weight * SIGNS >= 0).all()) and weight.count_nonzero() > HIDDEN


def masked(weight):
    return not weight[~MASK].any() and bool(weight[MASK].all())


def without_self(weight):
    off = ~torch.eye(HIDDEN, dtype=torch.bool)
    return not weight.diagonal().any() and weight[off].count_nonzero() > HIDDEN


def rank_two(weight):
    return torch.linalg.matrix_rank(weight, rtol=1e-5) == 2


CONSTRAINTS = {
    "Dale's law": (lambda: [DaleLaw(SIGNS)], [follows_dale]),
    "mask": (lambda: [Mask(MASK)], [masked]),
    "no self-connections": (lambda: [no_self_connections(HIDDEN)], [without_self]),
    "low rank": (lambda: [LowRank(2)], [rank_two]),
    "Dale's law without self-connections": (
        lambda: [DaleLaw(SIGNS), no_self_connections(HIDDEN)],
        [follows_dale, without_self],
    ),
    "low rank under a mask": (lambda: [LowRank(2), Mask(MASK)], [masked]),
}


@pytest.mark.parametrize("learning_rate", [0.1, 3.0])  # the large one moves weights across zero
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_constrained_layer_trains_and_the_constraint_holds(name, learning_rate):
    make, promises = CONSTRAINTS[name]
    layer = LeakyRNN(3, HIDDEN, nonlinearity="tanh", decay=0.5)
    unconstrained = layer.weight_hh_l0.detach().clone()
    for module in make():
        parametrize.register_parametrization(layer, "weight_hh_l0", module)
    # The initial weight is kept as far as the constraint allows.
    assert torch.linalg.norm(layer.weight_hh_l0.abs() - unconstrained.abs()) < torch.linalg.norm(
        unconstrained
    )
    originals = dict(layer.parametrizations.weight_hh_l0.named_parameters())
    assert len(originals) == (2 if "low rank" in name else 1)
    before = {key: value.detach().clone() for key, value in originals.items()}
    x, target = torch.randn(10, 8, 3), torch.tanh(torch.randn(10, 8, HIDDEN)) / 2
    optimizer = torch.optim.SGD(layer.parameters(), lr=learning_rate)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ((layer(x)[0] - target) ** 2).mean()
        loss.backward()
        assert all(value.grad.any() for value in originals.values())
        optimizer.step()
        losses.append(loss.item())
        assert all(promise(layer.weight_hh_l0.detach()) for promise in promises)
    assert losses[-1] < 0.99 * losses[0]
    assert all(not torch.equal(value, before[key]) for key, value in originals.items())


def test_the_gradient_of_the_original_follows_the_chain_rule():
    layer = LeakyRNN(3, HIDDEN, nonlinearity="tanh", decay=0.5)
    parametrize.register_parametrization(layer, "weight_hh_l0", DaleLaw(SIGNS))
    original = layer.parametrizations.weight_hh_l0.original
    with torch.no_grad():
        original[:, ::2] *= -1
    plain = LeakyRNN(3, HIDDEN, nonlinearity="tanh", decay=0.5)
    state = {k: v for k, v in layer.state_dict().items() if "parametrizations" not in k}
    plain.load_state_dict(state | {"weight_hh_l0": layer.weight_hh_l0.detach()})
    x = torch.randn(5, 2, 3)
    for module in (layer, plain):
        module(x)[0].square().sum().backward()
    expected = plain.weight_hh_l0.grad * original.detach().sign() * SIGNS
    assert torch.allclose(original.grad, expected, atol=1e-6)


def test_a_connection_that_crosses_zero_under_dales_law_grows_again():
    layer = LeakyRNN(1, 2, nonlinearity="tanh")
    parametrize.register_parametrization(layer, "weight_hh_l0", DaleLaw(torch.tensor([1.0, -1.0])))
    original = layer.parametrizations.weight_hh_l0.original
    with torch.no_grad():
        original.fill_(-0.1)
    assert (layer.weight_hh_l0.detach() * torch.tensor([1.0, -1.0]) > 0).all()
    layer.weight_hh_l0.sum().backward()
    assert original.grad.all()


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_survive_state_dicts_copies_and_dtypes(name):
    layers = []
    for _ in range(2):
        layer = LeakyRNN(3, HIDDEN, decay=0.5)
        for module in CONSTRAINTS[name][0]():
            parametrize.register_parametrization(layer, "weight_hh_l0", module)
        layers.append(layer)
    layers[1].load_state_dict(layers[0].state_dict())
    for twin in (layers[1], copy.deepcopy(layers[0])):
        assert torch.equal(twin.weight_hh_l0, layers[0].weight_hh_l0)
    layer = layers[0].double()
    assert layer.weight_hh_l0.dtype == torch.float64
    layer(torch.randn(4, 2, 3).double())[0].sum().backward()


def test_any_weight_of_the_layer_and_of_the_cell_can_be_constrained():
    layer = LeakyRNN(3, HIDDEN, 2, bidirectional=True)
    names = ("weight_hh_l0", "weight_hh_l0_reverse", "weight_hh_l1", "weight_hh_l1_reverse")
    for name in names:
        parametrize.register_parametrization(layer, name, no_self_connections(HIDDEN))
    parametrize.register_parametrization(layer, "weight_ih_l0", Mask(torch.eye(HIDDEN, 3, dtype=torch.bool)))
    layer(torch.randn(4, 2, 3))[0].sum().backward()
    for name in names:
        assert not getattr(layer, name).diagonal().any()
        assert layer.parametrizations[name].original.grad.any()
    assert layer.weight_ih_l0.count_nonzero() == 3
    layer.reset_parameters()
    assert not layer.weight_hh_l1.diagonal().any()
    cell = LeakyRNNCell(3, HIDDEN)
    parametrize.register_parametrization(cell, "weight_hh", DaleLaw(SIGNS))
    cell(torch.randn(2, 3), torch.randn(2, HIDDEN)).sum().backward()
    assert follows_dale(cell.weight_hh.detach())


def test_the_constrained_weight_is_computed_once_per_call():
    calls = []

    class Counted(nn.Module):
        def forward(self, weight):
            calls.append(1)
            return weight

    layer = LeakyRNN(3, HIDDEN, checkpoint_every=2)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        parametrize.register_parametrization(layer, name, Counted())
    calls.clear()
    layer(torch.randn(8, 2, 3))[0].sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DaleLaw(torch.tensor([1.0, 0.5])), "signs must be"),
        (lambda: DaleLaw(torch.ones(2, 2)), "signs must be"),
        (lambda: DaleLaw([1, 0]), "signs must be"),
        (lambda: DaleLaw([True, True]), "signs must be"),
        (lambda: Mask(torch.ones(2, 2)), "mask must be bool"),
        (lambda: Mask([[1, 0]]), "mask must be bool, got torch.int64"),
        (lambda: LowRank(0), "rank must be greater than zero"),
    ],
)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (DaleLaw(torch.ones(4)), "one for each of the 5 columns"),
        (Mask(torch.ones(4, 5, dtype=torch.bool)), r"mask must be shaped like the weight, \[5, 5\]"),
        (LowRank(6), "rank must be at most 5"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_constraint_of_another_size_is_refused_at_registration(constraint, message):
    with pytest.raises(ValueError, match=message):
        parametrize.register_parametrization(LeakyRNN(3, 5), "weight_hh_l0", constraint)


def test_the_example_trains_each_constraint_and_finds_no_violation():
    ran = run_python(str(ROOT / "examples" / "constraints.py"))
    assert ran.returncode == 0, ran.stderr
    _, *rows = ran.stdout.splitlines()
    assert len(rows) == 5
    for row in rows:
        after, count = row[46:55], row[55:].split()[0]
        assert float(after) < 0.01, row  # 1/12 for the best guess without a memory
        assert count == "0", row


@pytest.mark.parametrize(
    "signs",
    [[1, 1, -1], (1.0, 1.0, -1.0), np.array([1, 1, -1], dtype=np.int8), np.array([-1.0, 1, 1])[::-1]],
    ids=repr,
)
def test_signs_may_be_a_list_or_an_array(signs):
    constraint = DaleLaw(signs)
    assert torch.equal(constraint.signs, torch.tensor([1.0, 1.0, -1.0]))


@pytest.mark.parametrize("given", [[[True, False], [False, True]], np.eye(2, dtype=bool)], ids=repr)
def test_a_mask_may_be_nested_lists_or_an_array(given):
    mask = Mask(given)
    assert torch.equal(mask.mask, torch.eye(2, dtype=torch.bool))
    if isinstance(given, np.ndarray):  # the mask is a copy
        given[0, 0] = False
        assert mask.mask[0, 0]


def test_signs_and_masks_are_put_on_the_default_device():
    with torch.device("meta"):
        assert DaleLaw([1, -1]).signs.is_meta
        assert Mask([[True]]).mask.is_meta
        assert not DaleLaw(torch.ones(2, device="cpu")).signs.is_meta


@pytest.mark.parametrize("given", [None, "ab", [[True], [True, False]], {"a": 1}], ids=repr)
@pytest.mark.parametrize("constraint", [DaleLaw, Mask])
def test_what_is_not_an_array_is_refused_by_name(constraint, given):
    name = "signs" if constraint is DaleLaw else "mask"
    with pytest.raises(TypeError, match=f"^{name} must be a tensor, an array or a list of numbers, got "):
        constraint(given)


# --- Zeros -------------------------------------------------------------------------------------------


def trained_from_zero(*constraints):
    """Return the weight of a readout of sums after training from zero."""
    readout = nn.Linear(6, 1)
    nn.init.zeros_(readout.weight)
    for constraint in constraints:
        parametrize.register_parametrization(readout, "weight", constraint)
    optimizer = torch.optim.SGD(readout.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        x = torch.rand(32, 6, generator=generator)
        optimizer.zero_grad()
        (readout(x) - (x * READOUT_SIGNS).sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return readout.weight.detach()


READOUT_SIGNS = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0])


def test_connections_that_are_zero_are_learned_under_dales_law():
    weight = trained_from_zero(DaleLaw(READOUT_SIGNS))
    assert (weight * READOUT_SIGNS > 0.5).all()


@pytest.mark.parametrize("mask_first", [False, True])
def test_masked_connections_stay_zero_under_dales_law(mask_first):
    exists = torch.tensor([[True, True, False, True, False, True]])
    constraints = [DaleLaw(READOUT_SIGNS), Mask(exists)]
    weight = trained_from_zero(*(constraints[::-1] if mask_first else constraints))
    assert (weight[~exists] == 0).all()
    assert ((weight * READOUT_SIGNS)[exists] > 0.1).all()


def test_the_gradient_of_dales_law_has_the_sign_of_each_connection_and_that_of_the_unit_at_zero():
    trained = torch.tensor([[-2.0, 0.0, 3.0], [0.0, -1.0, -0.0]], dtype=torch.float64, requires_grad=True)
    law = DaleLaw([1, -1, -1]).double()
    signs = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, -1.0]], dtype=torch.float64)
    assert torch.equal(law(trained), trained.abs() * torch.tensor([1.0, -1.0, -1.0]))
    gradient = torch.autograd.grad(law(trained).sum(), trained)[0]
    assert torch.equal(gradient, signs)
