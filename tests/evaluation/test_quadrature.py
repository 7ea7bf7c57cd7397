"""Integrals with a closed form, or by scipy's adaptive rules."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from jemstone.errors import ConfigError
from jemstone.evaluation.quadrature import log_integral


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_gaussian_on_a_cube_that_cuts_it(dimension):
    means, sds = np.array([0.5, -1.0, 1.5])[:dimension], np.array([0.6, 1.0, 0.8])[:dimension]
    truth = 3.0 + sum(
        math.log(stats.norm.cdf(2, m, s) - stats.norm.cdf(-2, m, s)) for m, s in zip(means, sds, strict=True)
    )
    found = log_integral(lambda x: 3.0 + stats.norm.logpdf(x, means, sds).sum(axis=1), (-2.0, 2.0), dimension)
    assert found.log_z == pytest.approx(truth, abs=1e-6)
    assert found.change < 1e-3
    assert found.points <= 200_000


def test_softmax_density_with_kinks_and_correlation_against_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4)), rng.normal(size=4)

    def log_f(x):
        hidden = np.maximum(x @ a + b, 0)
        return np.logaddexp(2 * hidden[:, 0] - hidden[:, 1], hidden[:, 2] - 3 * hidden[:, 3] + x[:, 0] * x[:, 1])

    truth, _ = integrate.nquad(
        lambda u, v: math.exp(log_f(np.array([[u, v]]))[0]), [(-1, 1), (-1, 1)], opts={"epsrel": 1e-5, "limit": 30}
    )
    found = log_integral(log_f, (-1.0, 1.0), 2)
    assert found.log_z == pytest.approx(math.log(truth), abs=1e-3)


def test_numbers_far_from_one_do_not_overflow():
    high = log_integral(lambda x: 5000 - 50 * x[:, 0] ** 2, (-3.0, 3.0), 1)
    low = log_integral(lambda x: -5000 - 50 * x[:, 0] ** 2, (-3.0, 3.0), 1)
    assert high.log_z - low.log_z == pytest.approx(10_000, abs=1e-9)
    assert high.log_z == pytest.approx(5000 + math.log(math.pi / 50) / 2, abs=1e-9)


def test_a_peak_between_coarse_nodes_is_not_overlooked():
    """One thousandth of the domain's width: rules of 1 and 2 panels agree on the plain that it stands on."""
    sd = 0.01
    log_f = lambda x: np.logaddexp(0, 8 + stats.norm.logpdf(x, 3.21, sd).sum(axis=1))  # noqa: E731
    found = log_integral(log_f, (-5.0, 5.0), 1)
    assert found.log_z == pytest.approx(math.log(10 + math.exp(8)), abs=1e-6)


def test_a_grid_that_is_too_coarse_says_so():
    log_f = lambda x: stats.norm.logpdf(x, 0.123, 0.05).sum(axis=1)  # noqa: E731
    coarse = log_integral(log_f, (-5.0, 5.0), 2, budget=2000)
    assert coarse.change > 1e-3
    assert coarse.points <= 2000
    fine = log_integral(log_f, (-5.0, 5.0), 2, budget=1_000_000)
    assert fine.change < 1e-3
    assert fine.log_z == pytest.approx(0, abs=1e-3)


def test_batches_only_split_the_sum():
    log_f = lambda x: np.sin(5 * x).sum(axis=1)  # noqa: E731
    one = log_integral(log_f, (-1.0, 2.0), 2, budget=5000, batch_size=10**6)
    many = log_integral(log_f, (-1.0, 2.0), 2, budget=5000, batch_size=7)
    assert many.log_z == pytest.approx(one.log_z, abs=1e-12)


def test_what_is_not_a_number_stays_that():
    assert math.isnan(log_integral(lambda x: np.where(x[:, 0] > 0.9, np.nan, 0), (-1.0, 1.0), 1).log_z)


@pytest.mark.parametrize(("domain", "budget"), [((1.0, 1.0), 10**6), ((-1.0, 1.0), 1000)])
def test_impossible_requests(domain, budget):
    with pytest.raises(ConfigError):
        log_integral(lambda x: x[:, 0], domain, 3, budget=budget)
