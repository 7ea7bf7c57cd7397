"""Scores against known densities, finite differences and closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from jemstone.energy import EnergyClassifier
from jemstone.evaluation.detection import auroc
from jemstone.evaluation.scores import (
    SCORES,
    approximate_mass,
    log_density,
    max_logit,
    max_probability,
    negative_entropy,
    refined_density,
)
from jemstone.networks.layers import SeparateBatchNorm2d
from jemstone.sampling import langevin


class Mixture(nn.Module):
    """Logits log w_c N(x; mu_c, I): the classifier whose logsumexp is the log density of a mixture of Gaussians."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))

    def forward(self, x):
        return -((x[:, None] - self.means) ** 2).sum(-1) / 2 - np.log(2 * np.pi) - np.log(3)


class Quadratic(nn.Module):
    """One class with f(x) = -slope |x|^2 / 2, a Gaussian."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return -self.slope * x.square().sum(dim=1, keepdim=True) / 2


@pytest.fixture
def mixture():
    return EnergyClassifier(Mixture()).double().eval()


@pytest.fixture
def points():
    return torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def posterior(mixture, points):
    means, x = mixture.network.means.detach().numpy(), points.numpy()
    joint = np.stack([np.exp(-((x - m) ** 2).sum(1) / 2) / (2 * np.pi) / 3 for m in means], axis=1)
    return joint, joint / joint.sum(axis=1, keepdims=True)


def test_log_density_is_the_true_density(mixture, points):
    joint, _ = posterior(mixture, points)
    np.testing.assert_allclose(log_density(mixture, points).detach().numpy(), np.log(joint.sum(axis=1)), rtol=1e-10)


def test_max_logit_is_the_joint_density_at_the_predicted_class(mixture, points):
    joint, _ = posterior(mixture, points)
    scores = max_logit(mixture, points)
    np.testing.assert_allclose(scores.detach().numpy(), np.log(joint.max(axis=1)), rtol=1e-10)
    torch.testing.assert_close(scores, mixture.log_density(points, mixture(points).argmax(dim=1)), rtol=0, atol=0)


def test_max_probability_and_entropy_are_those_of_the_posterior(mixture, points):
    _, p = posterior(mixture, points)
    np.testing.assert_allclose(max_probability(mixture, points).detach().numpy(), p.max(axis=1), rtol=1e-10)
    np.testing.assert_allclose(negative_entropy(mixture, points).detach().numpy(), (p * np.log(p)).sum(1), rtol=1e-9)


def test_entropy_in_closed_form():
    """Logits (a, 0): H = log(1 + e^-a) + a e^-a / (1 + e^-a); uniform over k: log k; certain: 0."""
    model = EnergyClassifier(nn.Identity())
    a = np.array([0.0, 0.3, 2.0, 15.0])
    scores = negative_entropy(model, torch.tensor(np.stack([a, 0 * a], axis=1)))
    np.testing.assert_allclose(scores.numpy(), -np.log1p(np.exp(-a)) - a * np.exp(-a) / (1 + np.exp(-a)), rtol=1e-9)
    assert float(negative_entropy(model, torch.zeros(1, 7))) == pytest.approx(-np.log(7), abs=1e-12)
    assert float(negative_entropy(model, torch.tensor([[0.0, -2000.0]]))) == 0


@pytest.mark.parametrize("score", [max_probability, negative_entropy])
def test_certain_inputs_still_rank_where_float32_says_one(score):
    model = EnergyClassifier(nn.Identity())
    less, more = score(model, torch.tensor([[20.0, 0.0], [25.0, 0.0]]))
    assert less.dtype == torch.float64
    assert float(less) < float(more)


def test_approximate_mass_of_a_quadratic_energy_is_its_slope_times_the_distance(points):
    expected = -3 * points.norm(dim=1)
    torch.testing.assert_close(approximate_mass(EnergyClassifier(Quadratic(3.0)), points), expected)


def test_approximate_mass_is_minus_the_norm_of_finite_differences(mixture, points):
    step = 1e-5
    with torch.no_grad():
        columns = [
            (mixture.log_density(points + step * e) - mixture.log_density(points - step * e)) / (2 * step)
            for e in torch.eye(2, dtype=torch.float64)
        ]
    expected = -torch.stack(columns, dim=1).norm(dim=1)
    with torch.no_grad():  # as evaluation calls it
        torch.testing.assert_close(approximate_mass(mixture, points), expected, atol=1e-7, rtol=1e-6)
    assert mixture.network.means.grad is None


@pytest.mark.parametrize("name", list(SCORES))
def test_every_score_is_higher_in_distribution(mixture, name):
    rng = torch.Generator().manual_seed(1)
    which = torch.randint(3, (300,), generator=rng)
    inside = mixture.network.means.detach()[which] + 0.5 * torch.randn(300, 2, generator=rng, dtype=torch.float64)
    # Far away on the line between two modes, at the boundary of two classes: less dense, steeper, less certain.
    outside = torch.tensor([[0.0, -9.0]], dtype=torch.float64) + 0.1 * torch.randn(300, 2, generator=rng)
    score = SCORES[name]
    assert auroc(score(mixture, inside).detach().numpy(), score(mixture, outside).detach().numpy()) > 0.95


def test_refined_density_of_a_quadratic_energy_without_noise(points):
    """Each step multiplies x by 1 - alpha a, so log p(x_k) = -a (1 - alpha a)^2k |x|^2 / 2."""
    score = refined_density(langevin(0.1, 0.0), 7, seed=0)
    expected = -2 * (1 - 0.2) ** 14 * points.square().sum(dim=1) / 2
    torch.testing.assert_close(score(EnergyClassifier(Quadratic(2.0)), points), expected)


def test_refined_density_of_a_quadratic_energy_with_noise_has_the_known_mean_and_variance():
    """x_k ~ N(q^k x, s^2 (1 - q^2k) / (1 - q^2)) with q = 1 - alpha a, so |x_k|^2 is a scaled non-central chi^2."""
    slope, alpha, sigma, steps, n, d = 2.0, 0.1, 0.3, 5, 4000, 3
    x = torch.full((n, d), 0.8, dtype=torch.float64)
    scores = refined_density(langevin(alpha, sigma), steps, seed=1)(EnergyClassifier(Quadratic(slope)), x).numpy()
    q = 1 - alpha * slope
    spread = sigma**2 * (1 - q ** (2 * steps)) / (1 - q**2)
    shift = d * (q**steps * 0.8) ** 2
    mean = -slope / 2 * (shift + d * spread)
    variance = (slope / 2) ** 2 * (2 * d * spread**2 + 4 * spread * shift)
    assert abs(scores.mean() - mean) < 4 * np.sqrt(variance / n)
    assert scores.var() == pytest.approx(variance, rel=0.1)


def test_refined_density_depends_on_seed_and_position_alone(points):
    model = EnergyClassifier(Quadratic(2.0))

    def scores(*position):
        return refined_density(langevin(0.1, 0.3), 3, *position)(model, points)

    state = torch.get_rng_state()
    score = refined_density(langevin(0.1, 0.3), 3, 0, "test", 256)
    first = score(model, points)
    score(model, points[:3])
    torch.testing.assert_close(score(model, points), first, rtol=0, atol=0)
    torch.testing.assert_close(scores(0, "test", 256), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(scores(1, "test", 256), first)
    assert not torch.equal(scores(0, "test", 512), first)


def test_refined_density_moves_under_the_statistics_of_negatives_and_scores_under_those_of_data():
    """A layer that divides by 1 for data and by 2 for negatives: |x|^2 / 2 and |x|^2 / 8."""
    norm = SeparateBatchNorm2d(1)
    norm.eps = 0.0
    norm.negatives_var.fill_(4.0)
    model = EnergyClassifier(nn.Sequential(norm, nn.Flatten(), Quadratic(1.0))).eval()
    x = torch.randn(6, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    scores = refined_density(langevin(0.4, 0.0), 5, seed=0)(model, x)
    torch.testing.assert_close(scores, -((1 - 0.1) ** 10) * x.flatten(1).square().sum(dim=1) / 2)
    assert not norm.of_negatives
