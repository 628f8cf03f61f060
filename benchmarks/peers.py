"""The contenders: rnnkernels and everything it is measured against, behind one interface (problem.py).

All but `torch.nn.RNN` and FlashRNN, which have no leak, compute the leaky recurrence in its rate form:

    h_t = d h_{t-1} + (1 - d) relu(W_ih x_t + b_ih + b_hh + W_hh h_{t-1})
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnkernels import LeakyRNN
from rnnkernels.functional import leaky_recurrence

from .jax_scan import JaxScan, no_jax
from .loops import GraphedLoop, from_loop, make_compiled, make_loop, make_script, tanh_loop
from .problem import GPU_STEPS, OURS, WEIGHTS, Contender, Point, Problem, Results, TorchContender, gpu_grid

RECURRENCE = "recurrence"  # timed beside the contenders without being one


def _from_module(problem: Problem, module: torch.nn.Module, decay: float) -> TorchContender:
    """A contender from a module with the parameters and the call of torch.nn.RNN."""
    module = module.to(problem.x.device)
    leaves = {name: getattr(module, name) for name in WEIGHTS}
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(problem.weights[name])

    def layer(x: Tensor | PackedSequence) -> Tensor:
        output: Tensor | PackedSequence = module(x)[0]
        return output.data if isinstance(output, PackedSequence) else output

    x = problem.x if problem.lengths is None else problem.packed(problem.x)
    return TorchContender(problem, layer, leaves, x=x, decay=decay)


def make_ours(problem: Problem) -> Contender:
    module = LeakyRNN(problem.cell.I, problem.cell.H, decay=problem.decay, dtype=problem.x.dtype)
    return _from_module(problem, module, problem.decay)


class Recurrence(TorchContender):
    """rnnkernels without the input projection, which is compared with the host's rates."""

    def __init__(self, problem: Problem) -> None:
        w = problem.weights
        rows = problem.rows(problem.x)
        pre = F.linear(rows, w["weight_ih_l0"], w["bias_ih_l0"] + w["bias_hh_l0"])
        weight_hh = w["weight_hh_l0"].clone().requires_grad_()
        h0 = pre.new_zeros(problem.cell.B, problem.cell.H)
        sizes = None if problem.lengths is None else problem.packed(problem.x).batch_sizes

        def layer(pre: Tensor) -> Tensor:
            output: Tensor = leaky_recurrence(pre, h0, weight_hh, problem.decay, batch_sizes=sizes)[0]
            return output

        leaves = {"weight_hh_l0": weight_hh, "pre": pre.requires_grad_()}
        super().__init__(problem, layer, leaves, x=pre)

    def results(self) -> Results:
        """The gradient of `pre`, summed over steps and batch, is that of the layer's biases."""
        output, gradients = super().results()
        gradients["bias_ih_l0"] = gradients.pop("pre").flatten(0, -2).sum(0)
        return Results(output, gradients)


def make_nn_rnn(problem: Problem) -> Contender:
    cell = problem.cell
    module = torch.nn.RNN(cell.I, cell.H, nonlinearity="relu", dtype=problem.x.dtype)
    return _from_module(problem, module, 0.0)


class HalfRnn:
    """nn.RNN in float16, which cuDNN supports where it may not support bfloat16. Gradients are scaled."""

    scale = 2.0**-8

    def __init__(self, problem: Problem) -> None:
        grad_output = (problem.grad_output.float() * self.scale).half()
        weights = {name: weight.half() for name, weight in problem.weights.items()}
        half = replace(problem, x=problem.x.half(), weights=weights, grad_output=grad_output)
        self._contender = make_nn_rnn(half)
        self.decay = self._contender.decay
        self.forward = self._contender.forward
        self.forward_backward = self._contender.forward_backward

    def results(self) -> Results:
        output, gradients = self._contender.results()
        return Results(output, {name: g.float() / self.scale for name, g in gradients.items()})


def make_flashrnn(problem: Problem) -> TorchContender:
    """FlashRNN's Elman network, whose kernels are compiled for each shape."""
    flashrnn: Any = importlib.import_module("flashrnn.flashrnn").flashrnn
    dtype = str(problem.x.dtype).removeprefix("torch.")

    def layer(x: Tensor, weights: list[Tensor], decay: float) -> Tensor:
        pre = F.linear(x.transpose(0, 1), weights[0])[:, :, None, None]  # [B, T, gates, heads, H]
        weight, bias = weights[1][None, None], (weights[2] + weights[3])[None, None]
        states, _last = flashrnn(pre, weight, bias, function="elman", dtype=dtype)
        return states[0, :, :, 0].transpose(0, 1)  # from [states, B, T, heads, H]

    contender = from_loop(problem, layer)
    contender.decay = 0.0
    contender.reference_loop = tanh_loop
    return contender


# --------------------------------------------------------------------------------------- missing


def no_cuda() -> str | None:
    return None if torch.cuda.is_available() else "torch finds no NVIDIA GPU"


def no_compiler() -> str | None:
    triton = importlib.util.find_spec("triton")
    return no_cuda() or (None if triton else "torch.compile needs Triton, which is not installed")


def no_flashrnn() -> str | None:
    try:
        importlib.import_module("flashrnn.flashrnn")
    except ImportError:
        return "FlashRNN is not installed"
    except Exception as error:  # it looks for tools and compiles while it is imported
        return f"FlashRNN does not start: {error}"
    return None


def no_script() -> str | None:
    return None if hasattr(torch.jit, "script") else "this PyTorch has no TorchScript"


# ----------------------------------------------------------------------------------------- peers


@dataclass(frozen=True)
class Peer:
    """A contender besides rnnkernels."""

    label: str  # in tables
    make: Callable[[Problem], Contender]
    missing: Callable[[], str | None] = lambda: None  # why it cannot be measured here
    devices: tuple[str, ...] = ("cpu", "cuda")  # on which it is measured by default
    packs: bool = False  # accepts sequences of different lengths
    seconds: float = 0.0  # to make it for a new shape, about


PEERS: dict[str, Peer] = {
    "rnn": Peer("nn.RNN", make_nn_rnn, packs=True),
    "half": Peer("nn.RNN float16", HalfRnn, no_cuda, ("cuda",), packs=True),
    "graph": Peer("CUDA graph", GraphedLoop, no_cuda, ("cuda",), packs=True),
    "loop": Peer("loop", make_loop, packs=True),
    "script": Peer("TorchScript", make_script, no_script, ("cpu",)),
    "compile": Peer("compiled", make_compiled, no_compiler, ("cuda",), seconds=40.0),
    "scan": Peer("lax.scan", JaxScan, no_jax, seconds=4.0),
    "flash": Peer("FlashRNN", make_flashrnn, no_flashrnn, ("cuda",), seconds=60.0),
}
COMPILED_SIZES = {(128, 16), (512, 16)}  # H and B of the GPU grid; each takes a minute to compile


def label(contender: str) -> str:
    if contender in PEERS:
        return PEERS[contender].label
    return OURS if contender == OURS else f"{OURS}, {contender} alone"


def suits(peer: str, point: Point) -> bool:
    """Whether a peer is measured at a point if there is time for it."""
    if peer == "half" and point.precision != "bfloat16":
        return False
    if peer in ("compile", "flash"):  # they are compiled for each shape
        steps, sizes = point.cell.T, (point.cell.H, point.cell.B)
        if steps > GPU_STEPS or (point in gpu_grid() and sizes not in COMPILED_SIZES):
            return False
    return PEERS[peer].packs or not point.packed
