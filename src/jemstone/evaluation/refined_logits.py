"""The refined classifier: logits after k sampling steps, as a function that an attacker can differentiate."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.energy import EnergyClassifier, EnergyGrad, energy_gradient
from jemstone.networks.modes import statistics_of_negatives
from jemstone.sampling.kernels import Sampler

Gradient = Literal["none", "exact", "straight"]


def refined_logits(
    model: EnergyClassifier,
    sampler: Sampler,
    x: Float[Tensor, "b ..."],
    steps: int,
    draws: int,
    rng: torch.Generator,
    *,
    gradient: Gradient = "none",
) -> Float[Tensor, "b k"]:
    """Mean of f(x_k) over `draws` chains of `steps` steps of E(x) that start at x; f(x) itself for no steps.

    `gradient` says what autograd sees of the sampling; values are the same. "exact": all of it, second derivatives of
    the energy included; one step has the Jacobian I - a Hess E(x). Where the kernel clips the gradient only I is left,
    and where it clamps a pixel to the box nothing: the true derivative, yet blind to what lies behind the kink. With
    ReLUs, whose logits have no curvature, Hess E = -Cov_{p(y|x)}(grad f_y). A Metropolis test (MALA) is held at the
    decisions drawn. "straight": every step is taken for the identity (BPDA; Athalye et al. 2018), an approximation
    that crosses the kinks and needs no second derivative. "none": nothing, for evaluation.
    """
    if steps == 0:
        logits: Tensor = model(x)
        return logits
    energy_grad = _differentiable_gradient(model) if gradient == "exact" else energy_gradient(model)
    with statistics_of_negatives(model):  # chains are normalised as in training, what is classified as data are
        start = x.repeat_interleave(draws, dim=0)
        state = sampler.init(start if gradient == "exact" else start.detach(), energy_grad)
        for _ in range(steps):
            state, _ = sampler.step(state, energy_grad, rng)
    end = state.x if gradient != "straight" else state.x + (start - start.detach())
    every: Tensor = model(end).unflatten(0, (len(x), draws))
    return every.mean(dim=1)


def _differentiable_gradient(model: EnergyClassifier) -> EnergyGrad:
    """As `energy_gradient`, of an x that autograd follows; what is returned can be differentiated again."""

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        energy = model.energy(x)
        (grad,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy, grad

    return evaluate
