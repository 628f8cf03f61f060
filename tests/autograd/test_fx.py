"""torch.fx records the modules as leaves."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.rnn import PackedSequence

from rnnkernels import NADE, RBM, Categorical, IndependentBernoulli, LeakyRNN, LeakyRNNCell


class Net(nn.Module):
    """All kinds of modules; some arguments are constants for torch.fx."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = LeakyRNN(3, 4, 2, decay=0.5)
        self.cells = nn.ModuleList([LeakyRNNCell(4, 5), LeakyRNNCell(2, 5)])
        self.nade = NADE(8, 6, 5)

    def forward(self, x, v):
        output, h_n = self.rnn(x, torch.zeros(2, 3, 4), drive=x.new_zeros(6, 3, 4))
        h = self.cells[0](output[-1])
        h = self.cells[1](torch.ones(3, 2), h)
        return self.nade(v, h).mean() + h_n.sum()


def leaves_of(program: fx.GraphModule) -> list[str]:
    return [node.target for node in program.graph.nodes if node.op == "call_module"]


def test_a_traced_program_computes_and_trains_as_the_module():
    module, x, v = Net(), torch.randn(6, 3, 3), torch.rand(3, 8) < 0.5
    program = fx.symbolic_trace(module)
    assert leaves_of(program) == ["rnn", "cells.0", "cells.1", "nade"]
    program.graph.lint()
    assert torch.equal(program(x, v), module(x, v))
    program(x, v).backward()
    assert all(p.grad is not None for p in module.parameters())
    again = pickle.loads(pickle.dumps(program))
    assert torch.equal(again(x, v), module(x, v))
    ShapeProp(program).propagate(x, v)
    shapes = {node.name: node.meta["tensor_meta"] for node in program.graph.nodes if node.op == "call_module"}
    assert shapes["cells_0"].shape == (3, 5)


@pytest.mark.parametrize(
    "model",
    [NADE(8, 6, 5), RBM(8, 6, 5), IndependentBernoulli(8, 5), Categorical(8, 5)],
    ids=lambda m: type(m).__name__,
)
def test_output_models_are_leaves(model):
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, v, state):
            return self.model(v, state.tanh())

    program = fx.symbolic_trace(Loss())
    assert leaves_of(program) == ["model"]
    v = torch.zeros(3, dtype=torch.long) if isinstance(model, Categorical) else torch.zeros(3, 8)
    assert program(v, torch.randn(3, 5)).shape == (3,)


def test_only_one_argument_is_traced():
    class Driven(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.cell = LeakyRNN(3, 4), LeakyRNNCell(3, 4)

        def forward(self, drive):
            output, _ = self.rnn(torch.ones(6, 2, 3), drive=drive)
            return self.cell(torch.ones(2, 3), drive=output[-1])

    module, drive = Driven(), torch.randn(6, 2, 4)
    program = fx.symbolic_trace(module)
    assert leaves_of(program) == ["rnn", "cell"]
    assert torch.equal(program(drive), module(drive))


def test_packed_rows_are_traced():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = LeakyRNN(3, 4)

        def forward(self, rows):
            return self.rnn(PackedSequence(rows, torch.tensor([2, 1])))[0].data

    module, rows = Packed(), torch.randn(3, 3)
    assert torch.equal(fx.symbolic_trace(module)(rows), module(rows))


@pytest.mark.parametrize("module", [LeakyRNN(3, 4), LeakyRNNCell(3, 4)], ids=lambda m: type(m).__name__)
def test_the_traced_module_itself_cannot_be_a_leaf(module):
    with pytest.raises(TypeError, match=r"^torch.fx must trace a module that contains the LeakyRNN"):
        fx.symbolic_trace(module)
