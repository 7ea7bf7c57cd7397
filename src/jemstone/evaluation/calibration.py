"""Whether a confidence of 0.8 is right 80 % of the time.

Confidence is max_y p(y|x). Bins have equal width over [0, 1] and hold [low, high), the last one [low, 1]: confidence 1,
which overconfident networks reach in floating point, is counted and not dropped.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import softmax

from jemstone.evaluation.intervals import TAILS, Result, exact_proportion, resampled
from jemstone.rng import generator


class Reliability(TypedDict):
    """The reliability diagram's arrays, one entry per bin (`edges`: one more). None where a bin is empty.

    `low` and `high` bound the bin's accuracy, exact 95 % interval.
    """

    edges: list[float]
    count: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]
    low: list[float | None]
    high: list[float | None]


def ece(
    logits: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, " n"],
    *,
    bins: int = 15,
    seed: int = 0,
    resamples: int = 1000,
) -> Result:
    """Expected calibration error, sum_b (n_b / n) |accuracy_b - confidence_b| (Guo et al., ICML 2017).

    On finite data it is biased upwards, even for a perfectly calibrated classifier, and a bootstrap adds that bias a
    second time: its percentile interval would hardly ever contain the true value of a well calibrated model. So the
    lower end is the reflected one, 2 value - q(97.5 %), and 0 where a perfectly calibrated classifier with the same
    confidences would show this ECE too (a test at 2.5 % with labels drawn from the confidences, Broecker and Smith,
    2007); the upper end is the percentile, which errs on the wide side.
    """
    confidence, correct = _confidence(logits, labels)
    which = _bin(confidence, bins)

    def error(which: Int[np.ndarray, " n"], gap: Float[np.ndarray, " n"]) -> float:
        return float(np.abs(np.bincount(which, weights=gap, minlength=bins)).sum() / len(gap))

    value = error(which, confidence - correct)
    rng = generator(seed, "bootstrap", "ece")
    q_high = np.quantile(resampled(error, which, confidence - correct, rng=rng, resamples=resamples), TAILS[1])

    coins = np.random.default_rng(generator(seed, "calibrated", "ece").initial_seed())
    by_chance = resampled(
        lambda which, c: error(which, c - (coins.random(len(c)) < c)), which, confidence, rng=rng, resamples=resamples
    )
    low = 0.0 if value <= np.quantile(by_chance, TAILS[1]) else max(0.0, 2 * value - float(q_high))
    return Result("ece", value, min(low, value), max(float(q_high), value), len(labels))


def reliability(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], bins: int = 15) -> Reliability:
    """Per bin: how many examples, their mean confidence, and their accuracy with its exact interval."""
    confidence, correct = _confidence(logits, labels)
    which = _bin(confidence, bins)
    count = np.bincount(which, minlength=bins)
    total = np.bincount(which, weights=confidence, minlength=bins)
    hits = np.bincount(which, weights=correct, minlength=bins).astype(int)
    shares = [exact_proportion("bin", int(k), int(n)) if n else None for k, n in zip(hits, count, strict=True)]
    return Reliability(
        edges=np.linspace(0, 1, bins + 1).tolist(),
        count=count.tolist(),
        confidence=[float(t / n) if n else None for t, n in zip(total, count, strict=True)],
        accuracy=[share.value if share else None for share in shares],
        low=[share.low if share else None for share in shares],
        high=[share.high if share else None for share in shares],
    )


def _confidence(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return probabilities.max(axis=1), logits.argmax(axis=1) == labels


def _bin(confidence: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
