"""Scores of how much an input looks like the training data, read off the logits and the energy.

A score is higher for in-distribution inputs, always. Scores are ranked as they are: squashing energies through a
sigmoid would tie most of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.energy import EnergyClassifier, energy_gradient, joint_energy
from jemstone.networks.modes import statistics_of_negatives
from jemstone.rng import generator
from jemstone.sampling import Sampler, run_chains

Score = Callable[[EnergyClassifier, Tensor], Tensor]
"""(model, x (b, ...)) -> (b,), higher = more in-distribution."""


def log_density(model: EnergyClassifier, x: Tensor) -> Float[Tensor, " b"]:
    """log p(x) + log Z = logsumexp_y f_y(x), nats. On a plain classifier: the energy score (Liu et al., 2020)."""
    return model.log_density(x)


def max_logit(model: EnergyClassifier, x: Tensor) -> Float[Tensor, " b"]:
    """max_y f_y(x), nats: the baseline of Hendrycks et al. (ICML 2022).

    Since f_y(x) = log p(x, y) + log Z, this is the joint log density at the predicted class: the score that a paper on
    JEM calls log p(x, y), and the max-logit score of a plain classifier, are one number.
    """
    logits: Tensor = model(x)
    return -joint_energy(logits, logits.argmax(dim=1))


def max_probability(model: EnergyClassifier, x: Tensor) -> Float[Tensor, " b"]:
    """max_y p(y|x) (Hendrycks and Gimpel, ICLR 2017), in float64: in float32 all confident inputs tie at 1."""
    return _posterior(model, x).amax(dim=1)


def negative_entropy(model: EnergyClassifier, x: Tensor) -> Float[Tensor, " b"]:
    """-H[p(y|x)] = sum_y p(y|x) log p(y|x), nats in [-log k, 0], in float64 for the same reason."""
    entropy: Tensor = torch.special.entr(_posterior(model, x)).sum(dim=1)
    return -entropy


def approximate_mass(model: EnergyClassifier, x: Tensor) -> Float[Tensor, " b"]:
    """-||grad_x log p(x)||_2 (JEM, Grathwohl et al., ICLR 2020, eq. 10), nats per unit of x.

    A typical point lies in a region of high mass, where the density is flat; an isolated mode is dense and steep.
    """
    _, grad = energy_gradient(model)(x)
    steepness: Tensor = torch.linalg.vector_norm(grad.flatten(1), dim=1)
    return -steepness


SCORES: dict[str, Score] = {
    "log_density": log_density,
    "max_logit": max_logit,
    "max_probability": max_probability,
    "negative_entropy": negative_entropy,
    "approximate_mass": approximate_mass,
}
"""The scores that need nothing but a model."""


def refined_density(sampler: Sampler, steps: int, seed: int, *position: str | int) -> Score:
    """A score: log p(x_k) + log Z, nats, where x_k is x after `steps` steps of the model's own `sampler`.

    What the sampler pulls to the data lies in the basin of the data, however unlikely it was itself. Chains descend
    E(x), under the statistics of negatives where the model keeps these apart (as in training); the end point is scored
    like any input. The noise follows from `seed` and `position` alone: every call draws the same, so a data set that
    is scored in batches gives each batch a position of its own.
    """

    def score(model: EnergyClassifier, x: Tensor) -> Float[Tensor, " b"]:
        rng = generator(seed, "refined_density", *position, device=x.device)
        with statistics_of_negatives(model):
            end, _ = run_chains(sampler, x, energy_gradient(model), steps, rng)
        return model.log_density(end)

    return score


def _posterior(model: EnergyClassifier, x: Tensor) -> Float[Tensor, "b k"]:
    logits: Tensor = model(x)
    return logits.cpu().double().softmax(dim=1)  # first to the CPU: not every device has float64
