"""Thresholds for abstention against their exact laws: Beta laws, enumeration of every possible draw, simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import beta, betabinom, binom, binomtest, kstest, multinomial
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

from jemstone import ConfigError
from jemstone.deployment.abstention import (
    aurc,
    confidence_threshold,
    density_threshold,
    risk_coverage,
    set_threshold,
    typicality,
)

COVERAGE = {
    "sets": lambda scores, share: set_threshold(scores, float(1 - share)),
    "density": lambda scores, share: density_threshold(scores, float(share)),
}


def at_most(successes, trials, probability):
    """Would `successes` or more be this rare, if each came with `probability`? Then the law is broken."""
    return binom.sf(successes - 1, trials, probability) > 1e-4


# --- prediction sets and rejection by density ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", COVERAGE)
@pytest.mark.parametrize("share", [Fraction(1, 100), Fraction(1, 20), Fraction(1, 10), Fraction(3, 10)])
def test_the_threshold_is_the_order_statistic_of_exact_rank(kind, share):
    """Every n up to 120, among them those where 1 - coverage in binary would miss a rank by one."""
    rng = np.random.default_rng(0)
    for n in range(121):
        scores = rng.random(n)
        k = math.floor((n + 1) * share)
        expected = sorted(scores)[k - 1] if k else {"sets": 0.0, "density": -math.inf}[kind]
        assert COVERAGE[kind](scores, share) == expected


@pytest.mark.parametrize("kind", COVERAGE)
def test_the_share_that_falls_below_is_beta_distributed(kind):
    """Of uniform scores the share below t is t itself: Beta(k, n + 1 - k), of mean k / (n + 1)."""
    rng, n, k = np.random.default_rng(1), 59, 6
    below = np.array([COVERAGE[kind](rng.random(n), Fraction(1, 10)) for _ in range(4000)])
    law = beta(k, n + 1 - k)
    assert abs(below.mean() - k / (n + 1)) < 4 * law.std() / math.sqrt(len(below))
    assert kstest(below, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", COVERAGE)
def test_with_ties_no_more_fall_below_than_the_law_allows(kind):
    """Exactly, over every draw of 6 held-out scores and a new one from four values that tie all the time."""
    values, weights = np.array([0.25, 0.5, 0.75, 1.0]), np.array([0.2, 0.1, 0.3, 0.4])
    for share in (Fraction(1, 7), Fraction(2, 7), Fraction(1, 2)):
        k, missed = math.floor(7 * share), 0.0
        for counts in itertools.product(range(7), repeat=4):
            if sum(counts) == 6:
                threshold = COVERAGE[kind](np.repeat(values, counts), share)
                missed += multinomial.pmf(counts, 6, weights) * weights[values < threshold].sum()
        assert missed <= k / 7
        assert missed > 0 or k == 1


def test_typicality_is_a_p_value_in_percent():
    rng = np.random.default_rng(2)
    reference, new = rng.integers(0, 9, 30) / 8, rng.integers(-1, 11, 50) / 8
    expected = [100 * (1 + sum(r <= x for r in reference)) / 31 for x in new]
    np.testing.assert_allclose(typicality(new, reference), expected, rtol=1e-12)
    # Exchangeable: any of 20 values may be the new one. Each level a is reached by at most a of them.
    for values in (rng.random(20), rng.integers(0, 4, 20) / 4):
        found = np.array([typicality(values[i : i + 1], np.delete(values, i))[0] for i in range(20)])
        for level in range(1, 101):
            assert (found <= level).mean() <= level / 100 + 1e-12
    assert typicality(np.array([0.3]), np.empty(0)) == 100


# --- selective error ----------------------------------------------------------------------------------------------


def by_clopper_pearson(confidence, correct, error, delta):
    """The same threshold by bounds from scipy instead of tests, one threshold after the other."""
    best = math.inf
    for threshold in sorted(set(confidence), reverse=True):
        accepted = confidence >= threshold
        wrong, n = int((~correct[accepted]).sum()), int(accepted.sum())
        bound = binomtest(wrong, n, alternative="less").proportion_ci(1 - delta, method="exact").high
        if bound <= error:
            best = threshold
        elif (1 - error) ** n <= delta:
            break
    return best


@pytest.mark.parametrize("levels", [8, 1_000_000])
def test_the_confidence_threshold_is_that_of_clopper_and_pearson(levels):
    rng, found = np.random.default_rng(3), set()
    for _ in range(60):
        confidence = rng.integers(0, levels, rng.integers(0, 80)) / levels
        correct = rng.random(len(confidence)) > 0.7 * (1 - confidence) ** 2
        error, delta = rng.choice([0.1, 0.2, 0.4]), rng.choice([0.05, 0.3])
        threshold = confidence_threshold(confidence, correct, error, delta)
        assert threshold == by_clopper_pearson(confidence, correct, error, delta)
        found.add(threshold)
    assert len(found) > 4


def test_without_a_mistake_it_takes_log_delta_over_log_error_examples():
    for n, threshold in ((58, math.inf), (59, 0.5)):  # 0.95 ** 59 = 0.0485
        assert confidence_threshold(np.full(n, 0.5), np.ones(n, dtype=bool), 0.05) == threshold


RISKS = {  # the share wrong among the u most confident, and the u at which it is 0.2
    "rises": lambda u: 0.4 * u,
    "rises late": lambda u: np.maximum(u - 0.48, 0) / u,
    "is worst at the top": lambda u: np.where(u < 0.05, 0.3, 0.015 / u + 0.2 * (1 - 0.05 / np.maximum(u, 0.05)) ** 2),
    "waves": lambda u: 0.2 + 0.05 * np.sin(40 * u) * (0.1 + 0.9 * u),
}


@pytest.mark.parametrize("name", RISKS)
@pytest.mark.parametrize("levels", [None, 40])
def test_the_selective_error_is_broken_no_more_often_than_delta(name, levels):
    """1500 draws from a population whose risk is known, in part not monotone, with and without ties."""
    rng, risk, error, delta, n = np.random.default_rng(4), RISKS[name], 0.2, 0.1, 150
    grid = np.linspace(0, 1, 20_001)
    wrong_at = np.clip(np.diff(grid * risk(grid.clip(1e-9))) * 20_000, 0, 1)  # d(u R(u))/du, constant within a cell
    total = np.append(0, np.cumsum(wrong_at)) / 20_000
    broken = []
    for _ in range(1500):
        u = rng.random(n)
        correct = rng.random(n) >= wrong_at[(u * 20_000).astype(int)]
        confidence = 1 - u if levels is None else np.floor((1 - u) * levels) / levels
        threshold = confidence_threshold(confidence, correct, error, delta)
        share = 1 - threshold
        broken.append(math.isfinite(threshold) and np.interp(share, grid, total) > error * share + 1e-6)
    assert at_most(sum(broken), len(broken), delta), np.mean(broken)
    if name == "rises late" and levels is None:
        assert np.mean(broken) > 0.3 * delta, "careful, but not for nothing"


POPULATIONS = [  # share and risk of each level, error, delta, n
    ([0.3, 0.3, 0.4], [0.4, 0.4, 0.4], 0.4, 0.0778, 5),
    ([0.2, 0.5, 0.3], [0.7, 0.1, 0.9], 0.3, 0.7**3, 7),
    ([0.4, 0.6, 0.0], [0.97, 0.02, 0.5], 0.4, 0.6**4, 8),
    ([0.1, 0.1, 0.8], [0.0, 1.0, 0.3], 0.3, 0.35, 8),
    ([0.05, 0.05, 0.9], [1.0, 0.0, 0.5], 0.5, 0.5, 7),
]


@pytest.mark.parametrize(("shares", "risks", "error", "delta", "n"), POPULATIONS)
def test_with_ties_the_law_holds_exactly_over_every_possible_draw(shares, risks, error, delta, n):
    shares, risks = np.array(shares), np.array(risks)
    cells = np.stack([shares * (1 - risks), shares * risks]).T.ravel()  # right and wrong at each of three levels
    confidence, correct = np.repeat([0.9, 0.6, 0.3], 2), np.tile([True, False], 3)
    true_error = np.cumsum(shares * risks) / np.cumsum(shares)
    bad = {level for level, value in zip((0.9, 0.6, 0.3), true_error, strict=True) if value > error - 1e-9}
    broken = 0.0
    for bars in itertools.combinations(range(n + 5), 5):
        counts = np.diff([-1, *bars, n + 5]) - 1
        chance = multinomial.pmf(counts, n, cells)
        if chance > 0:
            threshold = confidence_threshold(np.repeat(confidence, counts), np.repeat(correct, counts), error, delta)
            broken += chance * (threshold in bad)
    assert 0.1 * delta < broken <= delta * (1 + 1e-9)


# --- both at once, on real scores ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out():
    """Probabilities, labels and log-densities of 1400 digits that neither model has seen; both models are weak."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(5).permutation(len(y))
    x, y, known = x / 16, y, order[:397]
    rest = order[397:]
    probability = LogisticRegression(max_iter=500, C=0.02).fit(x[known], y[known]).predict_proba(x[rest])
    density = GaussianMixture(10, covariance_type="diag", reg_covar=1e-2, random_state=0).fit(x[known])
    return probability, y[rest], density.score_samples(x[rest])


