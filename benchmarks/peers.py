"""The contenders: rnnkernels itself and what it is measured against, all behind one interface.

Each is made from the same `Problem`, starts from a zero state, and has two timed calls:

- `forward()`: the output of all steps, no gradients recorded, input projection included;
- `forward_backward()`: the same with gradients of the four weights for a given gradient of the
  output. The input is data and gets none. Gradients are dropped (None) at the next call.

All but `torch.nn.RNN`, which knows no leak, compute the leaky recurrence in its rate form:

    h_t = d h_{t-1} + (1 - d) relu(W_ih x_t + b_ih + b_hh + W_hh h_{t-1})
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.dlpack import from_dlpack

OURS = "rnnkernels"
WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class Cell(NamedTuple):
    """The sizes of one measurement: batch, steps, inputs, hidden units."""

    B: int
    T: int
    I: int  # noqa: E741 - the names of the sizes are the project's legend
    H: int

    def __str__(self) -> str:
        return f"B {self.B}, T {self.T}, I {self.I}, H {self.H}"

    def recurrence_flops(self, backward: bool) -> float:
        """Of h W_hh^T alone: one product forward, two more backward (to h and to W_hh)."""
        return (6.0 if backward else 2.0) * self.T * self.B * self.H * self.H


@dataclass(frozen=True)
class Problem:
    """What every contender of a cell is given."""

    cell: Cell
    decay: float
    x: Tensor  # [T, B, I]
    weights: dict[str, Tensor]  # named as in torch.nn.RNN
    grad_output: Tensor  # [T, B, H]


def widened(problem: Problem, decay: float) -> Problem:
    """The same numbers, in a dtype with digits enough to judge by."""

    def wide(x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))

    weights = {name: wide(weight) for name, weight in problem.weights.items()}
    return Problem(problem.cell, decay, wide(problem.x), weights, wide(problem.grad_output))


class Results(NamedTuple):
    output: Tensor
    gradients: dict[str, Tensor]


class Contender(Protocol):
    decay: float  # what it really computes; the check compares like with like

    def forward(self) -> object: ...

    def forward_backward(self) -> object: ...

    def results(self) -> Results: ...


def make_problem(cell: Cell, dtype: torch.dtype, decay: float, seed: int) -> Problem:
    """Random data of magnitudes at which a ReLU network neither dies nor grows over any T."""
    chance = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=chance, dtype=dtype).mul_(scale)

    weights = {
        "weight_ih_l0": normal(cell.H, cell.I, scale=cell.I**-0.5),
        # ReLU halves the power, so 1/sqrt(H) keeps the recurrent share of it at one half.
        "weight_hh_l0": normal(cell.H, cell.H, scale=cell.H**-0.5),
        "bias_ih_l0": normal(cell.H, scale=0.1),
        "bias_hh_l0": normal(cell.H, scale=0.1),
    }
    x = normal(cell.T, cell.B, cell.I, scale=1.0)
    # All of one sign: sums over steps add up, and one unit whose input rounds to the other side
    # of zero stays invisible in the check of the gradients.
    grad_output = torch.rand(cell.T, cell.B, cell.H, generator=chance, dtype=dtype)
    return Problem(cell, decay, x, weights, grad_output)


class TorchContender:
    """Whatever autograd can differentiate: a function of x, and the leaves behind it."""

    def __init__(
        self,
        problem: Problem,
        layer: Callable[[Tensor], Tensor],
        leaves: Mapping[str, Tensor],
        x: Tensor | None = None,
        decay: float | None = None,
    ) -> None:
        self.decay = problem.decay if decay is None else decay
        self._layer = layer
        self._leaves = dict(leaves)
        self._x = problem.x if x is None else x
        self._grad_output = problem.grad_output

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self._layer(self._x)

    def forward_backward(self) -> Tensor:
        for leaf in self._leaves.values():
            leaf.grad = None
        output = self._layer(self._x)
        torch.autograd.backward(output, self._grad_output)
        return output

    def results(self) -> Results:
        output = self.forward_backward().detach()
        gradients = {}
        for name, leaf in self._leaves.items():
            if leaf.grad is None:
                raise RuntimeError(f"no gradient of {name} was computed")
            gradients[name] = leaf.grad
        return Results(output, gradients)


def _from_module(problem: Problem, module: torch.nn.Module, decay: float) -> TorchContender:
    """A module with torch.nn.RNN's parameters and call."""
    leaves = {name: getattr(module, name) for name in WEIGHTS}
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(problem.weights[name])

    def layer(x: Tensor) -> Tensor:
        output: Tensor = module(x)[0]
        return output

    return TorchContender(problem, layer, leaves, decay=decay)


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
        pre = F.linear(problem.x, w["weight_ih_l0"], w["bias_ih_l0"] + w["bias_hh_l0"])
        weight_hh = w["weight_hh_l0"].clone().requires_grad_()
        h0 = pre.new_zeros(pre.shape[1:])

        def layer(pre: Tensor) -> Tensor:
            output: Tensor = leaky_recurrence(pre, h0, weight_hh, problem.decay)[0]
            return output

        leaves = {"weight_hh_l0": weight_hh, "pre": pre.requires_grad_()}
        super().__init__(problem, layer, leaves, x=pre)

    def results(self) -> Results:
        """The gradient of `pre`, summed over steps and batch, is the biases' of the whole layer."""
        output, gradients = super().results()
        gradients["bias_ih_l0"] = gradients.pop("pre").sum((0, 1))
        return Results(output, gradients)


