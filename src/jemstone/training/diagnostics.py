"""What a step says about its own health: one number each, fetched together, with one device synchronisation.

The meaning, the healthy range and the picture of failure of each is in docs/stability.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.data.batches import Batch
from jemstone.energy import marginal_energy
from jemstone.objective import Loss
from jemstone.sampling import ChainInfo, Draw
from jemstone.sampling.kernels import Box
from jemstone.training.config import TrainConfig

Metrics = dict[str, float]


class Move(NamedTuple):
    """Chains of one step: where they came from, where they got to, and what happened on the way."""

    draw: Draw
    x: Tensor
    info: ChainInfo


@torch.no_grad()
def measure(
    loss: Loss,
    gradients: Mapping[str, Tensor],
    moves: Sequence[Move],
    real: Batch | None,
    config: TrainConfig,
    box: Box | None,
) -> Metrics:
    """The metrics of a step as floats; only those of terms that are on. `gradients` holds parameter-gradient norms."""
    weights = config.weights
    values: dict[str, Tensor] = {"loss": loss.total, **gradients}
    if weights.class_nll > 0:
        values |= {"class_nll": loss.class_nll, "train_accuracy": loss.accuracy}
    if weights.margin > 0:
        values |= {"energy_labelled": loss.energy_labelled, "energy_outliers": loss.energy_outliers}
        values["margin"] = loss.margin
    if weights.generative:
        values["energy_real"] = loss.energy_real
    if weights.marginal_chains:
        values |= {"energy_negatives": loss.energy_negatives, "energy_gap": loss.energy_gap}
        assert loss.logits_real is not None, "a generative term saw the real batch"
        assert loss.logits_negatives is not None, "a marginal term saw negatives"
        values["energy_auc"] = energy_auc(marginal_energy(loss.logits_real), marginal_energy(loss.logits_negatives))
        if loss.logits_real.shape[1] > 1 and len(loss.logits_real) > 1:
            of_real = class_coverage(loss.logits_real).clamp(min=1e-3)
            values["class_coverage"] = class_coverage(loss.logits_negatives) / of_real
        if loss.norm_distance is not None:
            values["norm_distance"] = loss.norm_distance
    if weights.conditional > 0:
        values["conditional_gap"] = loss.conditional_gap
    if weights.discrimination > 0:
        values["discrimination"] = loss.discrimination
    if weights.energy_l2 > 0:
        values["energy_l2"] = loss.energy_l2
    if moves:
        assert real is not None, "chains stand against a real batch"
        values |= _of_chains(moves, real, config, box)
    numbers: list[float] = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def _of_chains(moves: Sequence[Move], real: Batch, config: TrainConfig, box: Box | None) -> dict[str, Tensor]:
    info = ChainInfo(*(torch.cat(parts, dim=1) for parts in zip(*(move.info for move in moves), strict=True)))
    x, before = torch.cat([move.x for move in moves]), torch.cat([move.draw.x for move in moves])
    values = {
        "chain_grad_norm": info.grad_norm.mean(),
        "chain_max": x.abs().max(),
        "chain_moved": (x - before).square().mean().sqrt(),
        "chain_descent": (info.energy[0] - info.energy[-1]).mean(),
        "chain_age": torch.cat([move.draw.age for move in moves]).float().mean(),
    }
    if len(x) > 1 and len(real.x) > 1:
        values["distinct"] = nearest_distance(x) / nearest_distance(real.x).clamp(min=1e-12)
    if config.chains.max_steps:
        values["chain_steps"] = torch.full_like(info.energy[0, 0], len(info.energy))
    if config.chains.kernel == "clipped":
        values["clipped"] = info.clipped.mean()
    if config.chains.kernel == "mala":
        values["accepted"] = info.accepted.mean()
    if box is not None:
        values |= {"saturated": _at_box(x, box), "saturated_real": _at_box(real.x, box)}
    return values


def energy_auc(real: Float[Tensor, " n"], negatives: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """The probability that a negative has the higher energy of a pair (real, negative); ties count half.

    1/2 where energies do not tell them apart, 1 where negatives are too easy, 0 where chains overshot below the data.
    """
    above = negatives[:, None] - real[None, :]
    return (above > 0).float().mean() + 0.5 * (above == 0).float().mean()


def class_coverage(logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """(exp H - 1) / (k - 1), H the entropy of the batch's mean p(y|x): 0 where all is one class, 1 for all alike."""
    mean = logits.float().softmax(dim=1).mean(dim=0)
    return (torch.exp(torch.special.entr(mean).sum()) - 1) / max(1, logits.shape[1] - 1)


def nearest_distance(x: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """Median over the batch of the L2 distance to the nearest other row; 0 for a single row."""
    if len(x) < 2:
        return x.new_zeros(())
    flat = x.flatten(1)
    distances = torch.cdist(flat, flat).fill_diagonal_(torch.inf)
    return torch.median(distances.min(dim=1).values)


def _at_box(x: Tensor, box: Box) -> Tensor:
    return ((x <= box[0]) | (x >= box[1])).float().mean()
