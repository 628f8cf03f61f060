"""Trains thirty-two seeds of one network at once: torch.vmap over stacked weights is one kernel call.

The task: the input is a cue of +1 or -1 under noise for five steps, then noise alone; at the end the
network reports the sign of the cue. Every seed draws its own weights and time constants, and all seeds
see the same batches. Adam on the stacked weights equals Adam on each network, because its update is
elementwise. The script prints the spread of the losses over the seeds, the time it took, and the time
that one seed after the other would take. It writes seeds.png if matplotlib is installed.
"""

from __future__ import annotations

import copy
import importlib
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from rnnkernels import LeakyRNN, draw_decay

CUE = 5  # steps


class Memory(nn.Module):
    """A leaky network and a readout of its last state."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        decay = draw_decay(hidden, low=0.02, high=0.5, log_uniform=True)
        self.recurrence = LeakyRNN(1, hidden, nonlinearity="softplus", decay=decay)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, cue: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.recurrence(cue)[1][0])
        return logits.squeeze(-1)


def draw_batch(steps: int, batch: int) -> tuple[Tensor, Tensor]:
    """Cues ``[T, B, 1]`` under noise of the same size, and their signs (0 or 1) ``[B]``."""
    target = torch.randint(2, (batch,)).float()
    cue = torch.randn(steps, batch, 1)
    cue[:CUE] += (2 * target - 1)[:, None]
    return cue, target


def losses_of(
    model: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], cue: Tensor, target: Tensor
) -> Tensor:
    """One loss per seed, ``[seeds]``."""

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        logits = functional_call(model, (weights, buffers), (cue,))
        return nn.functional.binary_cross_entropy_with_logits(logits, target)

    result: Tensor = vmap(loss)(weights, buffers)
    return result


def train(networks: Sequence[nn.Module], updates: int, steps: int, batch: int, lr: float) -> Tensor:
    """Train all networks at once; return the losses ``[updates, seeds]``. The networks are changed."""
    weights, buffers = stack_module_state(list(networks))
    model = copy.deepcopy(networks[0]).to("meta")
    optimizer = torch.optim.Adam(weights.values(), lr)
    curve = []
    for _ in range(updates):
        losses = losses_of(model, weights, buffers, *draw_batch(steps, batch))
        optimizer.zero_grad()
        torch.autograd.backward(losses.sum())
        optimizer.step()
        curve.append(losses.detach())
    with torch.no_grad():
        for name, stacked in weights.items():
            for network, value in zip(networks, stacked, strict=True):
                network.get_parameter(name).copy_(value)
    return torch.stack(curve)


def seconds(task: Callable[[], object]) -> float:
    begin = time.perf_counter()
    task()
    return time.perf_counter() - begin


def draw(curve: Tensor, path: str) -> str:
    """Draw the loss curves of the seeds and their median."""
    try:
        plot: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return "no picture: matplotlib is not installed"
    figure = plot.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(curve.numpy(), color="#1f4e79", alpha=0.25, linewidth=1)
    axes.semilogy(curve.median(1).values.numpy(), color="#e08e45", linewidth=2, label="median")
    axes.set(xlabel="update", ylabel="loss (nats)", title=f"{curve.shape[1]} seeds in one call")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return f"picture: {path}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name, value in (("seeds", 32), ("updates", 300), ("steps", 50), ("batch", 32), ("hidden", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--picture", default="seeds.png")
    options = parser.parse_args(arguments)
    networks = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        networks.append(Memory(options.hidden))
    settings = (options.steps, options.batch, options.lr)
    curves: list[Tensor] = []
    together = seconds(lambda: curves.append(train(networks, options.updates, *settings)))
    few = max(1, options.updates // 10)
    alone = seconds(lambda: [train([copy.deepcopy(n)], few, *settings) for n in networks])
    (curve,) = curves
    last = curve[-few:].mean(0).sort().values
    print(f"loss of the last {few} of {options.updates} updates, over the seeds: least {last[0]:.3f},")
    print(f"median {last.median():.3f}, most {last[-1]:.3f}; chance is 0.693")
    print(f"{options.seeds} seeds together: {together:.1f} s; one after the other: ", end="")
    print(f"about {alone * options.updates / few:.1f} s (from {few} updates each)")
    print(draw(curve, options.picture))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
