"""Exported programs: decomposed into standard operators, as ONNX, and compiled ahead of time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import KINDS, distance, rounds_factors
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from rnnkernels import LeakyRNN, LeakyRNNCell, decompositions, functional

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime is not installed (pip install 'rnnkernels[onnx]')",
)
STEPS_AND_BATCH = {0: torch.export.Dim("first"), 1: torch.export.Dim("second")}


def decomposed(module: nn.Module, *inputs: Tensor, shapes=None) -> torch.export.ExportedProgram:
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
    program = program.run_decompositions(decompositions())
    assert not [node for node in program.graph.nodes if "rnnkernels" in str(node.target)]
    return program


def assert_same(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert distance(a, b) < 1e-6


class Reader(nn.Module):
    """A layer between other modules, which also returns the state of the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = LeakyRNN(3, 5, 2, batch_first=True, bidirectional=True, decay=0.5, learn_decay=True)
        self.norm, self.readout = nn.LayerNorm(10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(x)
        return self.readout(nn.functional.gelu(self.norm(output))), h_n


VARIANTS = {
    "plain": lambda: LeakyRNN(3, 5),
    "units": lambda: LeakyRNN(3, 5, 2, dropout=0.5, decay=torch.linspace(0, 0.9, 5), bias=False),
    "learned": lambda: LeakyRNN(3, 5, bidirectional=True, decay=0.5, learn_decay=True, learn_h0=True),
    "between others": Reader,
}  # fmt: skip


@pytest.mark.every(3)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_decomposed_program_runs_at_any_size(name):
    module = VARIANTS[name]()
    program = decomposed(module, torch.randn(4, 6, 3), shapes=(STEPS_AND_BATCH,)).module()
    for shape in ((4, 6, 3), (9, 2, 3), (1, 1, 3)):
        x = torch.randn(shape)
        assert_same(program(x), module(x))


@pytest.mark.every(3)
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_every_form_and_nonlinearity_with_a_state_and_a_drive(form, nonlinearity):
    layer = LeakyRNN(3, 5, nonlinearity=nonlinearity, form=form, decay=0.7)

    class Driven(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, hx, drive):
            return self.layer(x, hx, drive=drive)

    inputs = (torch.randn(6, 2, 3), torch.randn(1, 2, 5), torch.randn(6, 2, 5))
    assert_same(decomposed(Driven(), *inputs).module()(*inputs), layer(*inputs[:2], drive=inputs[2]))


def test_the_steps_are_not_unrolled():
    program = decomposed(LeakyRNN(3, 5, 2), torch.randn(200, 2, 3))
    scans = [node for node in program.graph.nodes if node.target is torch.ops.higher_order.scan]
    assert len(scans) == 2
    assert len(program.graph.nodes) < 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    layer, x = LeakyRNN(3, 50, decay=0.9, dtype=dtype), torch.randn(100, 2, 3, dtype=dtype)
    found, expected = decomposed(layer, x).module()(x)[0], layer(x)[0]
    assert found.dtype == dtype
    once = torch.finfo(dtype).eps / 2  # one rounding in all, not one at each of the 100 steps
    assert distance(found, expected) <= (3 * once if rounds_factors(dtype) else once)


def test_packed_sequences_cannot_be_decomposed():
    class Packed(nn.Module):
        def forward(self, pre, h0, weight, batch_sizes):
            return functional.leaky_recurrence(pre, h0, weight, 0.5, batch_sizes=batch_sizes)

    packed = torch.randn(3, 5), torch.randn(2, 5), torch.randn(5, 5), torch.tensor([2, 1])
    with pytest.raises(NotImplementedError, match="PackedSequence"):
        decomposed(Packed(), *packed)


# --- ONNX --------------------------------------------------------------------------------------------


def onnx_session(program: torch.export.ExportedProgram, path: str) -> Callable[..., list[Tensor]]:
    import onnxruntime

    torch.onnx.export(program, f=path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        given = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return [torch.from_numpy(np.asarray(x)) for x in session.run(None, given)]

    return run


@pytest.mark.every(3)
@needs_onnx
@pytest.mark.parametrize("name", VARIANTS)
def test_an_onnx_model_runs_at_any_size(name, tmp_path):
    module = VARIANTS[name]()
    program = decomposed(module, torch.randn(4, 6, 3), shapes=(STEPS_AND_BATCH,))
    run = onnx_session(program, str(tmp_path / "model.onnx"))
    for shape in ((4, 6, 3), (9, 2, 3), (1, 1, 3)):
        x = torch.randn(shape)
        assert_same(run(x), module(x))


@pytest.mark.every(3)
@needs_onnx
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_every_form_and_nonlinearity_as_onnx_with_a_state(form, nonlinearity, tmp_path):
    layer = LeakyRNN(3, 5, nonlinearity=nonlinearity, form=form, decay=0.7)
    inputs = (torch.randn(6, 2, 3), torch.randn(1, 2, 5))
    run = onnx_session(decomposed(layer, *inputs), str(tmp_path / "model.onnx"))
    assert_same(run(*inputs), layer(*inputs))


@needs_onnx
def test_a_cell_as_onnx(tmp_path):
    cell = LeakyRNNCell(3, 5, decay=0.5)
    inputs = (torch.randn(2, 3), torch.randn(2, 5))
    run = onnx_session(decomposed(cell, *inputs), str(tmp_path / "model.onnx"))
    assert_same(run(*inputs), [cell(*inputs)])


# --- AOTInductor -------------------------------------------------------------------------------------


def test_a_package_compiled_ahead_of_time_runs_at_any_size(tmp_path):
    module = Reader().eval()
    program = torch.export.export(module, (torch.randn(4, 6, 3),), dynamic_shapes=(STEPS_AND_BATCH,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    package = torch._inductor.aoti_load_package(path)
    for shape in ((4, 6, 3), (9, 2, 3), (7, 11, 3)):
        x = torch.randn(shape)
        assert_same(package(x), module(x))


# --- Tracing without gradients -----------------------------------------------------------------------


class Net(nn.Module):
    """A layer, a cell and a readout."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.rnn = LeakyRNN(3, 4, 2, bidirectional=True, decay=0.5, learn_decay=True, **options)
        self.cell, self.readout = LeakyRNNCell(8, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.cell(self.rnn(x)[0][-1]))


def by_make_fx(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    names = [name for name, _ in module.named_parameters()]

    def call(x, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))

    program = make_fx(call)(x, *module.parameters())
    return lambda x: program(x, *module.parameters())


TRACERS = {
    "export": lambda module, x: torch.export.export(module, (x,)).module(),
    "strict export": lambda module, x: torch.export.export(module, (x,), strict=True).module(),
    "jit.trace": lambda module, x: torch.jit.trace(module, (x,)),
    "make_fx": by_make_fx,
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"nonlinearity": "tanh"}, {"form": "current"}], ids=str)
@pytest.mark.parametrize("tracer", TRACERS)
def test_a_program_that_was_traced_under_no_grad_has_gradients(tracer, options):
    module, x = Net(**options), torch.randn(6, 3, 3)
    with torch.no_grad():
        program = TRACERS[tracer](module, x)
    module(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    program(x).square().sum().backward()
    trained = program if isinstance(program, nn.Module) else module
    found = {name: p.grad for name, p in trained.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert distance(gradient, expected[name]) < 1e-6, name
