"""A gradient penalty, which needs second derivatives through the recurrence.

    loss = task + lambda * mean over the batch of (|d output / d input| - 1)^2

as in Wasserstein critics (Gulrajani et al. 2017, arXiv 1704.00028). The penalty contains a gradient, so
training differentiates the backward pass. Only `create_graph=True` is needed.

    python examples/gradient_penalty.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rnnkernels import LeakyRNN


class Critic(nn.Module):
    """Maps each sequence to one number."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.rnn = LeakyRNN(inputs, hidden, nonlinearity="tanh", decay=0.8)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences [T, B, I] to values [B]."""
        _, h_n = self.rnn(x)
        values: Tensor = self.readout(h_n[0])
        return values.squeeze(-1)


def gradient_penalty(critic: nn.Module, x: Tensor) -> Tensor:
    """The mean over the sequences [T, B, I] of (|d critic(x) / dx| - 1)^2, differentiable again."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (gradient.square().sum((0, 2)).sqrt() - 1).square().mean()


def train(updates: int = 200, weight: float = 10.0, seed: int = 0) -> list[float]:
    """Train a critic that tells noisy waves from noise; return the norm's distance from 1 per update."""
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
    print(f"root mean square of |gradient| - 1: {found[0]:.3f} at first, {found[-1]:.3f} at last")
