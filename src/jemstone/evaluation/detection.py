"""How well a score tells in-distribution from out-of-distribution inputs: metrics, and joint intervals over many sets.

A score is higher for in-distribution inputs, and so "in-distribution" is the positive class, except in `aupr_out`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int

from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.intervals import TAILS, Result, bounded, containing
from jemstone.rng import generator

Scores = Float[np.ndarray, " _"]


def auroc(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> float:
    """P(a random inside score > a random outside score) + P(equal) / 2."""
    return _auroc(*_histograms(inside, outside))


def aupr_in(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> float:
    """Average precision, sum_t (recall_t - recall_{t-1}) precision_t over thresholds, in-distribution as positive.

    Unlike AUROC it depends on the sizes of the two samples: a score that knows nothing gets m / (m + n).
    """
    return _aupr_in(*_histograms(inside, outside))


def aupr_out(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> float:
    """Average precision with out-of-distribution as positive, on negated scores; n / (m + n) for one without a clue."""
    return _aupr_out(*_histograms(inside, outside))


def fpr95(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> float:
    """Share of outside inputs accepted when at least 95 % of inside inputs are.

    Accepted means score >= t, where t is the largest inside score for which at least ceil(0.95 m) of the m inside
    scores are >= t. Ties are never split: whatever equals t is accepted on both sides. Libraries with outliers as
    positive (pytorch-ood) call another number by this name, fpr95(-outside, -inside) in these terms.
    """
    return _fpr95(*_histograms(inside, outside))


def detections(
    score_name: str,
    inside: Float[np.ndarray, " m"],
    outside: Mapping[str, Scores],
    *,
    near: Collection[str] = (),
    seed: int = 0,
    resamples: int = 1000,
) -> list[Result]:
    """AUROC, AUPR-in, AUPR-out and FPR at 95 % TPR of one score against each set of `outside`, and their averages.

    Named `ood/SET/SCORE/METRIC`; `ood_mean/near/SCORE/METRIC` averages over the sets in `near`, `ood_mean/far/...`
    over the others, each left out where there are none. n counts the inputs of both sides.

    Intervals are percentile bootstraps. In each resample all sets face the same draw of the inside scores, because
    that sample is what they share; each set is drawn from a stream of its own, so that its result does not depend on
    which others are measured. An average is averaged within each resample: intervals of sets cannot be. All scores are
    resampled alike.

    Where no resample can move a value of 0 or 1, the exact bound of a proportion stands in: an FPR is one of n, and
    samples that do not overlap order min(m, n) disjoint pairs correctly. An average takes the smallest n of its sets:
    that all sets pass one trial together is at most as probable as the average. AUPR has no such bound, so a perfect
    one has an interval of zero width.

    Raises DataError for scores that cannot be ranked, ConfigError for fewer than one resample.
    """
    if resamples < 1:
        raise ConfigError(f"A bootstrap needs at least one resample, got resamples={resamples}.")
    for name, scores in outside.items():
        if not (len(inside) and len(scores) and np.isfinite(inside).all() and np.isfinite(scores).all()):
            raise DataError(
                f"ood/{name}/{score_name}: scores must be finite and not empty; check the inputs and the model's "
                "logits, of this set and of the test split."
            )
    values = {name: _measured(inside, scores) for name, scores in outside.items()}
    drawn = _resampled(inside, outside, seed, resamples)
    sizes = {name: len(scores) for name, scores in outside.items()}
    groups = {f"ood/{name}": [name] for name in outside}
    groups["ood_mean/near"] = [name for name in outside if name in near]
    groups["ood_mean/far"] = [name for name in outside if name not in near]
    results = []
    for prefix, names in groups.items():
        if not names:
            continue
        value = np.mean([values[name] for name in names], axis=0)
        low, high = np.quantile(np.mean([drawn[name] for name in names], axis=0), TAILS, axis=0)
        n, fewest = len(inside) + sum(sizes[name] for name in names), min(sizes[name] for name in names)
        trials = {"auroc": min(len(inside), fewest), "fpr95": fewest}
        for i, metric in enumerate(METRICS):
            result = containing(f"{prefix}/{score_name}/{metric}", value[i], low[i], high[i], n)
            results.append(bounded(result, trials[metric]) if metric in trials else result)
    return results


def _auroc(positive: Int[np.ndarray, " u"], negative: Int[np.ndarray, " u"]) -> float:
    below = np.cumsum(negative) - negative
    wins = int((positive * (2 * below + negative)).sum())  # twice the Mann-Whitney U, in integers: exact
    return wins / (2 * int(positive.sum()) * int(negative.sum()))


def _aupr_in(positive: Int[np.ndarray, " u"], negative: Int[np.ndarray, " u"]) -> float:
    accepted, hits = np.cumsum((positive + negative)[::-1]), np.cumsum(positive[::-1])
    # Not a dot product: BLAS would start threads for it, thousands of times.
    return float((positive[::-1] * (hits / np.maximum(accepted, 1))).sum() / positive.sum())


def _aupr_out(positive: Int[np.ndarray, " u"], negative: Int[np.ndarray, " u"]) -> float:
    return _aupr_in(negative[::-1], positive[::-1])


def _fpr95(positive: Int[np.ndarray, " u"], negative: Int[np.ndarray, " u"]) -> float:
    needed = -(-95 * int(positive.sum()) // 100)  # ceil in integers: 0.95 * n is not exact in binary
    threshold = int(np.searchsorted(np.cumsum(positive[::-1]), needed))
    return int(negative[::-1][: threshold + 1].sum()) / int(negative.sum())


METRICS: dict[str, Callable[..., float]] = {
    "auroc": _auroc,
    "aupr_in": _aupr_in,
    "aupr_out": _aupr_out,
    "fpr95": _fpr95,
}
"""Each metric as a function of how often each distinct score, in ascending order, occurs inside and outside."""


def _ranks(
    inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"], int]:
    """The rank of each score among the distinct ones of both samples, and how many of these there are."""
    distinct, rank = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    return rank[: len(inside)], rank[len(inside) :], len(distinct)


def _histograms(
    inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " u"], Int[np.ndarray, " u"]]:
    a, b, distinct = _ranks(inside, outside)
    return np.bincount(a, minlength=distinct), np.bincount(b, minlength=distinct)


def _measured(inside: Float[np.ndarray, " m"], outside: Float[np.ndarray, " n"]) -> list[float]:
    counts = _histograms(inside, outside)
    return [metric(*counts) for metric in METRICS.values()]


def _resampled(
    inside: Float[np.ndarray, " m"], outside: Mapping[str, Scores], seed: int, resamples: int
) -> dict[str, Float[np.ndarray, "resamples metrics"]]:
    """All metrics of each set on each resample; row r of every set has seen the same inside scores."""
    # All metrics depend on the scores through their order only. One sort, and every resample is two histograms.
    ranks = {name: _ranks(inside, scores) for name, scores in outside.items()}
    streams = {name: generator(seed, "bootstrap", "ood", "outside", name) for name in outside}
    shared = generator(seed, "bootstrap", "ood", "inside")
    drawn = {name: np.empty((resamples, len(METRICS))) for name in outside}
    for r in range(resamples):
        i = _indices(len(inside), shared)
        for name, (a, b, distinct) in ranks.items():
            j = _indices(len(b), streams[name])
            counts = np.bincount(a[i], minlength=distinct), np.bincount(b[j], minlength=distinct)
            drawn[name][r] = [metric(*counts) for metric in METRICS.values()]
    return drawn


def _indices(n: int, rng: torch.Generator) -> Int[np.ndarray, " n"]:
    return torch.randint(n, (n,), generator=rng).numpy()
