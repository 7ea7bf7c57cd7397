"""Calibration error against brute force and torchmetrics, its traps, and the coverage of its interval."""

import json

import numpy as np
import pytest
import torch
from scipy.special import softmax

from jemstone.evaluation import ece, exact_proportion, reliability


def brute_force(logits, labels, bins):
    p = softmax(logits, axis=1)
    total = 0.0
    for b in range(bins):
        inside = [
            i for i in range(len(p)) if b / bins <= p[i].max() < (b + 1) / bins or (b == bins - 1 and p[i].max() == 1)
        ]
        if inside:
            confidence = np.mean([p[i].max() for i in inside])
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(p) * abs(confidence - accuracy)
    return total


def with_confidence(confidence, correct):
    """Two-class logits whose larger probability is `confidence`, and labels that agree where `correct`."""
    logits = np.stack([np.log(confidence) - np.log1p(-confidence), np.zeros(len(confidence))], axis=1)
    return logits, np.where(correct, 0, 1)


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    return rng.normal(size=(500, 3)) * 2, rng.integers(3, size=500)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_the_definition(predictions, bins):
    assert ece(*predictions, bins=bins, resamples=2).value == pytest.approx(brute_force(*predictions, bins), abs=1e-12)


def test_ece_agrees_with_torchmetrics(predictions):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = predictions
    theirs = functional.multiclass_calibration_error(
        torch.tensor(softmax(logits, axis=1)), torch.tensor(labels), num_classes=3, n_bins=15, norm="l1"
    )
    assert ece(logits, labels, resamples=2).value == pytest.approx(float(theirs), abs=1e-6)


def test_certain_and_always_wrong_is_an_error_of_one():
    logits = np.tile([1000.0, 0.0], (100, 1))
    result = ece(logits, np.ones(100, dtype=np.int64), resamples=50)
    assert (result.value, result.low, result.high) == (1, 1, 1)
    diagram = reliability(logits, np.ones(100, dtype=np.int64))
    assert diagram["count"] == [0] * 14 + [100]
    assert diagram["confidence"][-1] == 1
    assert diagram["accuracy"][-1] == 0


def test_certain_and_always_right_is_no_error():
    result = ece(np.tile([1000.0, 0.0], (100, 1)), np.zeros(100, dtype=np.int64), resamples=50)
    assert (result.value, result.low) == (0, 0)


def test_reliability_agrees_with_ece_and_with_exact_intervals(predictions):
    logits, labels = predictions
    diagram = reliability(logits, labels, bins=15)
    assert json.loads(json.dumps(diagram)) == diagram
    assert sum(diagram["count"]) == 500
    assert len(diagram["edges"]) == 16
    columns = zip(*(diagram[key] for key in ("count", "confidence", "accuracy", "low", "high")), strict=True)
    error = 0.0
    for b, (count, confidence, accuracy, low, high) in enumerate(columns):
        if count == 0:
            assert (confidence, accuracy, low, high) == (None, None, None, None)
            continue
        assert diagram["edges"][b] <= confidence <= diagram["edges"][b + 1]
        assert (low, high) == exact_proportion("bin", round(accuracy * count), count)[2:4]
        error += count / 500 * abs(confidence - accuracy)
    assert 0 in diagram["count"]
    assert error == pytest.approx(ece(logits, labels, resamples=2).value)


@pytest.mark.parametrize("overconfidence", [0.0, 0.1])
def test_the_interval_covers_the_true_error(overconfidence):
    """A calibrated and an overconfident classifier; the plain percentile interval covers hardly ever here."""
    rng = np.random.default_rng(0)

    def draw(n):
        confidence = rng.uniform(0.55, 0.99, size=n)
        return confidence, rng.random(n) < confidence - overconfidence

    trials = 100
    hits = 0
    for seed in range(trials):
        result = ece(*with_confidence(*draw(300)), seed=seed, resamples=100)
        hits += result.low <= overconfidence <= result.high
        assert result.low <= result.value <= result.high
    assert hits / trials > 0.95 - 4 * np.sqrt(0.95 * 0.05 / trials)


def test_ece_is_deterministic(predictions):
    assert ece(*predictions, seed=3, resamples=50) == ece(*predictions, seed=3, resamples=50)
    assert ece(*predictions, seed=3, resamples=50) != ece(*predictions, seed=4, resamples=50)
