"""Whether a confidence of 0.8 is right 80 % of the time.

Confidence is max_y p(y|x). Bins hold [low, high), the last one [low, high]: confidence 1, which overconfident networks
reach in floating point, is counted and not dropped. Logits are (n, k), labels (n,) in [0, k).

Every binned error is biased upwards on finite data, even for a perfectly calibrated classifier, and a bootstrap adds
that bias a second time: its percentile interval would hardly ever contain the true value of a well calibrated model.
`error_interval` says what is reported instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import softmax
from scipy.stats import rankdata

from jemstone.evaluation.histograms import bins_of
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
    """Expected calibration error, sum_b (n_b / n) |accuracy_b - confidence_b| (Guo et al., ICML 2017), equal widths."""
    return _of_confidence("ece", equal_width, _mean, logits, labels, bins, seed, resamples)


def ece_equal_mass(
    logits: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, " n"],
    *,
    bins: int = 15,
    seed: int = 0,
    resamples: int = 1000,
) -> Result:
    """The same sum over bins of equal count (Nguyen and O'Connor, EMNLP 2015), see `equal_mass`."""
    return _of_confidence("ece_equal_mass", equal_mass, _mean, logits, labels, bins, seed, resamples)


def mce(
    logits: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, " n"],
    *,
    bins: int = 15,
    seed: int = 0,
    resamples: int = 1000,
) -> Result:
    """Maximum calibration error, the largest |accuracy_b - confidence_b| over bins of equal width that hold an example.

    (Naeini et al., AAAI 2015.) A bin counts however few examples it holds, so the interval is wide.
    """
    return _of_confidence("mce", equal_width, _largest, logits, labels, bins, seed, resamples)


def classwise_ece(
    logits: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, " n"],
    *,
    bins: int = 15,
    seed: int = 0,
    resamples: int = 1000,
) -> Result:
    """Mean over classes c of the binned error of p(c|x) against 1[y = c], equal widths (Kull et al., NeurIPS 2019).

    All probabilities are judged, not only the largest: with many classes most are near 0, and so is the error.
    """
    p = softmax(logits.astype(np.float64), axis=1)
    n, k = p.shape
    which = equal_width(p, bins) + bins * np.arange(k)
    cumulative = p.cumsum(axis=1)

    def error(which: Int[np.ndarray, "n k"], p: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> float:
        expected = np.bincount(which.ravel(), weights=p.ravel(), minlength=bins * k)
        seen = np.bincount(which[np.arange(len(labels)), labels], minlength=bins * k)
        return float(np.abs(expected - seen).sum() / p.size)

    def calibrated(coins: np.random.Generator) -> Int[np.ndarray, " n"]:
        # The last class takes the rest: rounding can leave the sum of all below 1.
        drawn: Int[np.ndarray, " n"] = (cumulative[:, :-1] < coins.random(n)[:, None]).sum(axis=1)
        return drawn

    return _measured("classwise_ece", error, (which, p), labels, calibrated, seed, resamples)


def error_interval(
    value: float, resampled: Float[np.ndarray, " r"], by_chance: Float[np.ndarray, " s"]
) -> tuple[float, float]:
    """The 95 % interval of a binned error `value`, from its values on resamples and on labels of a calibrated model.

    The lower end is the reflected one, 2 value - q(97.5 %) of `resampled`, and 0 where a perfectly calibrated
    classifier with the same confidences would show this error too: a test at 2.5 % against `by_chance`, the error with
    labels drawn from the confidences (Broecker and Smith, 2007). The upper end is the percentile of `resampled`, which
    errs on the wide side.
    """
    q_high = float(np.quantile(resampled, TAILS[1]))
    low = 0.0 if value <= np.quantile(by_chance, TAILS[1]) else max(0.0, 2 * value - q_high)
    return min(low, value), max(q_high, value)


def equal_width(values: Float[np.ndarray, "*shape"], bins: int) -> Int[np.ndarray, "*shape"]:
    """The bin of each value among `bins` of equal width over [0, 1]."""
    return bins_of(values, np.linspace(0, 1, bins + 1))


def equal_mass(values: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    """The bin of each value among `bins` that hold the same number of values, give or take one.

    Equal values share a bin, the one of their mean rank: bins do not depend on the order of the values, and ties make
    some larger than others, or empty.
    """
    doubled = (2 * rankdata(values, method="average")).astype(np.int64)  # ranks from 1, ties in halves
    which: Int[np.ndarray, " n"] = (doubled - 1) * bins // (2 * len(values))
    return which


def reliability(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], bins: int = 15) -> Reliability:
    """Per bin of equal width: how many examples, their mean confidence, and their accuracy with its exact interval."""
    confidence, correct = _confidence(logits, labels)
    return _diagram(np.linspace(0, 1, bins + 1), equal_width(confidence, bins), confidence, correct)


def reliability_equal_mass(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], bins: int = 15
) -> Reliability:
    """The same over bins of equal count. A bin's lower edge is its smallest confidence; an empty bin has no width."""
    confidence, correct = _confidence(logits, labels)
    which = equal_mass(confidence, bins)
    ascending = np.sort(confidence)
    first = np.searchsorted(np.sort(which), np.arange(bins))
    edges = np.append(ascending[np.minimum(first, len(which) - 1)], ascending[-1])
    return _diagram(edges, which, confidence, correct)


