"""Thresholds for saying "I don't know", each with a law that holds for every finite sample, and risk-coverage curves.

All laws need one thing: held-out data that the model was not trained on, exchangeable with (for `confidence_threshold`:
independent of and distributed as) what comes later. They need nothing of the model. Ties are never split: whatever
equals a threshold passes it, here and in use, so compare with >= and in the precision that the threshold was set in.
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
    says whether the prediction was right. inf where no threshold can be shown to keep `error`.
    """
    _check("confidence", confidence)
    if correct.shape != confidence.shape:
        raise ConfigError(f"confidence has shape {confidence.shape}, correct {correct.shape}: one of each per example.")
    for name, value in {"error": error, "delta": delta}.items():
        if not 0 < value < 1:
            raise ConfigError(f"{name}={value} must lie in (0, 1).")
    levels, accepted, wrong = _at_levels(confidence, correct)
    passed = binom.cdf(wrong, accepted, error) <= delta
    enough = accepted >= math.ceil(math.log(delta) / math.log1p(-error))  # fewer could not pass without any error
    kept = enough & (np.cumsum(enough & ~passed) == 0)
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


def _at_levels(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> tuple[Shaped[np.ndarray, " u"], Shaped[np.ndarray, " u"], Shaped[np.ndarray, " u"]]:
    """Every distinct confidence, highest first, with how many reach it and how many of these are wrong."""
    levels, rank, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(rank, weights=~correct, minlength=len(levels)).astype(int)
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
