"""The normaliser of an energy, by annealed importance sampling (Neal, Statistics and Computing 2001).

Chains start from a density p0 whose normaliser is known and follow the geometric path

    log f_b(x) = (1 - b) log p0(x) - b E(x),    b = 0 ... 1,

with Metropolis-adjusted Langevin steps that leave f_b invariant. The weight of a chain,

    log w = sum_k (b_k - b_{k-1}) (-E(x_{k-1}) - log p0(x_{k-1})),

satisfies E[w] = Z = integral of exp(-E), however few the temperatures and however poor the steps. By Jensen's
inequality the logarithm of a mean of weights is too low on average, the more so the more the weights vary.

In a box the chains move in u = logit((x - low) / (high - low)) on the energy that the change of variables gives, so
that none can leave. Images crowd at the walls: steps in x would be as short as the thinnest layer of any pixel, since
one pixel outside is a proposal lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from jemstone.energy import EnergyGrad
from jemstone.errors import ConfigError
from jemstone.sampling.kernels import Box, ChainState, mala

TARGET = 0.574
"""The acceptance that MALA's steps are tuned to (Roberts and Rosenthal 1998)."""
WARM_UP = 50
"""Steps at b = 0 with which tuning begins."""
GAIN = 0.6
"""How far the logarithm of the step follows the acceptance of one step."""


class Base(NamedTuple):
    """A density p0 with a known normaliser, from which chains start.

    `sample(n, rng)` draws x (n, ...) exactly, on the device of `rng`; `log_density(x)` is log p0, nats (n,), normalised
    and differentiable. In a box both live inside it.
    """

    sample: Callable[[int, torch.Generator], Tensor]
    log_density: Callable[[Tensor], Tensor]


class AnnealedResult(NamedTuple):
    """Logarithms of the chains' importance weights, whose mean estimates Z, and how the steps between fared."""

    log_weights: Float[Tensor, " n"]
    """Nats, float64, on the CPU."""
    acceptance: Float[Tensor, " t"]
    """Share of proposals taken at each of the temperatures between the ends."""


def sigmoid_schedule(temperatures: int, steepness: float = 4.0) -> list[float]:
    """b_0 = 0 ... b_temperatures = 1, closest at both ends: sigmoid(steepness (2 k / temperatures - 1)), rescaled.

    As in Wu et al. (ICLR 2017, On the quantitative analysis of decoder-based generative models).
    """
    if temperatures < 1:
        raise ConfigError(f"Annealing needs at least one temperature, got {temperatures}.")
    values = [1 / (1 + math.exp(-steepness * (2 * k / temperatures - 1))) for k in range(temperatures + 1)]
    return [(value - values[0]) / (values[-1] - values[0]) for value in values]


def tuned_steps(
    base: Base,
    energy_grad: EnergyGrad,
    betas: Sequence[float],
    chains: int,
    rng: torch.Generator,
    *,
    steps: int = 1,
    box: Box | None = None,
) -> list[float]:
    """A step size for each temperature between the ends of `betas`, at which MALA takes about 57 % of its proposals.

    Found by a run of its own, whose chains are thrown away: steps that learnt from the chains that they move would not
    leave the path's densities invariant.
    """
    return _anneal(base, energy_grad, betas, chains, rng, None, steps, box)[1]


def annealed_importance(
    base: Base,
    energy_grad: EnergyGrad,
    betas: Sequence[float],
    chains: int,
    rng: torch.Generator,
    *,
    step_sizes: Sequence[float],
    steps: int = 1,
    box: Box | None = None,
) -> AnnealedResult:
    """Importance weights of `chains` independent chains, whose mean is an unbiased estimate of Z over the box (or R^d).

    `betas` rise from 0 to 1; between the ends there are `steps` MALA steps at each, of the size in `step_sizes`
    (len(betas) - 2 of them, see `tuned_steps`). In a box sizes are those of steps in u. `rng` lives on the device that
    the energy is evaluated on. An energy of +inf is a density of zero.

    Raises ConfigError where `betas` do not rise from 0 to 1 or the counts do not fit.
    """
    if len(step_sizes) != len(betas) - 2:
        raise ConfigError(f"{len(betas)} betas have {len(betas) - 2} between their ends; got {len(step_sizes)} sizes.")
    return _anneal(base, energy_grad, betas, chains, rng, step_sizes, steps, box)[0]


