"""Chains run for their end points: samples from p(x) or p(x|y)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.networks.modes import in_mode
from jemstone.sampling.initial import Initial
from jemstone.sampling.kernels import Sampler, run_chains


def generate(
    model: EnergyClassifier,
    initial: Initial,
    sampler: Sampler,
    labels: Int[Tensor, " n"],
    steps: int,
    rng: torch.Generator,
    *,
    by_class: bool = True,
    batch_size: int = 256,
) -> Float[Tensor, "n ..."]:
    """Fresh samples: start a chain for each label and run it `steps` steps, in eval mode.

    With `by_class` each chain descends E(x, y) of its label and so samples p(x|y); without, it descends E(x) and the
    label only chooses the start.
    """
    samples = []
    with in_mode(model, training=False):
        for part in torch.split(labels, batch_size):
            start = initial(part, rng)
            energy_grad = energy_gradient(model, part if by_class else None)
            samples.append(run_chains(sampler, start, energy_grad, steps, rng)[0])
    return torch.cat(samples)
