"""Calibration errors against brute force and torchmetrics, their traps, and the coverage of their intervals."""

import json

import numpy as np
import pytest
import torch
from scipy.special import softmax

from jemstone.evaluation.calibration import (
    classwise_ece,
    ece,
    ece_equal_mass,
    equal_mass,
    mce,
    reliability,
    reliability_equal_mass,
)
from jemstone.evaluation.intervals import exact_proportion

ERRORS = [ece, ece_equal_mass, mce, classwise_ece]


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


@pytest.mark.parametrize(("measure", "norm"), [(ece, "l1"), (mce, "max")])
def test_agrees_with_torchmetrics(predictions, measure, norm):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = predictions
    theirs = functional.multiclass_calibration_error(
        torch.tensor(softmax(logits, axis=1)), torch.tensor(labels), num_classes=3, n_bins=15, norm=norm
    )
    assert measure(logits, labels, resamples=2).value == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_equal_mass_is_the_mean_over_slices_of_the_sorted_examples(predictions, bins):
    logits, labels = predictions[0][:450], predictions[1][:450]
    p = softmax(logits, axis=1)
    ascending = np.argsort(p.max(axis=1))
    slices = ascending.reshape(bins, -1)
    gaps = [p.max(axis=1)[rows].mean() - (p.argmax(axis=1) == labels)[rows].mean() for rows in slices]
    assert ece_equal_mass(logits, labels, bins=bins, resamples=2).value == pytest.approx(np.abs(gaps).mean())


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_classwise_is_the_definition(predictions, bins):
    logits, labels = predictions
    p = softmax(logits, axis=1)
    total = 0.0
    for c in range(3):
        for b in range(bins):
            rows = [i for i in range(500) if min(int(p[i, c] * bins), bins - 1) == b]
            total += abs(sum(p[i, c] - (labels[i] == c) for i in rows)) / 500
    assert classwise_ece(logits, labels, bins=bins, resamples=2).value == pytest.approx(total / 3, abs=1e-12)


def test_equal_mass_bins_hold_equal_counts():
    values = np.random.default_rng(0).random(103)
    which = equal_mass(values, 10)
    assert set(np.bincount(which)) == {10, 11}
    assert (np.diff(which[values.argsort()]) >= 0).all()


def test_equal_mass_does_not_depend_on_the_order_of_ties():
    rng = np.random.default_rng(0)
    logits, labels = with_confidence(rng.choice([0.6, 0.7, 0.9], size=200), rng.random(200) < 0.8)
    measured = ece_equal_mass(logits, labels, resamples=2).value
    for _ in range(20):
        order = rng.permutation(200)
        assert ece_equal_mass(logits[order], labels[order], resamples=2).value == pytest.approx(measured, abs=1e-12)
    confidence = softmax(logits, axis=1).max(axis=1)
    which = equal_mass(confidence, 15)
    assert all(len(set(which[confidence == value])) == 1 for value in np.unique(confidence))


def test_fewer_examples_than_bins(predictions):
    logits, labels = predictions[0][:4], predictions[1][:4]
    p = softmax(logits, axis=1)
    gaps = p.max(axis=1) - (p.argmax(axis=1) == labels)
    assert ece_equal_mass(logits, labels, resamples=2).value == pytest.approx(np.abs(gaps).mean())
    assert sum(reliability_equal_mass(logits, labels)["count"]) == 4


@pytest.mark.parametrize("measure", ERRORS)
def test_certain_and_always_wrong_is_an_error_of_one(measure):
    logits = np.tile([1000.0, 0.0], (100, 1))
    result = measure(logits, np.ones(100, dtype=np.int64), resamples=50)
    assert (result.value, result.low, result.high, result.n) == (1, 1, 1, 100)


@pytest.mark.parametrize(("diagram_of", "bin_"), [(reliability, 14), (reliability_equal_mass, 7)])
def test_no_bin_of_the_diagram_is_dropped(diagram_of, bin_):
    diagram = diagram_of(np.tile([1000.0, 0.0], (100, 1)), np.ones(100, dtype=np.int64))
    assert diagram["count"] == [100 if b == bin_ else 0 for b in range(15)]
    assert diagram["confidence"][bin_] == 1
    assert diagram["accuracy"][bin_] == 0


