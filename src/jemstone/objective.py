"""The losses, given negatives drawn elsewhere.

Maximum likelihood of an energy-based model has the gradient
    grad log p(x) = -grad E(x) + E_{x' ~ p}[grad E(x')],
so the loss to minimise is mean E(data) - mean E(negatives), with the negatives held fixed. (Algorithm 1 of the JEM
paper prints the two terms the other way round; `tests/test_objective.py` holds this one against exact likelihood.)
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from jemstone.data.batches import Batch
from jemstone.energy import EnergyClassifier, joint_energy, marginal_energy
from jemstone.errors import ConfigError
from jemstone.margins import Outliers, excess
from jemstone.networks.modes import (
    running_statistics_held,
    statistics_distance,
    statistics_of_negatives,
    statistics_recorded,
)


@dataclass(frozen=True)
class LossWeights:
    """What is maximised, and how much of each. A weight of 0 switches its term and its chains off.

    Attributes:
        class_nll: log p(y|x): cross-entropy on the labelled, augmented batch.
        marginal: log p(x), with negatives from chains on E(x).
        joint: log p(x, y) = log p(y|x) + log p(x) on the real batch, with the same negatives as `marginal`.
        conditional: log p(x|y), with negatives from chains on E(x, y) of the real batch's own labels. (The original
            release calls this option log p(x, y).)
        discrimination: -log sigmoid(-E(x)) on real images and -log sigmoid(E(x)) on negatives from p(x): the energy
            as the logit of a discriminator between the two (DAT).
        energy_l2: mean E(x)^2 over the real batch and the negatives: an anchor for a scale that nothing else fixes
            (IGEBM, Du & Mordatch 2019).
        margin: mean max(0, E(x) - m_in)^2 over the labelled batch + mean max(0, m_out - E(x))^2 over outliers, at the
            margins of `jemstone.margins`: energy fine-tuning (Liu et al., NeurIPS 2020, eq. 8). Without chains.
    """

    class_nll: float = 1.0
    marginal: float = 0.0
    joint: float = 0.0
    conditional: float = 0.0
    discrimination: float = 0.0
    energy_l2: float = 0.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"weights.{field.name} must be finite and not negative, got {value}.")
        terms = [field.name for field in fields(self) if field.name not in ("energy_l2", "margin")]
        if not any(getattr(self, name) > 0 for name in terms):
            raise ConfigError(f"All loss weights are 0: set at least one of {', '.join(terms)}.")
        if self.energy_l2 > 0 and not self.generative:
            raise ConfigError(f"weights.energy_l2 anchors a generative term: set one of {', '.join(terms[1:])} too.")
        if self.margin > 0 and not self.class_nll:
            raise ConfigError("weights.margin is a term beside cross-entropy: set weights.class_nll too.")

    @property
    def marginal_chains(self) -> bool:
        """Whether any term needs negatives from p(x)."""
        return self.marginal > 0 or self.joint > 0 or self.discrimination > 0

    @property
    def generative(self) -> bool:
        """Whether any term needs negatives at all."""
        return self.marginal_chains or self.conditional > 0


class Negatives(NamedTuple):
    """End points of chains, held fixed: from p(x), and from p(x|y) with their labels."""

    marginal: Tensor | None = None
    conditional: Batch | None = None


class Loss(NamedTuple):
    """Scalars, but for the last four; only `total` and `parts` carry a gradient. Terms that are off are 0."""

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
    discrimination: Float[Tensor, ""]
    """Cross-entropy, in nats, of telling real images from negatives by the sign of their energy."""
    energy_l2: Float[Tensor, ""]
    energy_labelled: Float[Tensor, ""]
    """Mean E of the labelled batch, where `margin` is on; so the next two."""
    energy_outliers: Float[Tensor, ""]
    margin: Float[Tensor, ""]
    """What is left of the margin term, nats squared."""
    norm_distance: Float[Tensor, ""] | None
    """How far apart BatchNorm's inputs are for real images and negatives, in variances; None without BatchNorm."""
    parts: dict[str, Tensor]
    """`total` as a sum over the batches that cause it: "class", "outliers", "real", "negatives"; where BatchNorm sees
    two as one batch, "class" has the outliers and "generative" the negatives. Parts share no graph, unless merged."""
    logits_real: Tensor | None
    """Detached logits (b, k) of the real batch, and of the negatives from p(x)."""
    logits_negatives: Tensor | None


