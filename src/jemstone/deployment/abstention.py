"""Thresholds for saying "I don't know", each with a law that holds in finite samples, and risk-coverage curves.

The laws need held-out data on which nothing was trained, chosen or calibrated (a temperature, too, wants data of its
own), exchangeable with what comes later; `confidence_threshold` needs it independent and identically distributed. They
need nothing of the model, and they say nothing about inputs of another distribution.

Ties are never split: whatever equals a threshold passes it. Compare with >=, in the precision of the held-out scores.

Accepting by log-density and then by something else needs no second set of held-out data. Given a threshold t from
`density_threshold`, the held-out inputs strictly above t are independent draws of the inputs that pass it, and so the
other thresholds are set on those alone; the one at t is left out, because it is no random draw. Their laws then hold
among the inputs that pass. This argument, unlike the thresholds themselves, asks that few log-densities tie at t.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import binom

from jemstone.errors import ConfigError


def set_threshold(true_probability: Float[np.ndarray, ...], coverage: float) -> float:
    """The threshold t at which the sets {y : p(y|x) >= t} contain the true label with probability >= `coverage`.

    `true_probability` (n,) is p(y|x) of the true label on held-out data. t is its k-th smallest value,
    k = floor((n + 1) (1 - coverage)), and 0, which lets all labels in, where n is so small that k = 0. Law: over the
    draw of the held-out data and of one new example, the true label is missed with probability at most k / (n + 1),
    and exactly that where no two values tie. Given the held-out data, and without ties, the coverage is distributed
    as Beta(n + 1 - k, k); ties can only raise it. Sets may be empty.

    Split conformal prediction with score 1 - p(y|x) (Vovk et al., 2005; Sadinle et al., 2019; Angelopoulos and Bates,
    2021). ConfigError for values outside [0, 1] and for a coverage outside (0, 1].
    """
    _check("true_probability", true_probability)
    outside = (true_probability < 0) | (true_probability > 1 + 1e-6)  # a float32 softmax may exceed 1 by rounding
    if outside.any():
        raise ConfigError(
            f"true_probability: {int(outside.sum())} of {len(outside)} values lie outside [0, 1], the first is "
            f"{true_probability[outside][0]:g}; pass the softmax of the logits at the true label."
        )
    if not 0 < coverage <= 1:
        raise ConfigError(f"coverage={coverage} must lie in (0, 1]: the share of sets that contain the true label.")
    return _kth_smallest(true_probability, 1 - _exact(coverage), 0.0)


def density_threshold(log_density: Float[np.ndarray, ...], rejection: float) -> float:
    """The threshold below which a new in-distribution input falls with probability <= `rejection`.

    `log_density` (n,) is any score of held-out data that is higher for in-distribution inputs. The threshold is its
    k-th smallest value, k = floor((n + 1) rejection), and -inf where n is so small that k = 0. Law: over the draw of
    the held-out data and of one new example, a new input falls below with probability at most k / (n + 1), and exactly
    that where no two values tie. Given the held-out data, and without ties, the share refused is distributed as
    Beta(k, n + 1 - k); ties can only lower it.

    Conformal outlier detection (Laxhammar and Falkman, 2010; Bates et al., 2023). ConfigError for NaN and for a
    rejection outside [0, 1).
    """
    _check("log_density", log_density)
    if not 0 <= rejection < 1:
        raise ConfigError(f"rejection={rejection} must lie in [0, 1): the share of in-distribution inputs refused.")
    return _kth_smallest(log_density, _exact(rejection), -math.inf)


def confidence_threshold(
    confidence: Float[np.ndarray, ...], correct: Bool[np.ndarray, ...], error: float, delta: float = 0.05
) -> float:
    """The smallest threshold t for which P(wrong | confidence >= t) <= `error`, with probability >= 1 - `delta`.

    `confidence` (n,) is any score of held-out data, higher where the prediction is more to be trusted; `correct` (n,)
    says whether the prediction was right. inf, which accepts nothing, where no threshold can be shown to keep `error`:
    with no mistake at all it takes log(delta) / log(1 - error) examples.

    Law: over the draw of n independent held-out examples, the probability that the error among later inputs accepted
    exceeds `error` is at most `delta`. It needs no assumption where confidences are continuous. Where they tie, it is
    proven if the error among the accepted never falls as the threshold is lowered.

    Fixed-sequence testing (Learn then Test, Angelopoulos et al., 2021): thresholds are tried from the highest down,
    each by an exact binomial test (Clopper and Pearson, 1934) at level delta, up to the first that fails. This needs
    no union bound, unlike the search of Geifman and El-Yaniv (2017). ConfigError for NaN, for shapes that differ, and
    for an `error` or a `delta` outside (0, 1).
    """
    _check("confidence", confidence)
    _check_correct(confidence, correct)
    for name, value in {"error": error, "delta": delta}.items():
        if not 0 < value < 1:
            raise ConfigError(f"{name}={value} must lie in (0, 1).")
    levels, accepted, wrong = _at_levels(confidence, correct)
    # Why each test is exact. Lower a threshold through all real numbers: what is tested changes at held-out confidences
    # only. At a fixed threshold, given the number accepted N, the number wrong W is Binomial(N, R), R the true error.
    # To return a bad threshold, one must pass the test at the first bad one met, b, where R(b) >= error.
    #
    # Why the draw may say where to begin: at the m-th highest confidence, m the fewest that can pass, or b would be
    # random. R is continuous, so that R = error where intervals of bad thresholds end. Say the start lies
    # - above b, and below a bad interval that ends at a: R(a) = R(b) = error. Given N(a) < m <= N(b), the inputs above
    #   a, and those between a and b, are wrong with probability `error` alike: W(b) is Binomial(N(b), error).
    # - in a bad interval from a to c: R(a) = error, and R >= error down to c, so mistakes below a come no later than
    #   if they were spread evenly. Given N(a) < m <= N(c), W among the first m is at least Binomial(m, error) in law.
    # Either way a test at level delta is passed with probability at most delta, whatever the counts.
    # With ties R jumps. If it never falls on the way down, all that comes after the first bad threshold is wrong with
    # probability `error` or more, and W at the start is again at least binomial in law.
    possible = binom.cdf(0, accepted, error) <= delta
    passed = binom.cdf(wrong, accepted, error) <= delta
    kept = passed & (np.cumsum(possible & ~passed) == 0)
    return float(levels[kept][-1]) if kept.any() else math.inf


def typicality(log_density: Float[np.ndarray, ...], reference: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """The percentile, in (0, 100], of each log-density (m,) among those of held-out data (n,): 100 times a p-value.

    (1 + #{reference <= x}) / (n + 1) is a conformal p-value (Vovk et al., 2005): for a new in-distribution input
    P(typicality <= 100 a) <= a for every a, over the draw of the reference too.
    """
    _check("log_density", log_density)
    _check("reference", reference)
    below = np.searchsorted(np.sort(reference), log_density, side="right")
    return 100.0 * (1 + below) / (len(reference) + 1)


def risk_coverage(
    confidence: Float[np.ndarray, ...], correct: Bool[np.ndarray, ...]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Share accepted i / n, and share wrong among the i most confident, for i = 1 .. n (El-Yaniv and Wiener, 2010).

    Where confidences tie, the share wrong is the mean over all orders of the tied: no order of the file shows. An
    input that has no right answer counts as wrong. ConfigError for NaN, for shapes that differ, and for no examples.
    """
    _check("confidence", confidence)
    _check_correct(confidence, correct)
    if not len(confidence):
        raise ConfigError("A risk-coverage curve needs at least one example.")
    _, accepted, wrong = _at_levels(confidence, correct)
    count = np.arange(1, len(confidence) + 1)
    # A part of tied inputs holds as large a part of their mistakes, on average: linear between the levels.
    return count / len(count), np.interp(count, np.append(0, accepted), np.append(0, wrong)) / count


def aurc(confidence: Float[np.ndarray, ...], correct: Bool[np.ndarray, ...]) -> float:
    """Area under the risk-coverage curve, the mean risk over coverages 1/n .. 1: lower is better.

    A confidence that knows nothing gets the error rate (Geifman et al., 2019).
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def _at_levels(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> tuple[Shaped[np.ndarray, " u"], Shaped[np.ndarray, " u"], Shaped[np.ndarray, " u"]]:
    """Every distinct confidence, highest first, with how many reach it and how many of these are wrong."""
    levels, rank, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(rank, weights=np.logical_not(correct), minlength=len(levels)).astype(int)
    return -levels, np.cumsum(count), np.cumsum(wrong)


def _exact(value: float) -> Fraction:
    """The decimal number that was written: in binary 100 (1 - 0.9) is less than 10, and its floor is 9."""
    return Fraction(str(value))


def _kth_smallest(values: Float[np.ndarray, " n"], share: Fraction, otherwise: float) -> float:
    k = math.floor((len(values) + 1) * share)
    return float(np.partition(values, k - 1)[k - 1]) if k else otherwise


def _check(name: str, values: Float[np.ndarray, ...]) -> None:
    if values.ndim != 1:
        raise ConfigError(f"{name} has shape {values.shape}; it must be one number per held-out example, (n,).")
    if np.isnan(values).any():
        raise ConfigError(f"{name}: {int(np.isnan(values).sum())} of {len(values)} values are NaN; check the logits.")


def _check_correct(confidence: Float[np.ndarray, ...], correct: Bool[np.ndarray, ...]) -> None:
    if correct.shape != confidence.shape:
        raise ConfigError(f"confidence has shape {confidence.shape}, correct {correct.shape}: one of each per example.")
