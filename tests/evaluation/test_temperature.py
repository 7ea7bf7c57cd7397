"""Temperature scaling on logits whose temperature is known."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from jemstone.evaluation.temperature import temperature
from jemstone.temperature import BOUNDS, fit_temperature


def calibrated(n, classes=4, seed=0):
    """Logits, and labels drawn from their softmax: T = 1 up to the draw."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    return logits, (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


def test_calibrated_logits_have_temperature_one():
    assert fit_temperature(*calibrated(20_000)) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("factor", [0.05, 3.0, 40.0])
def test_a_factor_on_the_logits_is_recovered(factor):
    logits, labels = calibrated(500)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * fit_temperature(logits, labels), rel=1e-4)


def test_a_constant_on_all_logits_changes_nothing():
    logits, labels = calibrated(200)
    shift = np.random.default_rng(1).normal(size=(200, 1)) * 100
    assert fit_temperature(logits + shift, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-4)


def test_no_other_temperature_is_better():
    logits, labels = calibrated(300)
    logits = 5 * logits
    fitted = fit_temperature(logits, labels)
    best = log_loss(labels, softmax(logits / fitted, axis=1))
    for factor in (0.2, 0.5, 0.9, 0.99, 1.01, 1.1, 2, 5):
        assert log_loss(labels, softmax(logits / (fitted * factor), axis=1)) > best


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_without_a_minimum_it_is_the_bound(scale):
    logits, _ = calibrated(100)
    assert fit_temperature(scale * logits, logits.argmax(axis=1)) == BOUNDS[0]
    assert fit_temperature(scale * logits, logits.argmin(axis=1)) == BOUNDS[1]


def test_the_interval_covers_the_true_temperature():
    results = [temperature(*calibrated(400, seed=seed), resamples=60) for seed in range(20)]
    assert all(result.low <= result.value <= result.high and result.n == 400 for result in results)
    assert sum(result.low <= 1 <= result.high for result in results) >= 16
    width = np.mean([result.high - result.low for result in results])
    spread = np.std([result.value for result in results])
    assert 2 * spread < width < 6 * spread


def test_smoothing_keeps_a_model_without_mistakes_from_certainty():
    logits, _ = calibrated(100)
    labels, share = logits.argmax(axis=1), 1 / 102
    fitted = fit_temperature(logits, labels, smoothing=share)
    targets = np.full(logits.shape, share / 4)
    targets[np.arange(100), labels] += 1 - share
    grid = np.geomspace(0.01, 10, 2001)
    losses = [-(targets * log_softmax(logits / t, axis=1)).sum(axis=1).mean() for t in grid]
    assert fitted == pytest.approx(grid[np.argmin(losses)], rel=5e-3)
    assert BOUNDS[0] < fitted < 1
