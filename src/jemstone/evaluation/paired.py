"""Paired tests: do two models differ on the same examples, or is it the luck of the draw of these examples?

Both models are measured on the same resample of examples (paired bootstrap; Efron and Tibshirani 1993; Berg-Kirkpatrick
et al., EMNLP 2012), so that what makes an example hard for both cancels. A resample is a column of counts: how often
each example was drawn. Statistics take counts (n, b), b resamples at a time, and return b values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jemstone.errors import ConfigError
from jemstone.evaluation.calibration import equal_width
from jemstone.rng import generator

Scores = Float[np.ndarray, " _"]
Values = Float[np.ndarray, " b"]
Statistic = Callable[..., Values]
"""(counts (n, b), one array per sample) -> b values."""

CHUNK = 16
"""Resamples at a time: what is held in memory, without a say in the numbers' law."""

ZERO = 1e-12
"""A difference below this is rounding: two models with the same predictions differ by exactly nothing."""


def mean_difference(first: Shaped[np.ndarray, " n"], second: Shaped[np.ndarray, " n"]) -> Statistic:
    """Difference of the means of two columns of values of the same n examples, second minus first."""
    change = second.astype(np.float64) - first.astype(np.float64)
    return lambda counts: change @ counts / len(change)


def ece_difference(
    first: tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]],
    second: tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]],
    bins: int,
) -> Statistic:
    """Difference of expected calibration errors; each model is given as (correct, confidence).

    Bins have equal width, [low, high), the last one [low, 1], and stay fixed while examples are resampled. ECE is
    biased upwards on a resample, for both models alike: the bias cancels in the difference as far as they are alike.
    """
    a, b = _ece(*first, bins), _ece(*second, bins)
    return lambda counts: b(counts) - a(counts)


def ranking_difference(metric: str, first: tuple[Scores, Scores], second: tuple[Scores, Scores]) -> Statistic:
    """Difference in one metric of `RANKING`; each model is given as (inside, outside) scores of the same examples.

    It takes two arrays of counts, of the inside (m, b) and of the outside examples (n, b).
    """
    a, b = RANKING[metric](*first), RANKING[metric](*second)
    return lambda inside, outside: b(inside, outside) - a(inside, outside)


def observed(statistic: Statistic, sizes: Mapping[str, int]) -> float:
    """The statistic of the samples themselves: every example once. `sizes` as in `resample`."""
    return float(statistic(*(np.ones((n, 1)) for n in sizes.values()))[0])


def resample(
    statistics: Sequence[Statistic], sizes: Mapping[str, int], *, seed: int, resamples: int
) -> list[Float[np.ndarray, " resamples"]]:
    """Each statistic on the same `resamples` resamples. `sizes` holds n by the name of each sample, in their order.

    A sample's stream is named by `seed` and its name: statistics of two calls that share a sample share its draws.
    """
    if resamples < 1 or min(sizes.values()) < 1:
        raise ConfigError(f"A bootstrap needs one resample and one example at least, got {resamples} of {dict(sizes)}.")
    streams = [(np.random.default_rng(generator(seed, "paired", s).initial_seed()), n) for s, n in sizes.items()]
    values = np.empty((len(statistics), resamples))
    for start in range(0, resamples, CHUNK):
        stop = min(start + CHUNK, resamples)
        counts = [_counts(rng, n, stop - start) for rng, n in streams]
        for row, statistic in zip(values, statistics, strict=True):
            row[start:stop] = statistic(*counts)
    return list(values)


