"""Distances against closed forms, brute force, scipy's matrix root and torchmetrics on the same arrays."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from jemstone.errors import ConfigError
from jemstone.evaluation.distances import (
    fid,
    frechet,
    histogram,
    inception_score,
    kid,
    nearest,
    polynomial_mmd,
    prdc,
)
from jemstone.evaluation.features import Moments, moments_of

pytestmark = pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features", "ignore:std")


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 5))
    return rng.normal(size=(60, 5)) @ mix, rng.normal(size=(90, 5)) * [1, 2, 1, 0.5, 3] + 0.4


def gaussian(mean, covariance):
    return Moments(1000, np.asarray(mean, dtype=float), np.asarray(covariance, dtype=float))


def test_frechet_of_commuting_gaussians_in_closed_form():
    """Diagonal covariances: sum of (mu - nu)^2 + (s - t)^2, singular directions included."""
    s, t = np.array([1.0, 2.0, 0.0, 0.0, 5.0]), np.array([3.0, 0.5, 4.0, 0.0, 5.0])
    mu, nu = np.arange(5.0), np.array([1.0, 1.0, 0.0, 3.0, 4.0])
    expected = ((mu - nu) ** 2).sum() + ((s - t) ** 2).sum()
    a, b = gaussian(mu, np.diag(s**2)), gaussian(nu, np.diag(t**2))
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    turned = [gaussian(turn @ m.mean, turn @ m.covariance @ turn.T) for m in (a, b)]
    for pair in ((a, b), (b, a), turned):
        assert frechet(*pair) == pytest.approx(expected, abs=1e-5)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_of_non_commuting_gaussians_is_that_of_scipy(samples):
    a, b = (moments_of(x) for x in samples)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root.real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_fewer_rows_than_dimensions():
    """Covariances u u^T and v v^T of rank one: tr (.)^(1/2) = |u.v|."""
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=(2, 40))
    expected = u @ u + v @ v - 2 * abs(u @ v)
    zero = np.zeros(40)
    assert frechet(gaussian(zero, np.outer(u, u)), gaussian(zero, np.outer(v, v))) == pytest.approx(expected, rel=1e-5)


def test_frechet_agrees_with_torchmetrics(samples):
    fid_module = pytest.importorskip("torchmetrics.image.fid")
    metric = fid_module.FrechetInceptionDistance(feature=Flat(), input_img_size=(1, 1, 5), normalize=True)
    metric.set_dtype(torch.float64)
    for x, real in zip(samples, (True, False), strict=True):
        metric.update(torch.tensor(x).view(-1, 1, 1, 5), real=real)
    assert frechet(*(moments_of(x) for x in samples)) == pytest.approx(float(metric.compute()), rel=1e-6)


class Flat(nn.Module):
    num_features = 5

    def forward(self, x):
        return x.flatten(1).double()


def test_fid_is_the_distance_and_its_interval_holds_the_spread_of_fresh_draws(samples):
    """The half width against the standard deviation over independent samples of the same size."""
    rng = np.random.default_rng(0)
    reference = moments_of(rng.normal(size=(20_000, 3)))
    draws = [rng.normal(size=(300, 3)) * 1.5 + 1 for _ in range(60)]
    found = [fid(x, reference, seed=0, resamples=40) for x in draws]
    assert found[0].value == pytest.approx(frechet(moments_of(draws[0]), reference), rel=1e-12)
    assert all(i.low <= i.value <= i.high for i in found)
    spread = np.std([i.value for i in found])
    half = np.mean([i.high - i.value for i in found])
    assert half / 1.96 == pytest.approx(spread, rel=0.3)
    assert fid(draws[0], reference, seed=0, resamples=40) == found[0]
    assert fid(draws[0], reference, seed=1, resamples=40) != found[0]
    with pytest.raises(ConfigError, match="two rows"):
        fid(draws[0][:1], reference, seed=0, resamples=2)


def test_mmd_is_the_double_loop(samples):
    a, b = samples[0][:9], samples[1][:7]

    def k(x, y):
        return (x @ y / 5 + 1) ** 3

    within_a = np.mean([k(a[i], a[j]) for i in range(9) for j in range(9) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i in range(7) for j in range(7) if i != j])
    across = np.mean([k(x, y) for x in a for y in b])
    assert polynomial_mmd(a, b) == pytest.approx(within_a + within_b - 2 * across, rel=1e-12)


def test_mmd_agrees_with_torchmetrics(samples):
    kid_module = pytest.importorskip("torchmetrics.image.kid")
    metric = kid_module.KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=60, normalize=True)
    metric.set_dtype(torch.float64)
    a, b = samples[0], samples[1][:60]
    for x, real in ((a, True), (b, False)):
        metric.update(torch.tensor(x).view(-1, 1, 1, 5), real=real)
    torch.manual_seed(0)
    assert polynomial_mmd(a, b) == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def test_kid_is_unbiased_and_its_interval_covers():
    """Same distribution: zero on average, though FID is not. Another: the mean of fresh draws is covered."""
    rng = np.random.default_rng(0)
    how = {"subsets": 30, "subset_size": 1000, "seed": 0}
    same = [kid(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)), **how).value for _ in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 60**0.5
    other = [kid(rng.normal(size=(80, 4)) + 0.5, rng.normal(size=(80, 4)), **how) for _ in range(60)]
    truth = np.mean([i.value for i in other])
    assert np.mean([i.low <= truth <= i.high for i in other]) >= 0.85
    half = np.mean([i.high - i.value for i in other]) / 1.96
    assert half == pytest.approx(np.std([i.value for i in other]), rel=0.35)


def test_kid_of_small_subsets_of_many_rows_is_as_narrow_as_many_rows_are():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 4)) + 0.5, rng.normal(size=(400, 4))
    halves = [kid(a, b, subsets=150, subset_size=size, seed=0) for size in (50, 200)]
    widths = [i.high - i.low for i in halves]
    assert widths[0] == pytest.approx(widths[1], rel=0.3)
    assert halves[0].value == pytest.approx(halves[1].value, abs=widths[1] / 2)
    with pytest.raises(ConfigError, match="2 subsets"):
        kid(a[:3], b, subsets=10, subset_size=100, seed=0)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_the_definition(samples, k):
    real, fake = samples

    def radius(rows, i):
        return sorted(np.linalg.norm(rows[i] - rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    real_radius = [radius(real, i) for i in range(len(real))]
    fake_radius = [radius(fake, i) for i in range(len(fake))]
    d = np.linalg.norm(real[:, None] - fake[None], axis=2)
    inside = d <= np.array(real_radius)[:, None]
    expected = {
        "precision": inside.any(axis=0).mean(),
        "recall": (d <= np.array(fake_radius)).any(axis=1).mean(),
        "density": inside.sum() / (k * len(fake)),
        "coverage": inside.any(axis=1).mean(),
    }
    found = prdc(real, fake, k, resamples=50)
    assert {name: interval.value for name, interval in found.items()} == pytest.approx(expected, abs=1e-12)
    assert all(i.low <= i.value <= i.high and i.low < i.high for i in found.values())


def test_prdc_does_not_depend_on_its_chunks(samples, monkeypatch):
    whole = prdc(*samples, 3, resamples=5)
    monkeypatch.setattr("jemstone.evaluation.distances.CHUNK", 7)
    assert prdc(*samples, 3, resamples=5) == whole


def test_prdc_of_what_lies_apart_and_of_a_collapsed_sampler():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 3))
    apart = prdc(real, rng.normal(size=(150, 3)) + 100, 5, resamples=20)
    assert all(i.value == 0 for i in apart.values())
    assert apart["precision"].high == pytest.approx(1 - 0.025 ** (1 / 150), rel=1e-6)  # exact, not of zero width
    assert apart["recall"].high > 0
    collapsed = prdc(real, real[:1] + 1e-3 * rng.normal(size=(150, 3)), 5, resamples=20)
    assert collapsed["precision"].value == 1
    assert collapsed["recall"].value <= 0.01
    assert collapsed["coverage"].value < 0.1
    same = prdc(real, rng.normal(size=(200, 3)), 5, resamples=20)
    assert all(i.value > 0.8 for i in same.values())
    with pytest.raises(ConfigError, match="k must be"):
        prdc(real, real[:5], 5)


def test_the_spread_of_coverage_is_that_of_fresh_draws():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(150, 2))
    found = [prdc(real, rng.normal(size=(150, 2)) * 0.6, 3, resamples=60)["coverage"] for _ in range(40)]
    half = np.mean([(i.high - i.low) / 2 for i in found]) / 1.96
    assert half == pytest.approx(np.std([i.value for i in found]), rel=0.5)


def test_inception_score_in_closed_form():
    hot = np.where(np.eye(4)[np.arange(400) % 4], 1000.0, 0.0)
    sure = inception_score(hot)
    assert sure == pytest.approx((4, 4, 4))
    assert inception_score(np.where(hot > 0, 0.0, -np.inf)) == pytest.approx((4, 4, 4))
    assert inception_score(np.ones((400, 4))) == pytest.approx((1, 1, 1))
    # Two sharp classes of p and 1 - p: exp of the entropy of p.
    lopsided = np.where(np.eye(2)[(np.arange(400) % 4 == 0).astype(int)], 1000.0, 0.0)
    assert inception_score(lopsided).value == pytest.approx(np.exp(-0.25 * np.log(0.25) - 0.75 * np.log(0.75)))
    with pytest.raises(ConfigError, match="splits"):
        inception_score(hot[:5])


def test_inception_score_agrees_with_torchmetrics():
    module = pytest.importorskip("torchmetrics.image.inception")
    logits = np.random.default_rng(0).normal(size=(300, 5)) * 2
    metric = module.InceptionScore(feature=Flat(), splits=1)
    metric.update(torch.tensor(logits).view(-1, 1, 1, 5))
    theirs = float(metric.compute()[0])  # torchmetrics shuffles, so that only one piece compares
    assert inception_score(np.concatenate([logits, logits]), 2).value == pytest.approx(theirs, rel=1e-6)
    pieces = inception_score(logits)
    assert 1 <= pieces.low < pieces.value < pieces.high


def test_nearest_is_the_loop(samples, monkeypatch):
    monkeypatch.setattr("jemstone.evaluation.distances.CHUNK", 11)
    a, b = samples
    distances, indices = nearest(a, b, 3)
    d = np.linalg.norm(a[:, None] - b[None], axis=2)
    np.testing.assert_array_equal(indices, np.argsort(d, axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(d, axis=1)[:, :3], rtol=1e-9)
    assert nearest(b[:4] + 1e6, np.concatenate([b[9:], b[:4]]) + 1e6)[1].ravel().tolist() == [81, 82, 83, 84]


def test_histograms_share_edges_and_lose_nothing():
    shown = histogram({"a": np.array([0.0, 1, 2, 2]), "b": np.array([1.0, 500])}, 4)
    assert len(shown["edges"]) == 5
    assert (sum(shown["a"]), sum(shown["b"])) == (4, 2)
    assert shown["b"][-1] == 1
    assert sum(histogram({"a": np.zeros(3)}, 4)["a"]) == 3


@pytest.mark.parametrize("n", [3, 9, 10, 60])
def test_fid_of_few_rows_and_of_many_is_the_distance_of_their_moments(n):
    """Fewer rows than dimensions take the other Gram matrix."""
    rng = np.random.default_rng(n)
    reference = moments_of(rng.normal(size=(200, 10)) @ rng.normal(size=(10, 10)))
    rows = rng.normal(1.0, 2.0, size=(n, 10))
    expected = frechet(reference, moments_of(rows))  # roots of eigenvalues that are 0 are 1e-8, not 0
    assert fid(rows, reference, seed=0, resamples=2).value == pytest.approx(expected, rel=1e-6)
