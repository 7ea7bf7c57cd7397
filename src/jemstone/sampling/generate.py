"""Chains run for their end points: samples from p(x) or p(x|y)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.execution import PLAIN, Execution
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
    execution: Execution = PLAIN,
) -> Float[Tensor, "n ..."]:
    """Fresh samples: start a chain for each label and run it `steps` steps, in eval mode.

    With `by_class` each chain descends E(x, y) of its label and so samples p(x|y); without, it descends E(x) and the
    label only chooses the start. Chains run `batch_size` at a time, computed as `execution` says; samples are float32.
    Beyond the samples themselves, memory is that of one such part.
    """
    samples: Tensor | None = None
    with in_mode(model, training=False):
        for number, part in enumerate(torch.split(labels, batch_size)):
            start = initial(part, rng)  # never in bfloat16: class Gaussians are made by a matrix product
            if samples is None:
                samples = start.new_empty(len(labels), *start.shape[1:])
            energy_grad = energy_gradient(model, part if by_class else None, execution=execution)
            with execution.autocast(start.device):  # around all steps: weights are cast once
                x, _ = run_chains(sampler, execution.place(start), energy_grad, steps, rng)
            samples[number * batch_size :][: len(part)] = x
    assert samples is not None, "no label at all is one part, too"
    return samples
