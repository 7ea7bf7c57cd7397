"""Paired bootstrap against exact tests, scikit-learn and hand-made tables."""

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial, ttest_rel
from sklearn.metrics import average_precision_score, roc_auc_score

from jemstone.errors import ConfigError
from jemstone.evaluation.paired import (
    CHUNK,
    RANKING,
    ece_difference,
    holm,
    mean_difference,
    observed,
    p_value,
    ranking_difference,
    resample,
)


def p_of_means(first, second, *, seed=0, resamples=4000):
    return p_value(resample([mean_difference(first, second)], {"s": len(first)}, seed=seed, resamples=resamples)[0])


def hits(n, both, only_first, only_second):
    first, second = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    first[: both + only_first] = True
    second[:both] = True
    second[both + only_first : both + only_first + only_second] = True
    return first, second


@pytest.mark.parametrize(("first_only", "second_only"), [(60, 40), (30, 12), (9, 16), (20, 20)])
def test_p_on_zero_one_data_is_the_exact_tail_of_the_bootstrap_and_near_mcnemar(first_only, second_only):
    n, resamples = 400, 10_000
    first, second = hits(n, 200, first_only, second_only)
    p = p_of_means(first, second, resamples=resamples)
    # d* is a difference of two cells of a multinomial: its tails are a sum over all outcomes.
    x, y = np.meshgrid(np.arange(161), np.arange(161), indexing="ij")
    cells = np.stack([x, y, n - x - y], axis=-1)
    mass = multinomial(n, [first_only / n, second_only / n, 1 - (first_only + second_only) / n]).pmf(cells)
    exact = min(1.0, 2 * min(mass[y <= x].sum(), mass[y >= x].sum()))
    assert abs(p - exact) < 4 * 2 * np.sqrt(exact / 2 / resamples) + 4 / resamples
    assert abs(p - binomtest(first_only, first_only + second_only).pvalue) < 0.05


def test_p_on_gaussian_data_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    common = 5 * rng.normal(size=500)
    first = common + rng.normal(size=500)
    for shift in (0.0, 0.1, 0.15, 0.2):
        second = common + rng.normal(size=500) + shift
        exact = ttest_rel(first, second).pvalue
        p = p_of_means(first, second, resamples=10_000)
        assert abs(p - exact) < 4 * np.sqrt(exact / 10_000) + 0.005


def test_false_alarms_are_as_rare_as_alpha_says():
    rng = np.random.default_rng(1)
    trials, alpha = 400, 0.1
    differing = rng.random((trials, 200)) < 0.3
    first_right = rng.random((trials, 200)) < 0.5
    alarms = sum(
        p_of_means(d & f, d & ~f, seed=i, resamples=400) <= alpha
        for i, (d, f) in enumerate(zip(differing, first_right, strict=True))
    )
    # The null is exact here; 4 standard errors, and the discreteness of about 60 differing examples.
    assert abs(alarms / trials - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / trials)


def test_a_shared_difficulty_is_what_pairing_removes():
    rng = np.random.default_rng(2)
    hard = 10 * rng.normal(size=300)
    first, second = hard, hard + 0.2 + 0.5 * rng.normal(size=300)
    assert p_of_means(first, second) < 0.001
    assert p_of_means(first, rng.permutation(second)) > 0.05


def test_identical_models_have_p_one_in_everything():
    rng = np.random.default_rng(3)
    correct, confidence, inside, outside = (
        rng.random(80) < 0.7,
        rng.random(80),
        rng.normal(size=80),
        rng.normal(size=50),
    )
    means = [mean_difference(confidence, confidence.copy()), mean_difference(correct, correct.copy())]
    means.append(ece_difference((correct, confidence), (correct.copy(), confidence.copy()), 10))
    for draws in resample(means, {"s": 80}, seed=0, resamples=50):
        assert p_value(draws) == 1.0
    # A monotone transform ranks alike, and is the same detector.
    rankings = [ranking_difference(m, (inside, outside), (np.exp(inside), np.exp(outside))) for m in RANKING]
    for draws in resample(rankings, {"a": 80, "b": 50}, seed=0, resamples=50):
        assert not draws.any()
        assert p_value(draws) == 1.0


