"""How well p(y|x) predicts: accuracy and two proper scores, from logits (n, k) and labels (n,) in [0, k)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from jemstone.evaluation.intervals import Result, bootstrap, exact_proportion


def accuracy(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> Result:
    """Share of examples whose largest logit is the label's (ties go to the lowest class), exact interval."""
    return exact_proportion("accuracy", int((logits.argmax(axis=1) == labels).sum()), len(labels))


def nll(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], *, seed: int = 0, resamples: int = 1000
) -> Result:
    """Mean of -log p(y|x) in nats, bootstrap interval. log(k) is what a uniform guess scores."""
    losses = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return bootstrap("nll", np.mean, losses, seed=seed, resamples=resamples)


def brier(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], *, seed: int = 0, resamples: int = 1000
) -> Result:
    """Mean of sum_c (p(c|x) - 1[c = y])^2, bootstrap interval.

    The sum runs over all classes, as in Brier (1950), so the range is [0, 2] and a uniform guess scores 1 - 1/k.
    Libraries that average over classes, or look at one class of two, report a fraction of this.
    """
    errors = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    errors[np.arange(len(labels)), labels] -= 1
    return bootstrap("brier", np.mean, (errors**2).sum(axis=1), seed=seed, resamples=resamples)
