"""Every claim carries its 95 % interval and its n.

Proportions get the exact interval of Clopper and Pearson (1934). Everything else gets Efron's percentile bootstrap
over examples: the 2.5 % and 97.5 % quantiles of the statistic over resamples drawn with replacement. Both describe the
chance of having drawn these test examples; neither says anything about retraining the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from scipy.stats import binomtest

from jemstone.errors import ConfigError
from jemstone.rng import generator

TAILS = (0.025, 0.975)
"""The quantiles that bound a two-sided 95 % interval."""


class Result(NamedTuple):
    """One measured number: `value` with its 95 % interval [`low`, `high`], which contains it, from `n` examples."""

    name: str
    value: float
    low: float
    high: float
    n: int


def exact_proportion(name: str, successes: int, n: int) -> Result:
    """`successes` / `n` with the exact binomial interval (Clopper and Pearson, 1934), which covers at least 95 %."""
    if not 0 <= successes <= n or n < 1:
        raise ConfigError(
            f"{name}: {successes} successes out of {n} is not a proportion; it needs 0 <= k <= n, n >= 1."
        )
    interval = binomtest(int(successes), int(n)).proportion_ci(0.95, method="exact")
    return Result(name, successes / n, float(interval.low), float(interval.high), int(n))


def bootstrap(
    name: str,
    statistic: Callable[..., float],
    *arrays: Shaped[np.ndarray, "_ ..."],
    seed: int = 0,
    resamples: int = 1000,
) -> Result:
    """`statistic(*arrays)` with its percentile interval; rows of all arrays are resampled together.

    The random stream is derived from `seed` and `name`, so a result does not depend on what was measured before it.
    """
    values = resampled(statistic, *arrays, rng=generator(seed, "bootstrap", name), resamples=resamples)
    return _percentile(name, statistic(*arrays), values, len(arrays[0]))


def bootstrap_two(
    name: str,
    statistic: Callable[..., float],
    a: Shaped[np.ndarray, "m ..."],
    b: Shaped[np.ndarray, "n ..."],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Result:
    """`statistic(a, b)` with its percentile interval; the two samples are resampled independently. n = len(a) + len(b).

    A statistic that no resample can move, such as the AUROC of two samples that do not overlap, gets an interval of
    zero width: read that as "not resolved by these n", or replace it by an exact bound where there is one.
    """
    rng = generator(seed, "bootstrap", name)
    pairs = zip(_indices(len(a), resamples, rng), _indices(len(b), resamples, rng), strict=True)
    values = np.array([statistic(a[i], b[j]) for i, j in pairs])
    return _percentile(name, statistic(a, b), values, len(a) + len(b))


def resampled(
    statistic: Callable[..., float], *arrays: Shaped[np.ndarray, "_ ..."], rng: torch.Generator, resamples: int
) -> Float[np.ndarray, " resamples"]:
    """The statistic on each of `resamples` samples of rows, drawn with replacement and shared by all arrays."""
    if len({len(array) for array in arrays}) != 1 or len(arrays[0]) == 0:
        raise ConfigError(f"Paired resampling needs arrays of one length >= 1, got {[len(a) for a in arrays]}.")
    return np.array([statistic(*(array[i] for array in arrays)) for i in _indices(len(arrays[0]), resamples, rng)])


def _indices(n: int, resamples: int, rng: torch.Generator) -> Iterator[Int[np.ndarray, " n"]]:
    if resamples < 1 or n < 1:
        raise ConfigError(f"A bootstrap needs at least one example and one resample, got n={n}, resamples={resamples}.")
    for _ in range(resamples):
        yield torch.randint(n, (n,), generator=rng).numpy()


def containing(name: str, value: float, low: float, high: float, n: int) -> Result:
    """The result with [low, high] widened to the value: a biased statistic can leave its own percentile interval."""
    return Result(name, float(value), min(float(low), float(value)), max(float(high), float(value)), n)


def bounded(result: Result, trials: int) -> Result:
    """`result`; where it is 0 or 1, which no resample can move, with the exact bound of a proportion of `trials`."""
    if result.value not in (0.0, 1.0):
        return result
    return exact_proportion(result.name, int(result.value) * trials, trials)._replace(n=result.n)


def _percentile(name: str, value: float, values: Float[np.ndarray, " resamples"], n: int) -> Result:
    low, high = np.quantile(values, TAILS)
    return containing(name, value, low, high, n)
