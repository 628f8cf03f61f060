"""torch.compile and torch.export of the whole layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import distance
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from rnnkernels import LeakyRNN, LeakyRNNCell, constraints


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(module, *inputs, **keywords):
    results = module(*inputs, **keywords)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    results = [x.data if isinstance(x, PackedSequence) else x for x in results]
    leaves = [*module.parameters(), *(x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad)]
    loss = sum((x**2).sum() for x in results)
    return results + list(torch.autograd.grad(loss, leaves, allow_unused=True))


def check_same(module, *inputs, backend="aot_eager", **keywords) -> None:
    expected = gradients(module, *inputs, **keywords)
    found = gradients(torch.compile(module, fullgraph=True, backend=backend), *inputs, **keywords)
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or distance(a, b) < 1e-6


VARIANTS = {
    "plain": {},
    "current": {"form": "current", "decay": 0.5},
    "units": {"decay": torch.linspace(0, 0.9, 5)},
    "layers": {"num_layers": 3, "decay": [0.0, 0.5, 0.9]},
    "both ways": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "learned": {"num_layers": 2, "learn_decay": True, "learn_h0": True, "decay": 0.5},
    "no bias": {"bias": False, "nonlinearity": "tanh"},
    "every second state": {"num_layers": 2, "checkpoint_every": 2},
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_compiles_without_a_graph_break(name):
    layer = LeakyRNN(3, 5, **VARIANTS[name])
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    x = torch.randn(4, 2, 3, requires_grad=True)
    check_same(layer, x)
    hx = torch.randn(rows, 4 if layer.batch_first else 2, 5, requires_grad=True)
    drive = torch.randn(4, 2, 10 if layer.bidirectional else 5)
    check_same(layer, x, hx, drive=drive)
    check_same(layer, x[:, 0].detach())


@pytest.mark.every(3)
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_a_packed_batch_compiles_without_a_graph_break(arguments, enforce_sorted):
    lengths = (4, 2, 1) if enforce_sorted else (2, 4, 1)
    packed = pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted)
    layer = LeakyRNN(3, 5, **arguments)
    check_same(layer, packed)
    hx = torch.randn(layer.num_layers * (2 if layer.bidirectional else 1), 3, 5, requires_grad=True)
    drive = torch.randn(7, 10 if layer.bidirectional else 5)
    check_same(layer, packed, hx, drive=drive)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with pytest.raises((RuntimeError, ValueError)):  # raised when it runs: tracing does not know the rows
        compiled(packed, hx[:, :2])


@pytest.mark.parametrize("capture", [False, True])
def test_without_fullgraph_a_packed_batch_is_one_graph_only_with_capture_scalar_outputs(capture):
    layer, packed = LeakyRNN(3, 5), pack_sequence([torch.randn(n, 3) for n in (4, 2, 1)])
    counter = CompileCounterWithBackend("aot_eager")
    with torch._dynamo.config.patch(capture_scalar_outputs=capture):
        output = torch.compile(layer, backend=counter)(packed)[0]
    assert distance(output.data, layer(packed)[0].data) < 1e-6
    assert (counter.frame_count == 1) is capture


def test_the_cell_compiles_without_a_graph_break():
    check_same(LeakyRNNCell(3, 5, decay=0.5, learn_decay=True), torch.randn(2, 3), torch.randn(2, 5))


def test_a_constrained_weight_compiles_without_a_graph_break():
    layer = LeakyRNN(3, 5, decay=0.5)
    parametrize.register_parametrization(layer, "weight_hh_l0", constraints.DaleLaw(torch.ones(5)))
    parametrize.register_parametrization(layer, "weight_hh_l0", constraints.no_self_connections(5))
    check_same(layer, torch.randn(4, 2, 3))


def test_inductor_compiles_the_layer():
    layer = LeakyRNN(3, 5, 2, bidirectional=True, learn_decay=True, decay=0.5)
    check_same(layer, torch.randn(4, 2, 3), backend="inductor")


@pytest.mark.parametrize("name", ["plain", "both ways", "learned"])
def test_other_lengths_and_batch_sizes_do_not_recompile(name):
    layer = LeakyRNN(3, 5, **VARIANTS[name])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for steps, batch in ((4, 2), (7, 2), (4, 5), (100, 31)):
        x = torch.randn(steps, batch, 3)
        found = compiled(x)[0]
        found.sum().backward()
        assert distance(found, layer(x)[0]) < 1e-6
        counts.append(counter.frame_count)
    # If the decay is a float, Dynamo traces the first call twice: before and after it makes it a constant.
    assert len(set(counts)) == 1


def test_the_steps_are_not_unrolled():
    layer = LeakyRNN(3, 5, 2)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compile(layer, fullgraph=True, backend=backend)(torch.randn(50, 2, 3))
    (graph,) = graphs
    calls = [node for node in graph.graph.nodes if "projected_recurrence" in str(node.target)]
    assert len(calls) == 2


def test_a_training_step_compiles_with_its_loss():
    layer, readout = LeakyRNN(3, 5, 2, decay=0.5), nn.Linear(5, 1)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x, y):
        return nn.functional.mse_loss(readout(layer(x)[0]), y)

    x, y = torch.randn(6, 4, 3), torch.randn(6, 4, 1)
    optimizer = torch.optim.SGD([*layer.parameters(), *readout.parameters()], lr=0.1)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.95 * values[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_an_exported_layer_runs_at_other_sizes(name, tmp_path):
    layer = LeakyRNN(3, 5, **VARIANTS[name]).eval()
    sizes = {0: torch.export.Dim("first", min=2), 1: torch.export.Dim("second", min=2)}
    if layer.checkpoint_every is not None:
        sizes = None  # the number of segments is part of the program
    exported = torch.export.export(
        layer, (torch.randn(4, 6, 3),), dynamic_shapes=None if sizes is None else (sizes,)
    )
    torch.export.save(exported, tmp_path / "layer.pt2")
    program = torch.export.load(tmp_path / "layer.pt2").module()
    for shape in ((4, 6, 3),) if sizes is None else ((4, 6, 3), (9, 5, 3)):
        x = torch.randn(shape)
        for found, expected in zip(program(x), layer(x), strict=True):
            assert distance(found, expected) < 1e-6