def _diagram(
    edges: Float[np.ndarray, " e"],
    which: Int[np.ndarray, " n"],
    confidence: Float[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
) -> Reliability:
    bins = len(edges) - 1
    count = np.bincount(which, minlength=bins)
    total = np.bincount(which, weights=confidence, minlength=bins)
    hits = np.bincount(which, weights=correct, minlength=bins).astype(int)
    shares = [exact_proportion("bin", int(k), int(n)) if n else None for k, n in zip(hits, count, strict=True)]
    return Reliability(
        edges=edges.tolist(),
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


Summary = Callable[[Float[np.ndarray, " b"], Int[np.ndarray, " b"]], float]
"""(|sum of confidence - correct| per bin, examples per bin) -> one number."""


def _mean(gap: Float[np.ndarray, " b"], count: Int[np.ndarray, " b"]) -> float:
    return float(gap.sum() / count.sum())


def _largest(gap: Float[np.ndarray, " b"], count: Int[np.ndarray, " b"]) -> float:
    return float((gap / np.maximum(count, 1)).max())


def _of_confidence(
    name: str,
    binning: Callable[[Float[np.ndarray, " n"], int], Int[np.ndarray, " n"]],
    summary: Summary,
    logits: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, " n"],
    bins: int,
    seed: int,
    resamples: int,
) -> Result:
    confidence, correct = _confidence(logits, labels)

    def error(confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]) -> float:
        which = binning(confidence, bins)
        gap = np.bincount(which, weights=confidence - correct, minlength=bins)
        return summary(np.abs(gap), np.bincount(which, minlength=bins))

    def calibrated(coins: np.random.Generator) -> Bool[np.ndarray, " n"]:
        return coins.random(len(confidence)) < confidence

    return _measured(name, error, (confidence,), correct, calibrated, seed, resamples)


def _measured(
    name: str,
    error: Callable[..., float],
    forecast: tuple[Shaped[np.ndarray, "n ..."], ...],
    outcome: Shaped[np.ndarray, " n"],
    calibrated: Callable[[np.random.Generator], Shaped[np.ndarray, " n"]],
    seed: int,
    resamples: int,
) -> Result:
    """`error(*forecast, outcome)` with its interval; `calibrated` draws outcomes from the forecast."""
    value = error(*forecast, outcome)
    again = resampled(error, *forecast, outcome, rng=generator(seed, "bootstrap", name), resamples=resamples)
    coins = np.random.default_rng(generator(seed, "calibrated", name).initial_seed())
    by_chance = np.array([error(*forecast, calibrated(coins)) for _ in range(resamples)])
    low, high = error_interval(value, again, by_chance)
    return Result(name, value, low, high, len(outcome))