def p_value(differences: Float[np.ndarray, " resamples"]) -> float:
    """Two-sided: 2 min(P(d* <= 0), P(d* >= 0)), each tail (1 + hits) / (1 + resamples), and at most 1.

    The +1 keeps p above 0, which no finite number of resamples could tell (Davison and Hinkley 1997). On 0/1 values it
    is below McNemar's exact p (0.18 for 0.23 where 9 examples speak for one model and 16 for the other). At alpha 5 %
    it errs in up to 7 % of cases where fewer than about 10 examples tell the models apart, and in at most 5 % above.
    """
    below, above = int((differences <= ZERO).sum()), int((differences >= -ZERO).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(differences)))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): rejecting those <= alpha errs at all with probability <= alpha.

    Valid however the tests depend on each other, as columns of one table do.
    """
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def _counts(rng: np.random.Generator, n: int, b: int) -> Float[np.ndarray, "n b"]:
    drawn = rng.integers(0, n, size=(b, n)) + n * np.arange(b)[:, None]
    # One resample per column: statistics gather and add whole rows, which lie together in memory. Counts and their
    # sums are whole numbers below 2^24, which float32 holds exactly; what is summed further is summed in float64.
    return np.ascontiguousarray(np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n).T, dtype=np.float32)


def _ece(correct: Bool[np.ndarray, " n"], confidence: Float[np.ndarray, " n"], bins: int) -> Statistic:
    which = equal_width(confidence, bins)
    order = which.argsort(kind="stable")
    starts = np.unique(which[order], return_index=True)[1]
    gap = (confidence.astype(np.float64) - correct)[order, None]

    def value(counts: Float[np.ndarray, "n b"]) -> Values:
        return _sum(np.abs(np.add.reduceat(gap * counts[order], starts, axis=0))) / len(gap)

    return value


def _auroc(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> Statistic:
    order = outside.argsort(kind="stable")
    below, upto = (np.searchsorted(outside[order], inside, side=side) for side in ("left", "right"))
    pairs = 2 * len(inside) * len(outside)

    def value(inside_counts: Float[np.ndarray, "m b"], outside_counts: Float[np.ndarray, "n b"]) -> Values:
        lower = _running(outside_counts[order])
        return _sum(inside_counts * (lower[below] + lower[upto])) / pairs

    return value


def _average_precision(positive: Float[np.ndarray, " m"], negative: Float[np.ndarray, " n"]) -> Statistic:
    up, down = positive.argsort(kind="stable")[::-1], negative.argsort(kind="stable")[::-1]
    hits, false = (_at_least(values, positive) for values in (positive, negative))

    def value(positive_counts: Float[np.ndarray, "m b"], negative_counts: Float[np.ndarray, "n b"]) -> Values:
        accepted = _running(positive_counts[up])[hits]
        # A resample may lack every example that a threshold would accept: 0 of 0, and its weight is 0.
        precision = accepted / np.maximum(accepted + _running(negative_counts[down])[false], 1)
        return _sum(positive_counts * precision) / len(positive)

    return value


def _fpr95(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> Statistic:
    needed = -(-95 * len(inside) // 100)  # ceil in integers: 0.95 * m is not exact in binary
    up, down = inside.argsort(kind="stable")[::-1], outside.argsort(kind="stable")[::-1]
    accepted = _at_least(outside, inside[up])

    def value(inside_counts: Float[np.ndarray, "m b"], outside_counts: Float[np.ndarray, "n b"]) -> Values:
        threshold = (np.cumsum(inside_counts[up], axis=0) >= needed).argmax(axis=0)
        false = _running(outside_counts[down])
        share: Values = false[accepted[threshold], np.arange(len(threshold))] / len(outside)
        return share

    return value


RANKING: dict[str, Callable[[Scores, Scores], Statistic]] = {
    "auroc": _auroc,
    "aupr_in": _average_precision,
    "aupr_out": lambda inside, outside: _swapped(_average_precision(-outside, -inside)),
    "fpr95": _fpr95,
}
"""Ranking metrics of (inside, outside) scores, as functions of how often each example was drawn."""


def _swapped(statistic: Statistic) -> Statistic:
    return lambda inside_counts, outside_counts: statistic(outside_counts, inside_counts)


def _at_least(values: Scores, thresholds: Scores) -> Int[np.ndarray, " _"]:
    """How many of `values` are >= each threshold."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")


def _running(counts: Float[np.ndarray, "n b"]) -> Float[np.ndarray, "n+1 b"]:
    """Sums of the first 0, 1, ..., n rows."""
    sums = np.zeros((len(counts) + 1, counts.shape[1]), dtype=counts.dtype)
    np.cumsum(counts, axis=0, out=sums[1:])
    return sums


def _sum(values: Float[np.ndarray, "n b"]) -> Values:
    total: Values = values.sum(axis=0, dtype=np.float64)
    return total