def make_nn_rnn(problem: Problem) -> Contender:
    cell = problem.cell
    module = torch.nn.RNN(cell.I, cell.H, nonlinearity="relu", dtype=problem.x.dtype)
    return _from_module(problem, module, 0.0)


def leaky_loop(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    decay: float,
) -> Tensor:
    """The loop as well as it can be written: one projection, three operations a step.

    `unbind` matters: the gradient of `pre[t]` is a zero-filled copy of all of `pre` for each t.
    """
    pre = F.linear(x, weight_ih, bias_ih + bias_hh)
    weight = weight_hh.t()
    h = torch.zeros_like(pre[0])
    outputs = []
    for p in pre.unbind(0):
        h = torch.lerp(torch.relu(torch.addmm(p, h, weight)), h, decay)
        outputs.append(h)
    return torch.stack(outputs)


def naive_loop(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    decay: float,
) -> Tensor:
    """The loop as it is mostly found: the formula typed in, steps taken by index."""
    pre = F.linear(x, weight_ih, bias_ih) + bias_hh
    h = torch.zeros_like(pre[0])
    outputs = []
    for t in range(x.shape[0]):
        h = decay * h + (1 - decay) * torch.relu(pre[t] + F.linear(h, weight_hh))
        outputs.append(h)
    return torch.stack(outputs)


def _from_loop(problem: Problem, loop: Callable[..., Tensor]) -> Contender:
    leaves = {name: problem.weights[name].clone().requires_grad_() for name in WEIGHTS}
    values = list(leaves.values())
    return TorchContender(problem, lambda x: loop(x, *values, problem.decay), leaves)


def make_loop(problem: Problem) -> Contender:
    return _from_loop(problem, leaky_loop)


def make_naive_loop(problem: Problem) -> Contender:
    return _from_loop(problem, naive_loop)


def make_script(problem: Problem) -> Contender:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still what many codebases run
        return _from_loop(problem, torch.jit.script(leaky_loop))


class JaxScan:
    """The same loop under jax.lax.scan, compiled. (Unrolling the scan made it no faster.)"""

    def __init__(self, problem: Problem) -> None:
        self._jax = jax = _import_jax()
        jnp, decay = jax.numpy, problem.decay
        self.decay = decay
        if problem.x.dtype == torch.float64:
            jax.config.update("jax_enable_x64", True)

        def layer(weights: dict[str, Any], x: Any) -> Any:
            pre = x @ weights["weight_ih_l0"].T + (weights["bias_ih_l0"] + weights["bias_hh_l0"])

            def step(h: Any, p: Any) -> tuple[Any, Any]:
                z = p + h @ weights["weight_hh_l0"].T
                h = decay * h + (1 - decay) * jax.nn.relu(z)
                return h, h

            return jax.lax.scan(step, jnp.zeros_like(pre[0]), pre)[1]

        def layer_and_gradients(weights: dict[str, Any], x: Any, grad_output: Any) -> Any:
            output, pull_back = jax.vjp(lambda weights: layer(weights, x), weights)
            return output, pull_back(grad_output)[0]

        self._layer, self._layer_and_gradients = jax.jit(layer), jax.jit(layer_and_gradients)

        def to_jax(x: Tensor) -> Any:
            if x.dtype == torch.bfloat16:  # which NumPy does not have
                return jnp.asarray(x.float().numpy(), dtype=jnp.bfloat16)
            return jnp.asarray(x.numpy())

        self._weights = {name: to_jax(w) for name, w in problem.weights.items()}
        self._x, self._grad_output = to_jax(problem.x), to_jax(problem.grad_output)

    def forward(self) -> Any:
        return self._jax.block_until_ready(self._layer(self._weights, self._x))

    def forward_backward(self) -> Any:
        result = self._layer_and_gradients(self._weights, self._x, self._grad_output)
        return self._jax.block_until_ready(result)

    def results(self) -> Results:
        output, gradients = self.forward_backward()
        return Results(
            from_dlpack(output),
            {name: from_dlpack(gradient) for name, gradient in gradients.items()},
        )


def give_jax_threads(threads: int) -> None:
    """JAX takes its number of CPU threads from the environment, once, when it starts."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["NPROC"] = str(threads)
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def _import_jax() -> Any:
    return importlib.import_module("jax")


def _no_jax() -> str | None:
    try:
        _import_jax()
    except ImportError:
        return "JAX is not installed"
    except RuntimeError as error:  # a jaxlib of another version
        return f"JAX does not start: {error}"
    return None


def _no_script() -> str | None:
    return None if hasattr(torch.jit, "script") else "this PyTorch has no TorchScript"


@dataclass(frozen=True)
class Peer:
    """A contender beside ours: its label in the table, and why it may be missing here."""

    label: str
    make: Callable[[Problem], Contender]
    missing: Callable[[], str | None] = lambda: None
    default: bool = True


PEERS: dict[str, Peer] = {
    "rnn": Peer("nn.RNN", make_nn_rnn),
    "loop": Peer("loop", make_loop),
    "script": Peer("TorchScript", make_script, _no_script),
    "scan": Peer("lax.scan", JaxScan, _no_jax),
    "naive": Peer("naive loop", make_naive_loop, default=False),
}