Statistics = Literal["batch", "shared", "separate", "frozen"]


def jem_loss(
    model: EnergyClassifier,
    labelled: Batch | None,
    real: Batch | None,
    negatives: Negatives,
    weights: LossWeights,
    *,
    outliers: Outliers | None = None,
    statistics: Statistics = "batch",
    merged: bool = False,
) -> Loss:
    """The weighted objective; minimise `total`.

    `labelled` feeds log p(y|x); its unlabelled rows are left out. `real` feeds every generative term: log p(x) uses all
    of its rows, log p(x, y) and log p(x|y) those with a label. Each batch is one forward, as published, so BatchNorm
    in train mode normalises real images and negatives by their own statistics; only data moves its running averages.
    `outliers` are for the margin term, and are treated as negatives are.
    `statistics` changes that: "shared" makes real images and negatives from p(x) one batch, and "separate" lets
    negatives move running averages of their own. ("frozen" is the mode of the model, and the caller's to set.)
    `merged` makes all three batches one, for networks that treat each input alone: the numbers are the same, there are
    fewer and larger passes, and `parts` share a graph.
    """
    zero = torch.zeros((), device=next(model.parameters()).device)
    terms: dict[str, Any] = dict.fromkeys(Loss._fields, zero)
    terms |= {"parts": {}, "logits_real": None, "logits_negatives": None, "norm_distance": None}

    passed = _one_pass(model, labelled, real, negatives) if merged else None
    if weights.class_nll > 0:
        if labelled is None:
            raise ConfigError("weights.class_nll is on and no labelled batch was given.")
        of_outliers: Tensor | None = None
        if weights.margin > 0:
            if outliers is None:
                raise ConfigError("weights.margin is on and no outliers were given.")
            logits, of_outliers, _ = _both_logits(model, labelled.x, outliers.x, statistics)
        else:
            logits = model(labelled.x) if passed is None else passed[0]
        class_nll = _masked_mean(_cross_entropy(logits, labelled.y), labelled.y >= 0)
        terms["accuracy"] = _masked_mean((logits.argmax(dim=1) == labelled.y).float(), labelled.y >= 0)
        terms["class_nll"] = class_nll.detach()
        terms["parts"]["class"] = weights.class_nll * class_nll
        if of_outliers is not None:
            assert outliers is not None, "its logits are there"
            above, below = excess(logits, of_outliers, outliers.margins)
            terms |= {
                name: marginal_energy(found.detach()).mean()
                for name, found in (("energy_labelled", logits), ("energy_outliers", of_outliers))
            }
            terms["margin"] = (above + below).detach()
            terms["parts"]["class"] = terms["parts"]["class"] + weights.margin * above
            # BatchNorm that sees both as one batch makes one graph of them.
            part = "class" if statistics == "shared" else "outliers"
            terms["parts"][part] = terms["parts"].get(part, zero) + weights.margin * below

    if weights.generative:
        if real is None:
            raise ConfigError("A generative weight is on and no real batch was given.")
        if weights.marginal_chains and negatives.marginal is None:
            raise ConfigError("weights.marginal, joint or discrimination is on and no negatives from p(x) were given.")
        if weights.conditional > 0 and negatives.conditional is None:
            raise ConfigError("weights.conditional is on and no negatives from p(x|y) were given.")
        both: tuple[Tensor, Tensor | None, Tensor | None]
        if passed is None:
            both = _both_logits(model, real.x, negatives.marginal, statistics)
        else:
            both = (passed[1], passed[2], None)
        terms |= _generative_terms(model, real, both, negatives, weights, statistics, terms["parts"])

    return Loss(**{**terms, "total": sum(terms["parts"].values(), zero)})