def test_200_random_splits_of_real_data_keep_the_laws(held_out):
    """Over splits of one pool without ties the number below t is beta-binomial, exactly, whatever the pool."""
    probability, y, density = held_out
    own = probability[np.arange(len(y)), y]
    assert len(np.unique(own)) == len(np.unique(density)) == len(y) == 1400
    n, m, splits = 500, 900, 200
    missed = {"sets": [], "density": []}
    for split in range(splits):
        order = np.random.default_rng(split).permutation(n + m)
        for kind, scores in (("sets", own), ("density", density)):
            threshold = COVERAGE[kind](scores[order[:n]], Fraction(1, 10))
            missed[kind].append((scores[order[n:]] < threshold).sum())
    law = betabinom(m, 50, n + 1 - 50)
    low, high = law.ppf(0.025), law.ppf(0.975)
    for kind, counts in missed.items():
        assert abs(np.mean(counts) - law.mean()) < 4 * law.std() / math.sqrt(splits), kind
        outside = int(sum(not low <= count <= high for count in counts))
        assert at_most(outside, splits, 0.05), (kind, outside)


def test_density_and_confidence_from_the_same_data_keep_both_laws(held_out):
    """1000 draws from the 1400 digits as the population: the rest is set on what lies strictly above the density's."""
    probability, y, density = held_out
    confidence, correct = probability.max(axis=1), probability.argmax(axis=1) == y
    own = probability[np.arange(len(y)), y]
    rng, rejection, error, delta, n = np.random.default_rng(6), 0.2, 0.05, 0.1, 250
    refused, missed, broken, shares = [], [], [], []
    for _ in range(1000):
        drawn = rng.integers(0, len(y), n)
        floor = density_threshold(density[drawn], rejection)
        passing = drawn[density[drawn] > floor]
        threshold = confidence_threshold(confidence[passing], correct[passing], error, delta)
        inside = density >= floor
        accepted = inside & (confidence >= threshold)
        refused.append(1 - inside.mean())
        missed.append((own[inside] < set_threshold(own[passing], 0.9)).mean())
        shares.append(accepted.mean())
        broken.append(accepted.any() and (~correct[accepted]).mean() > error)
    for values, share in ((refused, rejection), (missed, 0.1)):
        assert np.mean(values) < share + 4 * np.std(values) / math.sqrt(len(values))
        assert np.mean(values) > 0.9 * share
    assert at_most(sum(broken), len(broken), delta), np.mean(broken)
    assert np.mean(shares) > 0.4


