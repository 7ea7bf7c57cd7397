"""Scores against known densities and finite differences, metrics against scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation import (
    SCORES,
    approximate_mass,
    aupr,
    auroc,
    builtin_ood_sets,
    detection,
    fpr95,
    log_density,
    max_probability,
)

BOX = (-1.0, 1.0)


class Mixture(nn.Module):
    """Logits log w_c N(x; mu_c, I): the classifier whose logsumexp is the log density of a mixture of Gaussians."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))

    def forward(self, x):
        return -((x[:, None] - self.means) ** 2).sum(-1) / 2 - np.log(2 * np.pi) - np.log(3)


@pytest.fixture
def mixture():
    return EnergyClassifier(Mixture()).double().eval()


@pytest.fixture
def points():
    return torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def scores_with_ties():
    rng = np.random.default_rng(0)
    return rng.integers(0, 12, size=137) / 3 + 1.0, rng.integers(0, 12, size=80) / 3


def test_log_density_is_the_true_density(mixture, points):
    means = mixture.network.means.detach().numpy()
    x = points.numpy()
    density = np.mean([np.exp(-((x - m) ** 2).sum(1) / 2) / (2 * np.pi) for m in means], axis=0)
    np.testing.assert_allclose(log_density(mixture, points).detach().numpy(), np.log(density), rtol=1e-10)


def test_max_probability_is_the_largest_posterior(mixture, points):
    posterior = mixture(points).softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(max_probability(mixture, points), posterior)


def test_max_probability_still_ranks_where_float32_says_one():
    model = EnergyClassifier(nn.Identity())
    assert float(max_probability(model, torch.tensor([[20.0, 0.0]]))) < float(
        max_probability(model, torch.tensor([[25.0, 0.0]]))
    )


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


@pytest.mark.parametrize("shift", [0.0, 0.5, -5.0])
def test_auroc_and_aupr_are_scikit_learns(shift):
    rng = np.random.default_rng(0)
    pairs = [scores_with_ties(), (rng.normal(size=60) + shift, rng.normal(size=90) * 1000)]
    for inside, outside in pairs:
        truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
        scores = np.r_[inside, outside]
        assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        assert aupr(inside, outside) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


@pytest.mark.parametrize("m", [1, 7, 20, 60, 137])
def test_fpr95_is_its_definition(m):
    inside, outside = scores_with_ties()
    inside = inside[:m]
    threshold = max(t for t in inside if 100 * (inside >= t).sum() >= 95 * m)
    assert fpr95(inside, outside) == (outside >= threshold).mean()


def test_fpr95_never_splits_a_tie():
    assert fpr95(np.array([1.0] * 99 + [0.0]), np.array([1.0, 0.5, 0.0, 0.0])) == 0.25
    assert fpr95(np.zeros(10), np.zeros(10)) == 1
    assert fpr95(np.arange(20.0), np.array([0.0, 0.5, 1.0, 30.0])) == 0.5  # 19 of 20 accepted: threshold 1


def test_fpr95_rounds_the_number_of_accepted_up():
    assert fpr95(np.arange(7.0), np.array([0.5])) == 1  # 95 % of 7 is 6.65, so all 7 are accepted: threshold 0
    assert fpr95(np.arange(20.0), np.array([0.5])) == 0  # 95 % of 20 is 19, exactly


def test_detection_reports_the_same_values_inside_their_intervals():
    inside, outside = scores_with_ties()
    results = detection("ood/x/y", inside, outside, resamples=200)
    assert [r.name for r in results] == ["ood/x/y/auroc", "ood/x/y/aupr", "ood/x/y/fpr95"]
    assert [r.value for r in results] == [auroc(inside, outside), aupr(inside, outside), fpr95(inside, outside)]
    assert all(r.low < r.value < r.high and r.n == 217 for r in results)
    assert results == detection("ood/x/y", inside, outside, resamples=200)


def test_the_interval_of_auroc_has_the_width_of_hanley_and_mcneil():
    rng = np.random.default_rng(0)
    inside, outside = rng.exponential(2.0, size=500), rng.exponential(1.0, size=500)
    area = detection("x", inside, outside, resamples=1000)[0]
    a, q1, q2 = area.value, area.value / (2 - area.value), 2 * area.value**2 / (1 + area.value)
    error = np.sqrt((a * (1 - a) + 499 * (q1 - a**2) + 499 * (q2 - a**2)) / 500**2)  # exact for exponentials
    assert area.high - area.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_perfect_separation_is_not_reported_as_certain():
    area, precision, accepted = detection("x", np.arange(40.0) + 100, np.arange(30.0), resamples=20)
    assert (area.value, area.high, precision.value, accepted.value, accepted.low) == (1, 1, 1, 0, 0)
    assert area.low == pytest.approx(0.025 ** (1 / 30))
    assert accepted.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert area.n == accepted.n == 70
    area, _, accepted = detection("x", np.arange(30.0), np.arange(40.0) + 100, resamples=20)
    assert (area.value, area.low, accepted.value, accepted.high) == (0, 0, 1, 1)
    assert area.high == pytest.approx(1 - 0.025 ** (1 / 30))