def _one_pass(
    model: EnergyClassifier, labelled: Batch | None, real: Batch | None, negatives: Negatives
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of labelled images, real images and negatives, from one forward pass."""
    assert labelled is not None, "a merged pass has labelled images"
    assert real is not None, "a merged pass has real images"
    assert negatives.marginal is not None, "a merged pass has negatives"
    batches = [labelled.x, real.x, negatives.marginal.detach()]
    logits: Tensor = model(torch.cat(batches))
    class_logits, of_real, of_negatives = torch.split(logits, [len(x) for x in batches])
    return class_logits, of_real, of_negatives


def _generative_terms(
    model: EnergyClassifier,
    real: Batch,
    both: tuple[Tensor, Tensor | None, Tensor | None],
    negatives: Negatives,
    weights: LossWeights,
    statistics: Statistics,
    parts: dict[str, Tensor],
) -> dict[str, Any]:
    """The detached numbers of the generative terms, of `_both_logits`; their losses go into `parts`."""
    found: dict[str, Any] = {}
    logits, logits_negatives, found["norm_distance"] = both
    found["logits_real"] = logits.detach()
    energy = marginal_energy(logits)
    known = real.y >= 0
    joint = _masked_mean(joint_energy(logits, real.y.clamp(min=0)), known)
    found["energy_real"] = energy.detach().mean()
    # A batch that trains nothing still has a gradient, of zero.
    real_part = weights.marginal * energy.mean() + weights.joint * joint + weights.energy_l2 * energy.square().mean()
    negative_part = torch.zeros_like(real_part)
    found["energy_l2"] = energy.detach().square().mean()

    if weights.marginal_chains:
        assert logits_negatives is not None, "negatives from p(x) were checked above"
        found["logits_negatives"] = logits_negatives.detach()
        below = marginal_energy(logits_negatives)
        found["energy_negatives"] = below.detach().mean()
        found["energy_gap"] = found["energy_real"] - found["energy_negatives"]
        found["energy_l2"] = found["energy_l2"] + below.detach().square().mean()
        scale = weights.marginal + weights.joint * known.any()
        negative_part = negative_part - scale * below.mean() + weights.energy_l2 * below.square().mean()
        if weights.discrimination > 0:
            told_real, told_negative = functional.softplus(energy).mean(), functional.softplus(-below).mean()
            found["discrimination"] = (told_real + told_negative).detach()
            real_part = real_part + weights.discrimination * told_real
            negative_part = negative_part + weights.discrimination * told_negative

    if weights.conditional > 0 and negatives.conditional is not None and len(negatives.conditional.y):
        with _passing_negatives(model, statistics):
            below = model.energy(negatives.conditional.x.detach(), negatives.conditional.y)
        found["conditional_gap"] = (joint - below.mean()).detach()
        found["energy_l2"] = found["energy_l2"] + below.detach().square().mean()
        real_part = real_part + weights.conditional * joint
        negative_part = negative_part - weights.conditional * below.mean() + weights.energy_l2 * below.square().mean()

    if statistics == "shared":
        parts["generative"] = real_part + negative_part
    else:
        parts["real"] = real_part
        if negative_part.requires_grad:
            parts["negatives"] = negative_part
    return found


def _both_logits(
    model: EnergyClassifier, real: Tensor, negatives: Tensor | None, statistics: Statistics
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logits of the real batch and of the negatives, and the distance between what BatchNorm saw of them."""
    if negatives is None:
        return model(real), None, None
    negatives = negatives.detach()
    if statistics == "shared":
        logits = model(torch.cat([real, negatives]))
        return logits[: len(real)], logits[len(real) :], None
    with statistics_recorded(model) as of_real:
        logits = model(real)
    with statistics_recorded(model) as of_negatives, _passing_negatives(model, statistics):
        logits_negatives = model(negatives)
    distance = statistics_distance(of_real, of_negatives).to(logits.device) if of_real else None
    return logits, logits_negatives, distance


def _passing_negatives(model: EnergyClassifier, statistics: Statistics) -> AbstractContextManager[None]:
    return statistics_of_negatives(model) if statistics == "separate" else running_statistics_held(model)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits, y, ignore_index=-1, reduction="none")


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the rows where `mask` holds; 0 where it holds nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
