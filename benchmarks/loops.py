"""Recurrences as loops in Python, and the contenders made of them: eager, scripted, compiled, as a CUDA
graph.

Every loop maps the input `[T, B, I]`, the four weights in the order of WEIGHTS, and the decay to `[T, B, H]`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import WEIGHTS, Problem, Results, TorchContender

Result = TypeVar("Result")
Loop = Callable[[Tensor, list[Tensor], float], Tensor]
Capture = Callable[[Callable[[], Any]], Callable[[], Any]]

COMPILED_STEPS = 16  # per compiled call; a block of hundreds of steps takes minutes to compile


def project(x: Tensor, weights: list[Tensor]) -> Tensor:
    return F.linear(x, weights[0], weights[2] + weights[3])


def _steps(pre: Tensor, h: Tensor, weight: Tensor, decay: float) -> Tensor:
    # `unbind` rather than `pre[t]`, whose gradient is a zero-filled copy of all of `pre` for each t.
    outputs = []
    for p in pre.unbind(0):
        h = torch.lerp(torch.relu(torch.addmm(p, h, weight)), h, decay)
        outputs.append(h)
    return torch.stack(outputs)


def leaky_loop(x: Tensor, weights: list[Tensor], decay: float) -> Tensor:
    """The fastest loop in plain PyTorch: one projection, then three operations per step."""
    pre = project(x, weights)
    return _steps(pre, torch.zeros_like(pre[0]), weights[1].t(), decay)


def tanh_loop(x: Tensor, weights: list[Tensor], decay: float) -> Tensor:
    """The equation of FlashRNN's Elman network: tanh, without a leak."""
    pre = project(x, weights)
    h = torch.zeros_like(pre[0])
    outputs = []
    for p in pre.unbind(0):
        h = torch.tanh(torch.addmm(p, h, weights[1].t()))
        outputs.append(h)
    return torch.stack(outputs)


def from_loop(problem: Problem, loop: Loop) -> TorchContender:
    leaves = {name: problem.weights[name].clone().requires_grad_() for name in WEIGHTS}
    values = list(leaves.values())
    return TorchContender(problem, lambda x: problem.rows(loop(x, values, problem.decay)), leaves)


def make_loop(problem: Problem) -> TorchContender:
    return from_loop(problem, leaky_loop)


def make_script(problem: Problem) -> TorchContender:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but many codebases use it
        return from_loop(problem, torch.jit.script(leaky_loop))


def make_compiled(problem: Problem, steps: int = COMPILED_STEPS, backend: str = "inductor") -> TorchContender:
    """The loop over blocks of steps. Each block is one call of a compiled function."""
    dynamo: Any = importlib.import_module("torch._dynamo")
    dynamo.config.recompile_limit = 64  # one compilation for each shape, dtype and pass
    block = torch.compile(_steps, fullgraph=True, dynamic=False, backend=backend)

    def loop(x: Tensor, weights: list[Tensor], decay: float) -> Tensor:
        pre = project(x, weights)
        h, outputs = torch.zeros_like(pre[0]), []
        for some in pre.split(steps):
            outputs.append(block(some, h, weights[1].t(), decay))
            h = outputs[-1][-1]
        return torch.cat(outputs)

    return from_loop(problem, loop)


def capture_on_cuda(function: Callable[[], Result]) -> Callable[[], Result]:
    """The function's launches as one CUDA graph. Each replay writes into the same result tensors."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()  # libraries create their handles and workspaces here, outside the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as JAX's, may use the device during the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


class GraphedLoop:
    """The loop captured once per pass, so that the host launches one graph per call."""

    def __init__(self, problem: Problem, capture: Capture = capture_on_cuda) -> None:
        loop = make_loop(problem)
        self.decay = loop.decay
        self.forward = capture(loop.forward)
        self.forward_backward = capture(loop.differentiated)

    def results(self) -> Results:
        results: Results = self.forward_backward()
        return results