@pytest.mark.parametrize("measure", ERRORS)
def test_certain_and_always_right_is_no_error(measure):
    result = measure(np.tile([1000.0, 0.0], (100, 1)), np.zeros(100, dtype=np.int64), resamples=50)
    assert (result.value, result.low) == (0, 0)


@pytest.mark.parametrize(("diagram_of", "measure"), [(reliability, ece), (reliability_equal_mass, ece_equal_mass)])
def test_diagrams_agree_with_their_error_and_with_exact_intervals(predictions, diagram_of, measure):
    logits, labels = predictions
    diagram = diagram_of(logits, labels, bins=15)
    assert json.loads(json.dumps(diagram)) == diagram
    assert sum(diagram["count"]) == 500
    assert len(diagram["edges"]) == 16
    assert diagram["edges"] == sorted(diagram["edges"])
    columns = zip(*(diagram[key] for key in ("count", "confidence", "accuracy", "low", "high")), strict=True)
    error = 0.0
    for b, (count, confidence, accuracy, low, high) in enumerate(columns):
        if count == 0:
            assert (confidence, accuracy, low, high) == (None, None, None, None)
            continue
        assert diagram["edges"][b] <= confidence <= diagram["edges"][b + 1]
        assert (low, high) == exact_proportion("bin", round(accuracy * count), count)[2:4]
        error += count / 500 * abs(confidence - accuracy)
    assert (0 in diagram["count"]) == (diagram_of is reliability)
    assert error == pytest.approx(measure(logits, labels, resamples=2).value)


def test_edges_of_equal_mass_separate_its_bins(predictions):
    confidence = np.sort(softmax(predictions[0], axis=1).max(axis=1))
    edges = reliability_equal_mass(*predictions, bins=5)["edges"]
    assert edges == [*confidence[[0, 100, 200, 300, 400]], confidence[-1]]


@pytest.mark.parametrize("measure", ERRORS)
@pytest.mark.parametrize("overconfidence", [0.0, 0.1])
def test_the_interval_covers_the_true_error(measure, overconfidence):
    """A calibrated and an overconfident classifier; the plain percentile interval covers hardly ever here.

    Of two classes, one is given too much by as much as the other is given too little: classwise, too, the error is
    the overconfidence.
    """
    rng = np.random.default_rng(0)

    def draw(n):
        confidence = rng.uniform(0.55, 0.99, size=n)
        return confidence, rng.random(n) < confidence - overconfidence

    trials = 50
    hits = 0
    for seed in range(trials):
        result = measure(*with_confidence(*draw(300)), seed=seed, resamples=50)
        hits += result.low <= overconfidence <= result.high
        assert result.low <= result.value <= result.high
    assert hits / trials > 0.95 - 4 * np.sqrt(0.95 * 0.05 / trials)


def test_a_calibrated_classifier_of_many_classes_is_not_called_miscalibrated():
    """Labels drawn from the probabilities themselves; the classwise test draws from all of them, not from the top."""
    rng = np.random.default_rng(1)
    starts_at_zero = 0
    for seed in range(40):
        logits = rng.normal(size=(200, 5))
        labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((200, 1))).sum(axis=1)
        starts_at_zero += classwise_ece(logits, labels, seed=seed, resamples=100).low == 0
    assert starts_at_zero >= 36


@pytest.mark.parametrize("measure", ERRORS)
def test_overconfidence_is_seen(measure):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.8, 0.99, size=2000)
    result = measure(*with_confidence(confidence, rng.random(2000) < confidence - 0.3), resamples=100)
    assert result.low > 0.1


@pytest.mark.parametrize("measure", ERRORS)
def test_errors_are_deterministic(predictions, measure):
    assert measure(*predictions, seed=3, resamples=50) == measure(*predictions, seed=3, resamples=50)
    assert measure(*predictions, seed=3, resamples=50) != measure(*predictions, seed=4, resamples=50)
