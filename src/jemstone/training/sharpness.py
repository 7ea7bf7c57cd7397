"""Sharpness-aware minimisation: the gradient at the worst point near the weights (Foret et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def ascended(parameters: Sequence[nn.Parameter], rho: float, *, adaptive: bool) -> Iterator[None]:
    """Weights moved to the estimated worst point of their neighbourhood; moved back exactly on leaving.

    The parameters must hold the gradient g at w. SAM moves by rho g / ||g||; ASAM (Kwon et al., ICML 2021), whose
    neighbourhood is relative to each weight, by rho w^2 g / ||w g||.
    """
    moved = [p for p in parameters if p.grad is not None]
    before = [p.detach().clone() for p in moved]
    gradients: list[Tensor] = [p.grad for p in moved if p.grad is not None]
    scaled = [p.detach().abs() * g if adaptive else g for p, g in zip(moved, gradients, strict=True)]
    norm = torch.stack([s.square().sum() for s in scaled]).sum().sqrt()
    try:
        with torch.no_grad():
            for p, s in zip(moved, scaled, strict=True):
                direction = p.abs() * s if adaptive else s
                p.add_(direction * (rho / (norm + 1e-12)))
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(moved, before, strict=True):
                p.copy_(value)