def test_p_counts_both_tails_and_is_never_zero():
    assert p_value(np.array([1.0, 2.0, 3.0])) == 0.5  # 2 (1 + 0) / (1 + 3)
    assert p_value(np.array([-1.0, 2.0, 3.0])) == 1.0
    assert p_value(np.array([0.0, 2.0, 3.0] + [1.0] * 16)) == pytest.approx(2 * 2 / 20)
    assert p_value(np.full(999, -0.5)) == pytest.approx(0.002)
    assert p_value(np.array([1e-17, -1e-17])) == 1.0


def by_library(metric, inside, outside):
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    scores = np.concatenate([inside, outside])
    if metric == "auroc":
        return roc_auc_score(truth, scores)
    if metric == "aupr_in":
        return average_precision_score(truth, scores)
    if metric == "aupr_out":
        return average_precision_score(1 - truth, -scores)
    threshold = np.sort(inside)[::-1][int(np.ceil(0.95 * len(inside) - 1e-9)) - 1]
    return (outside >= threshold).mean()


@pytest.mark.parametrize("metric", RANKING)
def test_ranking_metrics_of_a_resample_are_those_of_the_drawn_examples(metric):
    rng = np.random.default_rng(4)
    # One decimal: many ties, within and between the samples.
    first = (rng.normal(1, 1, size=70).round(1), rng.normal(size=40).round(1))
    second = (rng.normal(0.5, 1, size=70).round(1), rng.normal(size=40).round(1))
    statistic = ranking_difference(metric, first, second)
    expected = by_library(metric, *second) - by_library(metric, *first)
    assert observed(statistic, {"in": 70, "out": 40}) == pytest.approx(expected, abs=1e-6)
    for _ in range(20):
        i, j = rng.integers(70, size=70), rng.integers(40, size=40)
        counts = [np.bincount(i, minlength=70)[:, None], np.bincount(j, minlength=40)[:, None]]
        value = float(statistic(*(c.astype(np.float32) for c in counts))[0])
        expected = by_library(metric, second[0][i], second[1][j]) - by_library(metric, first[0][i], first[1][j])
        assert value == pytest.approx(expected, abs=1e-6)


def ece_by_hand(correct, confidence, bins):
    total = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & ((confidence < (b + 1) / bins) | (b == bins - 1))
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def test_ece_of_a_resample_is_that_of_the_drawn_examples():
    rng = np.random.default_rng(5)
    confidence = rng.beta(5, 1, size=(2, 90))
    confidence[0, :3] = 1.0
    correct = rng.random((2, 90)) < 0.8
    statistic = ece_difference((correct[0], confidence[0]), (correct[1], confidence[1]), 8)
    for _ in range(10):
        i = rng.integers(90, size=90)
        value = float(statistic(np.bincount(i, minlength=90)[:, None].astype(np.float32))[0])
        a, b = (ece_by_hand(correct[m, i], confidence[m, i], 8) for m in (0, 1))
        assert value == pytest.approx(b - a, abs=1e-6)


def test_draws_belong_to_the_sample_not_to_the_call():
    rng = np.random.default_rng(6)
    x, y, z = rng.normal(size=(3, 30))
    together = resample([mean_difference(x, y), mean_difference(x, z)], {"s": 30}, seed=0, resamples=CHUNK + 3)
    alone = resample([mean_difference(x, z)], {"s": 30}, seed=0, resamples=CHUNK + 3)
    np.testing.assert_array_equal(together[1], alone[0])
    assert len(alone[0]) == CHUNK + 3
    assert not np.array_equal(alone[0], resample([mean_difference(x, z)], {"t": 30}, seed=0, resamples=CHUNK + 3)[0])
    assert not np.array_equal(alone[0], resample([mean_difference(x, z)], {"s": 30}, seed=1, resamples=CHUNK + 3)[0])


@pytest.mark.parametrize(("n", "resamples"), [(0, 5), (5, 0)])
def test_nothing_cannot_be_resampled(n, resamples):
    with pytest.raises(ConfigError, match="at least"):
        resample([mean_difference(np.zeros(n), np.zeros(n))], {"s": n}, seed=0, resamples=resamples)


def test_holm_by_hand():
    # Sorted: .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, made monotone: .02 .03 .06 .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
