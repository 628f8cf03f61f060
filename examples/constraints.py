"""Trains a rate network under constraints on its connections and counts their violations. Takes a few
seconds.

The task is memory: a pulse of random height arrives at step 0, and after 10 steps the network must report
its height. Each constraint is registered for the recurrent weights with torch.nn.utils.parametrize, the
network is trained, and the violations of the constraint are counted in the trained weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from rnnkernels import LeakyRNN, constraints

HIDDEN, STEPS, BATCH = 40, 10, 64


def constrained() -> dict[str, tuple[list[nn.Module], str]]:
    """For each name, the constraints to register and a description of their violations."""
    signs = torch.ones(HIDDEN)
    signs[int(0.8 * HIDDEN) :] = -1  # four excitatory units per inhibitory unit
    sparse = torch.rand(HIDDEN, HIDDEN) < 0.3
    no_self = constraints.no_self_connections(HIDDEN)
    return {
        "Dale's law": ([constraints.DaleLaw(signs)], "wrong signs"),
        "fixed mask, 30 %": ([constraints.Mask(sparse)], "connections outside"),
        "no self-connections": ([no_self], "connections on the diagonal"),
        "rank 2": ([constraints.LowRank(2)], "singular values beyond 2"),
        "Dale's law, no self-connections": ([constraints.DaleLaw(signs), no_self], "violations of both"),
    }


def violations(weight: Tensor, modules: list[nn.Module]) -> int:
    """The number of entries (or singular values) of the weight that violate the constraints."""
    count = 0
    for module in modules:
        if isinstance(module, constraints.DaleLaw):
            count += int((weight * module.signs < 0).sum())
        elif isinstance(module, constraints.Mask):
            count += int((weight[~module.mask] != 0).sum())
        elif isinstance(module, constraints.LowRank):
            values = torch.linalg.svdvals(weight)
            count += int((values[module.rank :] > 1e-5 * values[0]).sum())
    return count


def train(modules: list[nn.Module], updates: int = 300) -> tuple[float, float, Tensor]:
    """Return the loss before and after training, and the trained weight."""
    rnn, readout = LeakyRNN(1, HIDDEN, nonlinearity="tanh", decay=0.9), nn.Linear(HIDDEN, 1)
    for module in modules:
        register_parametrization(rnn, "weight_hh_l0", module)
    optimizer = torch.optim.Adam([*rnn.parameters(), *readout.parameters()], lr=1e-2)
    losses = []
    for _ in range(updates):
        height = torch.rand(BATCH, 1)
        x = torch.zeros(STEPS, BATCH, 1)
        x[0] = height
        loss = nn.functional.mse_loss(readout(rnn(x)[0][-1]), height)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], sum(losses[-5:]) / 5, rnn.weight_hh_l0.detach()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a small network
    print(f"{'constraint':34}{'loss before':>12}{'after':>9}   violations")
    for name, (modules, unit) in constrained().items():
        before, after, weight = train(modules)
        print(f"{name:34}{before:12.4f}{after:9.4f}   {violations(weight, modules)} {unit}")


if __name__ == "__main__":
    main()
