"""Markov chain kernels as pairs of pure functions: `init` makes a state, `step` moves it.

A kernel sees a model only as the function x -> (E(x), grad E(x)) and its randomness only as a generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.energy import EnergyGrad
from jemstone.errors import ConfigError

Box = tuple[float, float]


class ChainState(NamedTuple):
    """What the next step needs. `energy` and `grad` belong to `x` and are kept by kernels that reuse them (MALA)."""

    x: Tensor
    energy: Tensor | None = None
    grad: Tensor | None = None


class ChainInfo(NamedTuple):
    """What a reader needs, one value per chain (b,), about the point that the step left."""

    energy: Tensor
    """E(x), nats."""
    grad_norm: Tensor
    """||grad E(x)||_2 before any clipping."""
    clipped: Tensor
    """Share of gradient entries that were clipped, in [0, 1]."""
    accepted: Tensor
    """1 where the proposal was taken, 0 where it was rejected; always 1 for kernels without a test."""


@dataclass(frozen=True)
class Sampler:
    """`init(x, energy_grad) -> state` and `step(state, energy_grad, rng) -> (state, info)`."""

    init: Callable[[Tensor, EnergyGrad], ChainState]
    step: Callable[[ChainState, EnergyGrad, torch.Generator], tuple[ChainState, ChainInfo]]


def langevin_temperature(step_size: float, noise: float) -> float:
    """The temperature T = noise^2 / (2 step_size) at which such steps sample exp(-E / T).

    The recipe of JEM (step 1, noise 0.01) runs at T = 5e-5: close to plain descent on the energy.
    """
    return noise**2 / (2 * step_size)


def langevin(step_size: float, noise: float, *, box: Box | None = None) -> Sampler:
    """Unadjusted Langevin: x' = x - step_size grad E(x) + noise xi, xi ~ N(0, I).

    Samples exp(-E / T) with T = `langevin_temperature(step_size, noise)` up to a bias of order `step_size`
    (Welling & Teh 2011; JEM section 4). With a box, x' is clamped to it.
    """
    _require_positive("step_size", step_size)
    _require_not_negative("noise", noise)
    return _first_order(step_size, noise, math.inf, box)


def clipped(step_size: float, *, clip: float = 1.0, noise: float = 0.0, box: Box | None = (-1.0, 1.0)) -> Sampler:
    """Clipped step: x' = clamp(x - step_size clamp(grad E(x), -clip, clip) + noise xi, box).

    JEM++ (Yang & Ji, ICCV 2021) and SADA-JEM use step_size 1, clip 1, no noise: no entry moves by more than
    step_size * clip, so that chains cannot explode however steep the energy.
    """
    _require_positive("step_size", step_size)
    _require_positive("clip", clip)
    _require_not_negative("noise", noise)
    return _first_order(step_size, noise, clip, box)


def normalized(step_size: float, *, noise: float = 0.0, box: Box | None = (-1.0, 1.0)) -> Sampler:
    """Step of fixed length: x' = clamp(x - step_size grad E(x) / ||grad E(x)||_2 + noise xi, box).

    Before noise and clamp every chain moves by `step_size` in L2, in model units (twice as long as among [0, 1]
    pixels), however steep or flat the energy; a chain without a gradient stays, and one whose gradient is not finite
    becomes NaN. So DAT makes the negatives that it contrasts with real images (Yin, Li & Rohde, ECCV 2022, and Yin et
    al. 2025 on dual adversarial training). The length says nothing of the slope, so no temperature belongs to it.
    """
    _require_positive("step_size", step_size)
    _require_not_negative("noise", noise)
    return _first_order(step_size, noise, math.inf, box, unit=True)


def mala(step_size: float, *, temperature: float = 1.0, box: Box | None = None) -> Sampler:
    """Metropolis-adjusted Langevin: exact for exp(-E / temperature) on the box, whatever the step size.

    Proposes x' = x - step_size grad E(x) + sqrt(2 step_size temperature) xi and accepts with probability
    min(1, p(x') q(x|x') / (p(x) q(x'|x))) (Roberts & Tweedie 1996). Proposals outside the box are rejected.
    """
    _require_positive("step_size", step_size)
    _require_positive("temperature", temperature)
    noise = math.sqrt(2 * step_size * temperature)

    def init(x: Tensor, energy_grad: EnergyGrad) -> ChainState:
        return ChainState(x, *energy_grad(x))

    def step(state: ChainState, energy_grad: EnergyGrad, rng: torch.Generator) -> tuple[ChainState, ChainInfo]:
        x, energy, grad = state
        assert energy is not None, "a MALA state carries its energy: make it with init"
        assert grad is not None, "a MALA state carries its gradient: make it with init"
        proposal = x - step_size * grad + noise * _randn_like(x, rng)
        new_energy, new_grad = energy_grad(proposal)
        forward = _sum_squares(proposal - x + step_size * grad)
        backward = _sum_squares(x - proposal + step_size * new_grad)
        log_ratio = (energy - new_energy) / temperature + (forward - backward) / (2 * noise**2)
        uniform = torch.rand(len(x), generator=rng, device=x.device)
        accept = uniform.log() < log_ratio  # a NaN ratio compares false: a broken proposal is never taken
        if box is not None:
            outside = (proposal < box[0]) | (proposal > box[1])
            accept = accept & ~outside.flatten(1).any(dim=1)
        info = ChainInfo(energy, _sum_squares(grad).sqrt(), torch.zeros_like(energy), accept.float())
        each = accept.view(-1, *[1] * (x.ndim - 1))
        return (
            ChainState(
                torch.where(each, proposal, x),
                torch.where(accept, new_energy, energy),
                torch.where(each, new_grad, grad),
            ),
            info,
        )

    return Sampler(init, step)


def run_chains(
    sampler: Sampler, x: Float[Tensor, "b ..."], energy_grad: EnergyGrad, steps: int, rng: torch.Generator
) -> tuple[Tensor, ChainInfo]:
    """Move every chain by `steps` steps. Returns end points, detached, and the info of all steps, each (steps, b)."""
    if steps < 1:
        raise ConfigError(f"Chains need at least one step, got steps={steps}.")
    state = sampler.init(x.detach(), energy_grad)
    infos = []
    for _ in range(steps):
        state, info = sampler.step(state, energy_grad, rng)
        infos.append(info)
    return state.x, ChainInfo(*(torch.stack(values) for values in zip(*infos, strict=True)))


def unit_vectors(v: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """v / ||v||_2 row by row. A row of zeros stays one; a row with a value that is not finite becomes NaN throughout.

    Exact over the whole range of floats: 1e-30 has a direction too, although its square is 0.
    """
    flat = v.flatten(1)
    largest = flat.abs().amax(dim=1, keepdim=True)
    flat = flat / largest.masked_fill(largest == 0, 1)
    # The largest entry is 1 now, so that only rows of zeros have a norm below 1. Both clamp and masked_fill keep NaN.
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return (flat / norm.clamp(min=1)).view_as(v)


def _first_order(step_size: float, noise: float, clip: float, box: Box | None, *, unit: bool = False) -> Sampler:
    def init(x: Tensor, energy_grad: EnergyGrad) -> ChainState:
        return ChainState(x)

    def step(state: ChainState, energy_grad: EnergyGrad, rng: torch.Generator) -> tuple[ChainState, ChainInfo]:
        energy, grad = energy_grad(state.x)
        direction, beyond = grad, torch.zeros_like(energy)
        if unit:
            direction = unit_vectors(grad)
        elif clip < math.inf:
            direction, beyond = grad.clamp(-clip, clip), (grad.abs() > clip).flatten(1).float().mean(dim=1)
        x = torch.sub(state.x, direction, alpha=step_size)
        if noise > 0:
            x.add_(_randn_like(x, rng), alpha=noise)
        if box is not None:
            x.clamp_(*box)
        norm = torch.linalg.vector_norm(grad.flatten(1), dim=1)
        return ChainState(x), ChainInfo(energy, norm, beyond, torch.ones_like(energy))

    return Sampler(init, step)


def _randn_like(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)


def _sum_squares(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(dim=1)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be positive, got {value}.")


def _require_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{name} must not be negative, got {value}.")
