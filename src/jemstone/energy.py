"""Logits read as energies: the one idea that everything else stands on.

A classifier with logits f(x) in R^k defines, without a parameter more (JEM, Grathwohl et al., ICLR 2020, eq. 5-8):

    E(x, y) = -f_y(x)          p(x, y) = exp(f_y(x)) / Z
    E(x)    = -logsumexp f(x)  p(x)    = exp(-E(x)) / Z
    p(y|x)  = softmax(f(x))_y

Energies are in nats. Z is one unknown constant, so densities are known up to a constant that is the same for all x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jemstone.errors import ConfigError

EnergyGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (b, ...) -> (E(x) in nats (b,), grad E(x) (b, ...)). All that a sampler sees of a model."""


def marginal_energy(logits: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """E(x) = -logsumexp_y f_y(x), in nats. Adding c to all logits lowers it by c."""
    return -_wide(logits).logsumexp(dim=1)


def joint_energy(logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """E(x, y) = -f_y(x), in nats. `y` holds class indices in [0, k)."""
    return -_wide(logits).gather(1, y[:, None]).squeeze(1)


def _wide(logits: Tensor) -> Tensor:
    """At least float32: near 100 nats, bfloat16 tells energies apart only half a nat at a time."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class EnergyClassifier(nn.Module):
    """Any network that returns logits, read as an energy-based model.

    `network` maps a batch (b, ...) to logits (b, k): images, vectors, anything with a batch axis. `forward` returns
    those logits untouched, so every tool made for classifiers keeps working.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits f(x), (b, k)."""
        logits: Tensor = self.network(x)
        if logits.ndim != 2:
            raise ConfigError(
                f"The network returned shape {tuple(logits.shape)} for an input of shape {tuple(x.shape)}; "
                "an EnergyClassifier needs logits of shape (batch, classes). Wrap the network so that it returns them."
            )
        return logits

    def energy(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """E(x), or E(x, y) where class indices `y` (b,) are given; nats, (b,)."""
        logits = self(x)
        return marginal_energy(logits) if y is None else joint_energy(logits, y)

    def log_density(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x, y), up to the constant log Z that all inputs share; nats, (b,)."""
        return -self.energy(x, y)


def energy_gradient(model: EnergyClassifier, y: Tensor | None = None) -> EnergyGrad:
    """The function that yields E and grad_x E of `model`: the seam where precision, layout and compilation go.

    Only the gradient with respect to the input is computed: parameters neither need nor receive one. With class
    indices `y` (b,) it is E(x, y), one class per chain. An energy that does not depend on x has gradient 0.
    """

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = model.energy(x, y)
            if not energy.requires_grad:  # a model that ignores x, or cuts the path to it
                return energy, torch.zeros_like(x)
            (grad,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), grad

    return evaluate