# --- risk and coverage --------------------------------------------------------------------------------------------


def test_risk_and_coverage_are_means_over_all_orders_of_tied_inputs():
    confidence = np.array([0.9, 0.5, 0.9, 0.5, 0.5, 0.1])
    correct = np.array([True, False, False, True, True, False])
    curves = []
    for order in itertools.permutations(range(6)):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            curves.append(np.cumsum(~correct[list(order)]) / np.arange(1, 7))
    assert len(curves) == 2 * 6
    coverage, risk = risk_coverage(confidence, correct)
    np.testing.assert_allclose(coverage, np.arange(1, 7) / 6)
    np.testing.assert_allclose(risk, np.mean(curves, axis=0))
    assert aurc(confidence, correct) == pytest.approx(np.mean(curves))
    assert aurc(np.zeros(6), correct) == pytest.approx(0.5), "no knowledge, the error rate"
    assert aurc(np.arange(6.0), np.arange(6) >= 3) < aurc(np.arange(6.0), np.arange(6) < 3)


# --- mistakes -----------------------------------------------------------------------------------------------------

ONES, TRUE = np.ones(3), np.ones(3, dtype=bool)
NAN = np.array([0.5, np.nan, 0.5])
MISTAKES = {
    "coverage=0": lambda: set_threshold(ONES, 0.0),
    "coverage=1.1": lambda: set_threshold(ONES, 1.1),
    "coverage=nan": lambda: set_threshold(ONES, math.nan),
    "rejection=1": lambda: density_threshold(ONES, 1.0),
    "rejection=-0.1": lambda: density_threshold(ONES, -0.1),
    "rejection=nan": lambda: density_threshold(ONES, math.nan),
    "error=0": lambda: confidence_threshold(ONES, TRUE, 0.0),
    "error=1": lambda: confidence_threshold(ONES, TRUE, 1.0),
    "delta=nan": lambda: confidence_threshold(ONES, TRUE, 0.1, math.nan),
    "true_probability: 1 of 3 values are NaN": lambda: set_threshold(NAN, 0.9),
    "true_probability: 1 of 3 values lie outside [0, 1], the first is 3": lambda: set_threshold(
        np.array([0.5, 3.0, 1.0]), 0.9
    ),
    "true_probability: 3 of 3 values lie outside [0, 1], the first is -1": lambda: set_threshold(-ONES, 0.9),
    "log_density: 1 of 3 values are NaN": lambda: density_threshold(NAN, 0.1),
    "reference: 1 of 3 values are NaN": lambda: typicality(ONES, NAN),
    "log_density has shape (3, 1)": lambda: typicality(ONES[:, None], ONES),
    "confidence: 1 of 3 values are NaN": lambda: aurc(NAN, TRUE),
    "true_probability has shape (3, 1)": lambda: set_threshold(ONES[:, None], 0.9),
    "confidence has shape (3,), correct (2,)": lambda: confidence_threshold(ONES, TRUE[:2], 0.1),
    "confidence has shape (3,), correct (3, 1)": lambda: risk_coverage(ONES, TRUE[:, None]),
    "at least one example": lambda: risk_coverage(ONES[:0], TRUE[:0]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_named(message):
    with pytest.raises(ConfigError) as raised:
        MISTAKES[message]()
    assert message in str(raised.value)


def test_float32_scores_keep_their_ties():
    """A threshold is one of the scores, to the last bit, and what equals it passes."""
    scores = np.random.default_rng(7).random(200).astype(np.float32)
    for threshold in (
        set_threshold(scores, 0.8),
        density_threshold(scores, 0.2),
        confidence_threshold(scores, scores > 0.2, 0.1),
    ):
        assert (scores == threshold).sum() == 1
    assert set_threshold(np.array([1 + 1e-7, 1.0], dtype=np.float32), 0.5) == 1.0