def truncated_mixture(
    inputs: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"],
    box: Box,
    *,
    floor: float = 0.2,
    widen: float = 2.0,
    device: torch.device | str = "cpu",
) -> Base:
    """A component per label, in proportion: independent normals fitted to each entry, truncated to the box.

    Standard deviations are `widen` times those of the inputs and at least `floor` times the width of the box, because
    weights suffer where the base is narrower than the target. Inputs lie in the box, which `sample` never leaves.
    """
    low, high = box
    shape, flat = inputs.shape[1:], inputs.flatten(1).cpu()
    labels = labels.cpu()
    groups = [flat[labels == label].double() for label in sorted(set(labels.tolist()))]
    share = torch.tensor([len(group) for group in groups], dtype=torch.float64)
    share /= share.sum()
    mean = torch.stack([group.mean(dim=0) for group in groups])
    sd = torch.stack([group.std(dim=0, correction=0) for group in groups]).mul(widen).clamp(min=floor * (high - low))
    below = torch.special.ndtr((low - mean) / sd)
    inside = torch.special.ndtr((high - mean) / sd) - below
    constant = share.log() - (inside.log() + sd.log() + math.log(2 * math.pi) / 2).sum(dim=1)
    mean_, sd_, constant_ = (tensor.float().to(device) for tensor in (mean, sd, constant))

    def sample(count: int, rng: torch.Generator) -> Tensor:
        uniform = torch.rand(count, 1 + flat.shape[1], generator=rng, device=rng.device).cpu().double()
        which = torch.searchsorted(share.cumsum(0), uniform[:, 0].contiguous()).clamp(max=len(share) - 1)
        z = torch.special.ndtri(below[which] + uniform[:, 1:] * inside[which])
        x = (mean[which] + sd[which] * z).clamp(low, high)
        drawn: Tensor = x.float().view(count, *shape).to(rng.device)
        return drawn

    def log_density(x: Tensor) -> Tensor:
        standard = (x.flatten(1)[:, None] - mean_) / sd_
        density: Tensor = (constant_ - standard.square().sum(dim=2) / 2).logsumexp(dim=1)
        return density

    return Base(sample, log_density)


class _Ends(NamedTuple):
    """Energies and gradients of both ends of the path: -log p0, and E."""

    base: Tensor
    base_grad: Tensor
    model: Tensor
    model_grad: Tensor

    def between(self, beta: float) -> tuple[Tensor, Tensor]:
        energy = (1 - beta) * self.base + beta * self.model
        return energy, (1 - beta) * self.base_grad + beta * self.model_grad


def _anneal(
    base: Base,
    energy_grad: EnergyGrad,
    betas: Sequence[float],
    chains: int,
    rng: torch.Generator,
    step_sizes: Sequence[float] | None,
    steps: int,
    box: Box | None,
) -> tuple[AnnealedResult, list[float]]:
    """The run, and the step size of each temperature; tuned on the way where `step_sizes` is None."""
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or any(a >= b for a, b in pairwise(betas)):
        raise ConfigError("betas must rise strictly from 0 to 1.")
    if chains < 1 or steps < 1:
        raise ConfigError(f"Annealing needs at least one chain and one step, got chains={chains}, steps={steps}.")
    base_grad = _negated(base.log_density)
    x = base.sample(chains, rng)
    if box is not None:
        x = torch.logit((x - box[0]) / (box[1] - box[0]), eps=1e-7)
        base_grad, energy_grad = _unbounded(base_grad, box), _unbounded(energy_grad, box)

    def ends_at(x: Tensor) -> _Ends:
        return _Ends(*base_grad(x), *energy_grad(x))

    ends = ends_at(x)
    size, used, acceptance = 0.1, [], []

    def move(beta: float) -> float:
        nonlocal x, ends
        proposed = ends

        def energy(x: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal proposed  # the ends of the path are kept, so that the next temperature need not ask again
            proposed = ends_at(x)
            return proposed.between(beta)

        state, info = mala(size).step(ChainState(x, *ends.between(beta)), energy, rng)
        x, taken = state.x, info.accepted > 0
        ends = _Ends(*(_chosen(taken, new, old) for new, old in zip(proposed, ends, strict=True)))
        return float(info.accepted.mean())

    if step_sizes is None:
        for _ in range(WARM_UP):
            size *= math.exp(GAIN * (move(0.0) - TARGET))
    log_weights = torch.zeros(chains, dtype=torch.float64)
    for k in range(1, len(betas)):
        # In a box both ends carry the change of variables, which cancels here.
        log_weights += (betas[k] - betas[k - 1]) * (ends.base.cpu().double() - ends.model.cpu().double())
        if k == len(betas) - 1:
            break  # a step at b = 1 moves no weight
        if step_sizes is not None:
            size = step_sizes[k - 1]
        used.append(size)
        taken = [move(betas[k]) for _ in range(steps)]
        acceptance.append(sum(taken) / steps)
        if step_sizes is None:
            size *= math.exp(GAIN * (acceptance[-1] - TARGET))
    return AnnealedResult(log_weights, torch.tensor(acceptance, dtype=torch.float64)), used


def _negated(log_density: Callable[[Tensor], Tensor]) -> EnergyGrad:
    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = -log_density(x)
            (grad,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), grad

    return evaluate


def _unbounded(energy_grad: EnergyGrad, box: Box) -> EnergyGrad:
    """The energy of u = logit of x's place in the box: E(x(u)) - log |dx / du|."""
    low, width = box[0], box[1] - box[0]

    def evaluate(u: Tensor) -> tuple[Tensor, Tensor]:
        place = u.sigmoid()
        energy, grad = energy_grad(low + width * place)
        log_volume = (logsigmoid(u) + logsigmoid(-u) + math.log(width)).flatten(1).sum(dim=1)
        return energy - log_volume, grad * width * place * (1 - place) - (1 - 2 * place)

    return evaluate


def _chosen(taken: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(taken.view(-1, *[1] * (new.ndim - 1)), new, old)
