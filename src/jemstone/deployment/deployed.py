"""A predictor as one module, with everything about it inside: what is exported."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jemstone.data.dataset import Moments
from jemstone.deployment.calibration import Thresholds
from jemstone.deployment.predictor import Predictor
from jemstone.deployment.saving import without_paths
from jemstone.energy import EnergyClassifier, marginal_energy
from jemstone.runs import strict
from jemstone.version import __version__

OUTPUTS = ("logits", "probabilities", "energy", "accept", "foreign", "ambiguous")
"""What an exported file returns, in this order."""
SURE = 2.0**-53
"""The odds below which a probability is 1 in float64."""


class Deployed(nn.Module):
    """A predictor from end to end, for export: everything about it is a constant of the graph.

    Inputs are float32: images (b, c, h, w) in [0, 1], vectors (b, d) in raw units. Outputs are those of `OUTPUTS`:
    logits (b, k); calibrated probabilities (b, k); E(x) = -logsumexp of the logits, nats (b,); and what `Predictions`
    calls accepted, foreign and ambiguous, bool (b,).

    Confidence is compared by its odds (1 - p) / p, which float32 resolves where p itself has become 1.
    """

    mean: Tensor
    rest: Tensor
    std: Tensor

    def __init__(
        self, model: EnergyClassifier, temperature: float, thresholds: Thresholds, moments: Moments | None
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.highest_energy = -thresholds.density
        self.highest_odds = odds_of(thresholds.confidence)
        self.moments = moments is not None
        if moments is not None:
            # In two parts, so that large means (a year, an altitude) cost no digits in float32.
            mean, std = (part.double().cpu() for part in moments)
            self.register_buffer("mean", mean.float())
            self.register_buffer("rest", (mean - mean.float()).float())
            self.register_buffer("std", std.float())

    def forward(self, inputs: Float[Tensor, "b ..."]) -> tuple[Tensor, ...]:
        """The tensors of `OUTPUTS`."""
        x = (inputs - self.mean - self.rest) / self.std if self.moments else inputs * 2 - 1
        logits = self.model(x).float()
        scaled = logits / self.temperature
        energy = marginal_energy(logits)
        descending = scaled.topk(scaled.shape[1], dim=1).values
        odds = (descending[:, 1:] - descending[:, :1]).exp().sum(dim=1)
        foreign = torch.logical_not(energy <= self.highest_energy)
        ambiguous = torch.logical_not(odds <= self.highest_odds)
        accept = torch.logical_not(foreign | ambiguous)
        return logits, scaled.softmax(dim=1), energy, accept, foreign, ambiguous


def odds_of(confidence: float) -> float:
    """(1 - p) / p of the confidence threshold p: accepted are odds up to it. Below 0, which none is, if p > 1."""
    if confidence > 1:
        return -1.0
    return max((1 - confidence) / confidence, SURE) if confidence > 0 else math.inf


def settings(predictor: Predictor) -> dict[str, Any]:
    """What a file says about itself: plain values. A threshold that is infinite, so that it refuses none (density), or
    accepts none (confidence), is null."""
    trained, moments = predictor.trained, predictor.moments
    units: dict[str, Any] = {"inputs": "float32 images (b, c, h, w) in [0, 1]", "scale": 2.0, "shift": -1.0}
    if moments is not None:
        units = {
            "inputs": "float32 vectors (b, d) in raw units",
            "mean": moments[0].tolist(),
            "std": moments[1].tolist(),
        }
    found: dict[str, Any] = strict(
        {
            "jemstone": __version__,
            "class_names": list(trained.class_names),
            "input_shape": list(trained.input_shape),
            "preprocessing": units,
            "network": without_paths(asdict(trained.config.network)),
            "recipe": trained.config.recipe,
            "step": trained.step,
            "temperature": predictor.calibration.temperature,
            "thresholds": predictor.thresholds._asdict(),
            "policy": asdict(predictor.policy),
        }
    )
    return found
