"""Chains that are told something: known entries, a noisy observation, a point and the class to move it toward.

Each changes the energy that a kernel sees and leaves the kernel as it is. So whatever law a kernel samples on its own,
exp(-E / T) at its temperature T, it samples here for the changed energy.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jemstone.energy import EnergyClassifier, EnergyGrad, energy_gradient
from jemstone.errors import ConfigError
from jemstone.networks.modes import in_mode
from jemstone.sampling.kernels import Sampler, run_chains


def anchored(energy_grad: EnergyGrad, centre: Float[Tensor, "b ..."], deviation: float) -> EnergyGrad:
    """E(x) + ||x - centre||^2 / (2 deviation^2), row by row: the energy of p(x) N(centre; x, deviation^2 I).

    `deviation` is in the units of x: of [-1, 1] images, twice that among [0, 1] pixels. The added term has curvature
    1 / deviation^2, so unadjusted steps need step_size < 2 deviation^2 not to swing ever wider around the centre.
    """
    if not deviation > 0:
        raise ConfigError(f"The deviation that anchors x must be positive, got {deviation}.")
    precision = deviation**-2

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        energy, grad = energy_grad(x)
        apart = x - centre
        return energy + precision / 2 * apart.flatten(1).square().sum(dim=1), grad + precision * apart

    return evaluate


def denoise(
    energy_grad: EnergyGrad,
    sampler: Sampler,
    noisy: Float[Tensor, "b ..."],
    steps: int,
    rng: torch.Generator,
    *,
    deviation: float,
) -> Float[Tensor, "b ..."]:
    """End points of chains on the posterior of x given noisy = x + deviation xi, xi ~ N(0, I), started at `noisy`.

    Bayes' rule on p(x) ~ exp(-E(x)): they sample exp(-(E(x) + ||x - noisy||^2 / (2 deviation^2)) / T), the posterior
    itself at T = 1 and close to its mode at a small T. A model trained by short cold chains shapes p(x)^(1/T') for an
    unknown T' < 1: `deviation` / sqrt(T') then balances prior and observation, a number to choose on held-out data.
    """
    x, _ = run_chains(sampler, noisy, anchored(energy_grad, noisy, deviation), steps, rng)
    return x


def inpaint(
    energy_grad: EnergyGrad,
    sampler: Sampler,
    x: Float[Tensor, "b ..."],
    known: Bool[Tensor, "*row"],
    steps: int,
    rng: torch.Generator,
) -> Float[Tensor, "b ..."]:
    """End points of chains on p(unknown | known); known entries come back bit for bit.

    The kernel moves the vector of unknown entries and no other, so that this is exact whenever the kernel is: E of the
    whole x, its gradient, noise, norm, clip and acceptance test in the unknown coordinates alone. `known` is of the
    shape of one input or of all of `x`, where each row has the same number of unknown entries. These start as they are
    in `x`.

    Raises ConfigError where `known` does not fit, or leaves nothing unknown.
    """
    if known.shape not in (x.shape, x.shape[1:]):
        raise ConfigError(f"`known` has shape {tuple(known.shape)}; it must be that of x, {tuple(x.shape)}, or a row.")
    free = ~known.to(x.device).expand_as(x)
    counts = free.flatten(1).sum(dim=1)
    if not (len(x) and int(counts.min()) == int(counts.max()) > 0):
        raise ConfigError("Every row needs the same number of unknown entries, at least one: inpaint rows in groups.")

    def whole(unknown: Tensor) -> Tensor:
        filled = x.detach().clone()
        filled[free] = unknown.flatten()
        return filled

    def of_unknown(unknown: Tensor) -> tuple[Tensor, Tensor]:
        energy, grad = energy_grad(whole(unknown))
        return energy, grad[free].view_as(unknown)

    unknown, _ = run_chains(sampler, x[free].view(len(x), -1), of_unknown, steps, rng)
    return whole(unknown)


def counterfactual(
    model: EnergyClassifier,
    sampler: Sampler,
    x: Float[Tensor, "b ..."],
    labels: Int[Tensor, " b"],
    steps: int,
    rng: torch.Generator,
    *,
    radius: float,
) -> Float[Tensor, "b ..."]:
    """What the model would change in `x` to see class `labels`: chains on E(x', y) + ||x' - x||^2 / (2 radius^2).

    E(x', y) = -f_y(x') asks for the class and for density at once, the anchor for staying near. A large `radius`
    (L2, in the units of x) ends in a sample of the class, a small one close to where it began; step_size must be under
    2 radius^2. Started at `x`, run in eval mode. Whether the class is reached, softmax(model(x')) tells.
    """
    with in_mode(model, training=False):
        x_new, _ = run_chains(sampler, x, anchored(energy_gradient(model, labels), x.detach(), radius), steps, rng)
    return x_new
