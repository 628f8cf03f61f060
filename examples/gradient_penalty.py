"""A gradient penalty: second derivatives through the recurrence, in two lines.

    loss = task + lambda * mean over the batch of (|d output / d input| - 1)^2

as in Wasserstein critics (Gulrajani et al. 2017, arXiv 1704.00028). The penalty holds a gradient, so training
it differentiates the backward pass; `create_graph=True` is all that this takes.

    python examples/gradient_penalty.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnkernels import LeakyRNN


class Critic(nn.Module):
    """One number for each sequence."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.rnn = LeakyRNN(inputs, hidden, nonlinearity="tanh", decay=0.8)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, I] -> [B]."""
        _, h_n = self.rnn(x)
        values: Tensor = self.readout(h_n[0])
        return values.squeeze(-1)


def gradient_penalty(critic: nn.Module, x: Tensor) -> Tensor:
    """The mean over the sequences [T, B, I] of (|d critic(x) / dx| - 1)^2, differentiable again."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (gradient.square().sum((0, 2)).sqrt() - 1).square().mean()


def train(updates: int = 200, weight: float = 10.0, seed: int = 0) -> list[float]:
    """A critic of noisy waves against noise; returns the norm's distance from 1, update by update."""
    torch.manual_seed(seed)
    critic = Critic(2, 32)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    time = torch.linspace(0, 6, 30)
    waves = torch.stack([time.sin(), time.cos()], -1).unsqueeze(1)
    distances = []
    for _ in range(updates):
        noise = torch.randn(30, 16, 2)
        real = waves + 0.3 * torch.randn_like(noise)
        between = torch.lerp(real, noise, torch.rand(1, 16, 1))
        penalty = gradient_penalty(critic, between)
        loss = critic(noise).mean() - critic(real).mean() + weight * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(penalty.item() ** 0.5)
    return distances


if __name__ == "__main__":
    found = train()
    print(f"| |gradient| - 1 |, root mean square: {found[0]:.3f} at first, {found[-1]:.3f} at last")
