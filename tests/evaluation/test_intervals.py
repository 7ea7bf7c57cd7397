"""Intervals against closed forms, and their coverage against its own binomial error."""

import numpy as np
import pytest
from scipy.stats import beta

from jemstone.errors import ConfigError
from jemstone.evaluation import bootstrap, bootstrap_two, exact_proportion


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (271, 300)])
def test_exact_proportion_is_clopper_pearson(k, n):
    result = exact_proportion("share", k, n)
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    assert result.value == k / n
    assert result.n == n
    np.testing.assert_allclose([result.low, result.high], [low, high], atol=1e-9)


@pytest.mark.parametrize(("k", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_a_proportion_out_of_range_is_refused(k, n):
    with pytest.raises(ConfigError, match="is not a proportion"):
        exact_proportion("share", k, n)


def test_bootstrap_of_a_mean_has_the_normal_width():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    result = bootstrap("mean", np.mean, x, resamples=2000)
    half = 1.96 * x.std() / np.sqrt(len(x))
    assert result.value == x.mean()
    assert result.n == 1000
    np.testing.assert_allclose([result.low, result.high], [x.mean() - half, x.mean() + half], atol=0.1 * half)


def test_bootstrap_resamples_rows_of_all_arrays_together():
    x = np.arange(50.0)
    result = bootstrap("difference", lambda a, b: float((a - b).sum()), x, x, resamples=20)
    assert (result.low, result.value, result.high) == (0, 0, 0)


def test_bootstrap_of_two_samples_resamples_them_independently():
    x = np.random.default_rng(0).normal(size=400)
    result = bootstrap_two("difference", lambda a, b: float(a.mean() - b.mean()), x, x, resamples=2000)
    half = 1.96 * x.std() * np.sqrt(2 / 400)
    assert result.n == 800
    np.testing.assert_allclose([result.low, result.high], [-half, half], atol=0.12 * half)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    trials = 300
    hits = 0
    for _ in range(trials):
        result = bootstrap("mean", np.mean, rng.exponential(size=200), seed=int(rng.integers(2**31)), resamples=300)
        hits += result.low <= 1.0 <= result.high
    # 0.94: the percentile interval of a skewed mean at n = 200 covers a little less than nominal. 4 standard errors.
    assert abs(hits / trials - 0.94) < 4 * np.sqrt(0.94 * 0.06 / trials)


def test_the_interval_depends_on_seed_and_name_only():
    x = np.random.default_rng(0).normal(size=100)
    first = bootstrap("a", np.mean, x, seed=1, resamples=50)
    assert bootstrap("a", np.mean, x, seed=1, resamples=50) == first
    assert bootstrap("a", np.mean, x, seed=2, resamples=50) != first
    assert bootstrap("b", np.mean, x, seed=1, resamples=50)[2:] != first[2:]


def test_the_interval_always_contains_the_value():
    x = np.random.default_rng(0).normal(size=30)
    result = bootstrap("distinct", lambda a: float(len(np.unique(a))), x, resamples=50)  # resampling only loses values
    assert result.low < 30
    assert result.high == result.value == 30


def test_arrays_of_different_length_are_refused():
    with pytest.raises(ConfigError, match="one length"):
        bootstrap("x", np.mean, np.zeros(3), np.zeros(4))
    with pytest.raises(ConfigError, match="at least one example"):
        bootstrap_two("x", np.mean, np.zeros(3), np.zeros(0))
    with pytest.raises(ConfigError, match="one resample"):
        bootstrap("x", np.mean, np.zeros(3), resamples=0)