@pytest.mark.parametrize("bad", [np.array([np.nan, 1.0]), np.array([np.inf]), np.array([])])
def test_scores_that_cannot_be_ranked_are_refused(bad):
    with pytest.raises(DataError, match="finite and not empty"):
        detection("x", np.ones(3), bad)


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(0)
    return torch.rand(30, 2, 4, 4, generator=rng) * 2 - 1, torch.randint(3, (30,), generator=rng)


def test_sets_made_from_images(images):
    x, y = images
    sets = builtin_ood_sets(x, y, BOX, seed=0)
    assert list(sets) == ["noise", "constant", "inverted", "rotated", "interpolated"]
    for foreign in sets.values():
        assert foreign.shape == x.shape
        assert foreign.dtype == torch.float32
        assert float(foreign.min()) >= -1
        assert float(foreign.max()) <= 1
    assert abs(float(sets["noise"].mean())) < 4 / np.sqrt(3 * x.numel())
    assert float(sets["noise"].var()) == pytest.approx(1 / 3, rel=0.1)
    assert torch.equal(sets["constant"], sets["constant"][:, :, :1, :1].expand_as(x))
    assert len(sets["constant"][:, :, 0, 0].unique()) == 60
    assert torch.equal(sets["inverted"], -x)
    assert torch.equal(sets["rotated"][:, :, 0, 0], x[:, :, 0, 3])


def test_sets_follow_the_seed(images):
    x, y = images
    first, again, other = (builtin_ood_sets(x, y, BOX, seed=s) for s in (0, 0, 1))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], other[name]) == (name in ("inverted", "rotated"))


def test_the_inversion_is_about_the_centre_of_the_box(images):
    x, y = images
    torch.testing.assert_close(builtin_ood_sets((x + 1) / 2, y, (0.0, 1.0))["inverted"], 1 - (x + 1) / 2)


def test_interpolations_join_different_classes_uniformly():
    labels = torch.tensor([0, 0, 0, 1, 2, 2] * 500)
    x = torch.nn.functional.one_hot(labels).float()
    mixed = builtin_ood_sets(x, labels, None)["interpolated"]
    own = mixed.gather(1, labels[:, None])
    assert torch.equal(own, torch.full_like(own, 0.5))  # never its own class
    with_one = (mixed[labels == 0][:, 1] == 0.5).double().mean()  # class 1 is a third of what is not class 0
    assert abs(float(with_one) - 1 / 3) < 4 * np.sqrt(2 / 9 / 1500)


def test_sets_made_from_vectors():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=rng) * torch.tensor([1.0, 2.0, 5.0]) + torch.tensor([0.0, 10.0, 0.0])
    x[:, 2] = x[:, 0]
    sets = builtin_ood_sets(x, torch.randint(2, (500,), generator=rng), None)
    assert list(sets) == ["noise", "shuffled", "interpolated"]
    spread = (sets["noise"] - x.mean(0)).abs().amax(0) / x.std(0)
    assert bool(((spread > 3.9) & (spread <= 4.0001)).all())
    assert torch.equal(sets["shuffled"].sort(dim=0).values, x.sort(dim=0).values)
    assert abs(float(torch.corrcoef(sets["shuffled"].T)[0, 2])) < 4 / np.sqrt(500)


def test_sets_that_cannot_be_made_are_left_out(images):
    x, y = images
    assert "rotated" not in builtin_ood_sets(x[..., :3], y, BOX)
    assert "interpolated" not in builtin_ood_sets(x, torch.zeros_like(y), BOX)
    assert "shuffled" not in builtin_ood_sets(x.flatten(1)[:, :1], y, None)
    with pytest.raises(ConfigError, match="two or more inputs"):
        builtin_ood_sets(x[:1], y[:1], BOX)


def test_stored_images_become_model_units(images):
    stored = torch.tensor([0, 255, 0, 255], dtype=torch.uint8).reshape(2, 1, 1, 2)
    assert builtin_ood_sets(stored, torch.tensor([0, 1]), BOX)["inverted"].flatten().tolist() == [1, -1, 1, -1]
