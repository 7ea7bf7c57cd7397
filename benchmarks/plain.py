"""The baseline of every timing: one JEM step as the original algorithm reads, and as its users run it.

Float32, eager, images as (b, c, h, w), three forward passes, chains that keep their graph, a buffer in host memory that
is drawn from with replacement. (Grathwohl et al., ICLR 2020, Algorithm 1, with the sign of its second line set right.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class PlainJEM:
    """`step(labelled, y, real)` moves the chains, the weights and the buffer."""

    def __init__(
        self,
        network: nn.Module,
        input_shape: tuple[int, ...],
        *,
        chain_steps: int,
        step_size: float = 1.0,
        noise: float = 0.01,
        restart_rate: float = 0.05,
        buffer_size: int = 10_000,
        learning_rate: float = 1e-4,
    ) -> None:
        self.network = network
        self.device = next(network.parameters()).device
        self.shape = input_shape
        self.chain_steps, self.step_size, self.noise = chain_steps, step_size, noise
        self.restart_rate = restart_rate
        self.optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.999))
        self.buffer = self.noise_images(buffer_size)
        self.gap = float("nan")

    def noise_images(self, count: int) -> Tensor:
        """Starts of chains."""
        return torch.empty(count, *self.shape).uniform_(-1, 1)

    def negatives(self, count: int) -> Tensor:
        """End points of `count` chains, which go back to the buffer."""
        slots = torch.randint(0, len(self.buffer), (count,))
        fresh = (torch.rand(count) < self.restart_rate).float().view(-1, *[1] * len(self.shape))
        start = fresh * self.noise_images(count) + (1 - fresh) * self.buffer[slots]
        self.network.eval()
        x = start.to(self.device).requires_grad_()
        for _ in range(self.chain_steps):
            (slope,) = torch.autograd.grad(self.network(x).logsumexp(1).sum(), [x], retain_graph=True)
            x.data += self.step_size * slope + self.noise * torch.randn_like(x)
        self.network.train()
        end = x.detach()
        self.buffer[slots] = end.cpu()
        return end

    def step(self, labelled: Tensor, y: Tensor, real: Tensor) -> float:
        """One optimiser step on -log p(y|x) - log p(x); returns the loss."""
        negatives = self.negatives(len(real))
        real_density = self.network(real).logsumexp(1).mean()
        negative_density = self.network(negatives).logsumexp(1).mean()
        loss = cross_entropy(self.network(labelled), y) - (real_density - negative_density)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.gap = float((negative_density - real_density).detach())  # mean E(real) - mean E(negatives), nats
        return float(loss.detach())
