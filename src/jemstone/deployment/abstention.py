"""Thresholds with a finite-sample guarantee, by split conformal prediction."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import beta


def set_threshold(true_probability: Float[np.ndarray, " n"], coverage: float) -> float:
    """{y: p(y|x) >= threshold} contains the true label with probability >= `coverage`."""
    k = math.floor((len(true_probability) + 1) * (1 - coverage))
    return float(np.sort(true_probability)[k - 1]) if k >= 1 else 0.0


def density_threshold(log_density: Float[np.ndarray, " n"], rejection: float) -> float:
    """A new input of the same kind falls below with probability <= `rejection`."""
    k = math.floor((len(log_density) + 1) * rejection)
    return float(np.sort(log_density)[k - 1]) if k >= 1 else -math.inf


def confidence_threshold(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], error: float, delta: float = 0.05
) -> float:
    """From which confidence on at most `error` of the labels are wrong, with probability 1 - `delta`."""
    order = np.argsort(-confidence)
    wrong = np.cumsum(~correct[order])
    threshold = math.inf
    for i in range(len(order)):
        bound = 1.0 if wrong[i] == i + 1 else beta.ppf(1 - delta, wrong[i] + 1, i + 1 - wrong[i])
        if bound <= error:
            threshold = float(confidence[order[i]])
    return threshold


def typicality(log_density: Float[np.ndarray, " m"], reference: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """The percentile of each log density among the reference, in (0, 100]."""
    below = np.searchsorted(np.sort(reference), log_density, side="right")
    ranks: Float[np.ndarray, " m"] = 100 * (1 + below) / (len(reference) + 1)
    return ranks
