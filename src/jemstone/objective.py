"""The losses, given negatives drawn elsewhere.

Maximum likelihood of an energy-based model has the gradient
    grad log p(x) = -grad E(x) + E_{x' ~ p}[grad E(x')],
so the loss to minimise is mean E(data) - mean E(negatives), with the negatives held fixed. (Algorithm 1 of the JEM
paper prints the two terms the other way round; `tests/test_objective.py` holds this one against exact likelihood.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from jemstone.data.batches import Batch
from jemstone.energy import EnergyClassifier, joint_energy, marginal_energy
from jemstone.errors import ConfigError
from jemstone.networks.modes import running_statistics_held


@dataclass(frozen=True)
class LossWeights:
    """What is maximised, and how much of each. A weight of 0 switches its term and its chains off.

    Attributes:
        class_nll: log p(y|x): cross-entropy on the labelled, augmented batch.
        marginal: log p(x), with negatives from chains on E(x).
        joint: log p(x, y) = log p(y|x) + log p(x) on the real batch, with the same negatives as `marginal`.
        conditional: log p(x|y), with negatives from chains on E(x, y) of the real batch's own labels. (The original
            release calls this option log p(x, y).)
        energy_l2: mean E(x)^2 over the real batch and the negatives: an anchor for a scale that nothing else fixes
            (IGEBM, Du & Mordatch 2019).
    """

    class_nll: float = 1.0
    marginal: float = 0.0
    joint: float = 0.0
    conditional: float = 0.0
    energy_l2: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"weights.{field.name} must be finite and not negative, got {value}.")
        if not any(getattr(self, field.name) > 0 for field in fields(self)[:4]):
            raise ConfigError("All loss weights are 0: set at least one of class_nll, marginal, joint, conditional.")
        if self.energy_l2 > 0 and not self.generative:
            raise ConfigError("weights.energy_l2 anchors a generative term: set marginal, joint or conditional too.")

    @property
    def marginal_chains(self) -> bool:
        """Whether any term needs negatives from p(x)."""
        return self.marginal > 0 or self.joint > 0

    @property
    def generative(self) -> bool:
        """Whether any term needs negatives at all."""
        return self.marginal_chains or self.conditional > 0


class Negatives(NamedTuple):
    """End points of chains, held fixed: from p(x), and from p(x|y) with their labels."""

    marginal: Tensor | None = None
    conditional: Batch | None = None


class Loss(NamedTuple):
    """Scalars; only `total` carries a gradient. Terms that are off are 0."""

    total: Float[Tensor, ""]
    class_nll: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]
    """Share of right predictions on the labelled batch, in train mode."""
    energy_real: Float[Tensor, ""]
    energy_negatives: Float[Tensor, ""]
    energy_gap: Float[Tensor, ""]
    """Mean E(real) - mean E(negatives), nats: its gradient, not its value, is that of -log p(x)."""
    conditional_gap: Float[Tensor, ""]
    """Mean E(x, y) of real - of negatives, nats."""
    energy_l2: Float[Tensor, ""]


def jem_loss(
    model: EnergyClassifier,
    labelled: Batch | None,
    real: Batch | None,
    negatives: Negatives,
    weights: LossWeights,
) -> Loss:
    """The weighted objective; minimise `total`.

    `labelled` feeds log p(y|x); its unlabelled rows are left out. `real` feeds every generative term: log p(x) uses all
    of its rows, log p(x, y) and log p(x|y) those with a label. Each batch is one forward, as published, so BatchNorm
    in train mode normalises real images and negatives by their own statistics; only data moves its running averages.
    """
    zero = torch.zeros((), device=next(model.parameters()).device)
    terms = dict.fromkeys(Loss._fields, zero)
    total = zero

    if weights.class_nll > 0:
        if labelled is None:
            raise ConfigError("weights.class_nll is on and no labelled batch was given.")
        logits = model(labelled.x)
        terms["class_nll"] = _masked_mean(_cross_entropy(logits, labelled.y), labelled.y >= 0)
        terms["accuracy"] = _masked_mean((logits.argmax(dim=1) == labelled.y).float(), labelled.y >= 0)
        total = total + weights.class_nll * terms["class_nll"]

    if weights.generative:
        if real is None:
            raise ConfigError("A generative weight is on and no real batch was given.")
        logits = model(real.x)
        energy_real = marginal_energy(logits)
        known = real.y >= 0
        joint_real = _masked_mean(joint_energy(logits, real.y.clamp(min=0)), known)
        terms["energy_real"] = energy_real.mean()
        total = total + 0 * terms["energy_real"]  # a batch that trains nothing still has a gradient, of zero
        squares = [energy_real.square().mean()]

        if weights.marginal_chains:
            if negatives.marginal is None:
                raise ConfigError("weights.marginal or weights.joint is on and no negatives from p(x) were given.")
            with running_statistics_held(model):
                energy_negatives = model.energy(negatives.marginal.detach())
            terms["energy_negatives"] = energy_negatives.mean()
            terms["energy_gap"] = terms["energy_real"] - terms["energy_negatives"]
            total = total + weights.marginal * terms["energy_gap"]
            total = total + weights.joint * (joint_real - terms["energy_negatives"]) * known.any()
            squares.append(energy_negatives.square().mean())

        if weights.conditional > 0:
            if negatives.conditional is None:
                raise ConfigError("weights.conditional is on and no negatives from p(x|y) were given.")
            if len(negatives.conditional.y):
                with running_statistics_held(model):
                    joint_negatives = model.energy(negatives.conditional.x.detach(), negatives.conditional.y)
                terms["conditional_gap"] = joint_real - joint_negatives.mean()
                total = total + weights.conditional * terms["conditional_gap"]
                squares.append(joint_negatives.square().mean())

        if weights.energy_l2 > 0:
            terms["energy_l2"] = torch.stack(squares).sum()
            total = total + weights.energy_l2 * terms["energy_l2"]

    terms = {name: value.detach() for name, value in terms.items()}
    return Loss(**{**terms, "total": total})


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits, y, ignore_index=-1, reduction="none")


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the rows where `mask` holds; 0 where it holds nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
