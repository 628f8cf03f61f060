"""The contenders: rnnkernels itself and what it is measured against, all behind one interface (problem.py).

All but `torch.nn.RNN` and FlashRNN, which know no leak, compute the leaky recurrence in its rate form:

    h_t = d h_{t-1} + (1 - d) relu(W_ih x_t + b_ih + b_hh + W_hh h_{t-1})
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .gpu_peers import GraphedLoop, make_compiled, make_flashrnn, no_compiler, no_cuda, no_flashrnn
from .jax_scan import JaxScan, no_jax
from .loops import make_loop, make_naive_loop, make_script
from .problem import WEIGHTS, Contender, Problem, Results, TorchContender


def _from_module(problem: Problem, module: torch.nn.Module, decay: float) -> TorchContender:
    """A module with torch.nn.RNN's parameters and call."""
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
    from rnnkernels import LeakyRNN

    cell, dtype = problem.cell, problem.x.dtype
    module = LeakyRNN(cell.I, cell.H, decay=problem.decay, dtype=dtype)
    return _from_module(problem, module, problem.decay)


class Recurrence(TorchContender):
    """rnnkernels without the input projection: what is compared with the machine's GEMM rate."""

    def __init__(self, problem: Problem) -> None:
        from rnnkernels.functional import leaky_recurrence

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
        """The gradient of `pre`, summed over steps and batch, is the biases' of the whole layer."""
        output, gradients = super().results()
        gradients["bias_ih_l0"] = gradients.pop("pre").flatten(0, -2).sum(0)
        return Results(output, gradients)


def make_nn_rnn(problem: Problem) -> Contender:
    cell = problem.cell
    module = torch.nn.RNN(cell.I, cell.H, nonlinearity="relu", dtype=problem.x.dtype)
    return _from_module(problem, module, 0.0)


class HalfRnn:
    """nn.RNN in float16, which cuDNN takes where it may not take bfloat16; gradients scaled to its range."""

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


def _no_script() -> str | None:
    return None if hasattr(torch.jit, "script") else "this PyTorch has no TorchScript"


@dataclass(frozen=True)
class Peer:
    """A contender beside ours: its label in the table, and why it may be missing here."""

    label: str
    make: Callable[[Problem], Contender]
    missing: Callable[[], str | None] = lambda: None
    default_on: tuple[str, ...] = ("cpu", "cuda")  # measured there where nobody names the peers
    packs: bool = False  # takes sequences of different lengths


PEERS: dict[str, Peer] = {
    "rnn": Peer("nn.RNN", make_nn_rnn, packs=True),
    "half": Peer("nn.RNN float16", HalfRnn, no_cuda, ("cuda",), packs=True),
    "graph": Peer("CUDA graph", GraphedLoop, no_cuda, ("cuda",), packs=True),
    "loop": Peer("loop", make_loop, packs=True),
    "script": Peer("TorchScript", make_script, _no_script, ("cpu",)),
    "compile": Peer("compiled", make_compiled, no_compiler, ("cuda",)),
    "scan": Peer("lax.scan", JaxScan, no_jax),
    "flash": Peer("FlashRNN", make_flashrnn, no_flashrnn, ("cuda",)),
    "naive": Peer("naive loop", make_naive_loop, default_on=()),
}
