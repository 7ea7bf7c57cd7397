"""Accuracy, NLL and Brier against scikit-learn and by hand."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

from jemstone.evaluation import accuracy, brier, nll


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 4)) * 3, rng.integers(4, size=200)


def test_accuracy(predictions):
    logits, labels = predictions
    result = accuracy(logits, labels)
    assert result.value == accuracy_score(labels, logits.argmax(axis=1))
    assert result.low < result.value < result.high
    assert (result.name, result.n) == ("accuracy", 200)


def test_nll(predictions):
    logits, labels = predictions
    result = nll(logits, labels, resamples=100)
    assert result.value == pytest.approx(log_loss(labels, softmax(logits, axis=1)), rel=1e-9)
    assert result.low < result.value < result.high


def test_nll_is_finite_where_a_probability_underflows():
    assert nll(np.array([[2000.0, 0.0]]), np.array([1]), resamples=2).value == 2000


def test_brier_sums_over_classes(predictions):
    logits, labels = predictions
    p = softmax(logits, axis=1)
    by_hand = np.mean([sum((p[i, c] - (c == labels[i])) ** 2 for c in range(4)) for i in range(200)])
    assert brier(logits, labels, resamples=100).value == pytest.approx(by_hand, rel=1e-12)
    assert brier(np.zeros((5, 4)), labels[:5], resamples=2).value == pytest.approx(1 - 1 / 4)
    assert brier(np.array([[500.0, 0.0]]), np.array([1]), resamples=2).value == pytest.approx(2)


def test_the_width_of_the_interval_is_that_of_a_mean(predictions):
    logits, labels = predictions
    losses = -np.log(softmax(logits, axis=1)[np.arange(200), labels])
    result = nll(logits, labels, resamples=2000)
    assert result.high - result.low == pytest.approx(2 * 1.96 * losses.std() / np.sqrt(200), rel=0.1)
