"""Peers that a GPU has: the loop as a CUDA graph, compiled in blocks of steps, and FlashRNN's Elman network.

None of them is what a user writes first; they are what the loop can become without a kernel of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .loops import from_loop, leaky_loop
from .problem import Problem, Results, TorchContender

Result = TypeVar("Result")
Capture = Callable[[Callable[[], Any]], Callable[[], Any]]

COMPILED_STEPS = 16  # in one compiled call; hundreds take minutes to compile


# ------------------------------------------------------------------------------------ CUDA graph


def capture_on_cuda(function: Callable[[], Result]) -> Callable[[], Result]:
    """What the function launches, as one graph. A replay writes the same result tensors again."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()  # libraries make their handles and workspaces now, not in the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads, JAX's among them, may do with the device what they like meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


class GraphedLoop:
    """The loop captured once for each pass, so that the host launches one thing a call."""

    def __init__(self, problem: Problem, capture: Capture = capture_on_cuda) -> None:
        loop = from_loop(problem, leaky_loop)
        self.decay = loop.decay
        self.forward = capture(loop.forward)
        self.forward_backward = capture(loop.differentiated)

    def results(self) -> Results:
        results: Results = self.forward_backward()
        return results


def no_cuda() -> str | None:
    return None if torch.cuda.is_available() else "torch finds no NVIDIA GPU"


# --------------------------------------------------------------------------------- torch.compile


def _steps(pre: Tensor, h: Tensor, weight: Tensor, decay: float) -> Tensor:
    outputs = []
    for p in pre.unbind(0):
        h = torch.lerp(torch.relu(torch.addmm(p, h, weight)), h, decay)
        outputs.append(h)
    return torch.stack(outputs)


def make_compiled(problem: Problem, steps: int = COMPILED_STEPS, backend: str = "inductor") -> TorchContender:
    """The loop over blocks of steps, each block one call of a compiled function."""
    dynamo: Any = importlib.import_module("torch._dynamo")
    dynamo.config.recompile_limit = 64  # one for each shape, dtype and pass; beyond it, it gives up
    block = torch.compile(_steps, fullgraph=True, dynamic=False, backend=backend)

    def loop(
        x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, decay: float
    ) -> Tensor:
        pre = F.linear(x, weight_ih, bias_ih + bias_hh)
        weight, h = weight_hh.t(), torch.zeros_like(pre[0])
        outputs = []
        for some in pre.split(steps):
            outputs.append(block(some, h, weight, decay))
            h = outputs[-1][-1]
        return torch.cat(outputs)

    return from_loop(problem, loop)


def no_compiler() -> str | None:
    if not torch.cuda.is_available():
        return no_cuda()
    try:
        importlib.import_module("triton")
    except ImportError:
        return "torch.compile needs Triton, which is not installed"
    return None


# --------------------------------------------------------------------------------------- FlashRNN


def tanh_loop(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, decay: float
) -> Tensor:
    """What FlashRNN's Elman network computes: tanh, and no leak."""
    pre = F.linear(x, weight_ih, bias_ih + bias_hh)
    h = torch.zeros_like(pre[0])
    outputs = []
    for p in pre.unbind(0):
        h = torch.tanh(torch.addmm(p, h, weight_hh.t()))
        outputs.append(h)
    return torch.stack(outputs)


def make_flashrnn(problem: Problem) -> TorchContender:
    """It takes W x, batch first, with axes for gates and heads; its kernels are compiled for each shape."""
    flashrnn: Any = importlib.import_module("flashrnn.flashrnn").flashrnn
    dtype = str(problem.x.dtype).removeprefix("torch.")

    def layer(
        x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, decay: float
    ) -> Tensor:
        pre = F.linear(x.transpose(0, 1), weight_ih)[:, :, None, None]  # [B, T, gates, heads, H]
        weight, bias = weight_hh[None, None], (bias_ih + bias_hh)[None, None]
        states, _last = flashrnn(pre, weight, bias, function="elman", dtype=dtype)
        return states[0, :, :, 0].transpose(0, 1)  # of [states, B, T, heads, H]

    contender = from_loop(problem, layer)
    contender.decay = 0.0
    contender.reference_loop = tanh_loop
    return contender


def no_flashrnn() -> str | None:
    try:
        importlib.import_module("flashrnn.flashrnn")
    except Exception as error:  # it compiles and looks for tools as it is imported
        missing = isinstance(error, ImportError)
        return "FlashRNN is not installed" if missing else f"FlashRNN does not start: {error}"
    return None
