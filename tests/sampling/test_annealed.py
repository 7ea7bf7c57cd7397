"""Annealed importance sampling where Z is known: the mean weight is Z, in expectation, whatever the schedule."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from jemstone.errors import ConfigError
from jemstone.evaluation.quadrature import log_integral
from jemstone.rng import generator
from jemstone.sampling.annealed import Base, annealed_importance, sigmoid_schedule, truncated_mixture, tuned_steps

DIMENSION = 12


def normal_base(dimension):
    def log_density(x):
        return -x.square().sum(dim=1) / 2 - dimension / 2 * math.log(2 * math.pi)

    return Base(lambda n, rng: torch.randn(n, dimension, generator=rng), log_density)


def by_autograd(energy):
    def evaluate(x):
        x = x.detach().requires_grad_()
        value = energy(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    return evaluate


def z_score(log_weights, log_z):
    """Of the mean of w / Z against 1: a test of unbiasedness, which the logarithm would not be."""
    ratio = (log_weights - log_z).exp()
    return float((ratio.mean() - 1) / (ratio.std() / math.sqrt(len(ratio))))


def gaussian_energy(x):
    return 2 * (x - 0.7).square().sum(dim=1) + 5


LOG_Z = DIMENSION / 2 * math.log(math.pi / 2) - 5


def test_gaussian_in_twelve_dimensions():
    betas, target = sigmoid_schedule(80), by_autograd(gaussian_energy)
    base = normal_base(DIMENSION)
    sizes = tuned_steps(base, target, betas, 64, generator(0, "pilot"))
    found = annealed_importance(base, target, betas, 1000, generator(0, "run"), step_sizes=sizes)
    assert abs(z_score(found.log_weights, LOG_Z)) < 4
    assert float(found.log_weights.std()) < 1.5  # the weights are even enough for that to be a test
    assert torch.logsumexp(found.log_weights, 0) - math.log(1000) == pytest.approx(LOG_Z, abs=0.15)


def test_the_mean_weight_is_unbiased_also_with_few_temperatures_and_poor_steps():
    betas, target, base = [0.0, 0.2, 0.5, 1.0], by_autograd(lambda x: (x - 0.5).square().sum(dim=1)), normal_base(2)
    scores = []
    for seed in range(12):
        found = annealed_importance(base, target, betas, 3000, generator(seed), step_sizes=[1.5, 0.3], steps=2)
        scores.append(z_score(found.log_weights, math.log(math.pi)))
    assert abs(sum(scores)) / math.sqrt(len(scores)) < 4
    assert stats.kstest(scores, stats.norm.cdf).pvalue > 1e-3


def test_the_mean_of_log_weights_lies_below():
    found = annealed_importance(
        normal_base(DIMENSION), by_autograd(gaussian_energy), [0.0, 0.5, 1.0], 500, generator(1), step_sizes=[0.1]
    )
    assert float(found.log_weights.mean()) < LOG_Z - 1


def test_density_that_crowds_at_the_walls_of_a_box():
    """E = 6 sum x in [-1, 1]^10: Z = (sinh(6) / 3)^10, and 99 % of the mass within 0.8 of a corner in every entry."""
    inputs = -1 + 0.1 * torch.rand(50, 10, generator=generator(0))
    base = truncated_mixture(inputs, torch.zeros(50, dtype=torch.long), (-1.0, 1.0))
    betas, target = sigmoid_schedule(60), by_autograd(lambda x: 6 * x.sum(dim=1))
    sizes = tuned_steps(base, target, betas, 64, generator(0, "pilot"), box=(-1.0, 1.0))
    found = annealed_importance(base, target, betas, 1500, generator(2), step_sizes=sizes, box=(-1.0, 1.0))
    assert abs(z_score(found.log_weights, 10 * math.log(math.sinh(6) / 3))) < 4
    assert float(found.log_weights.std()) < 1.2


def test_mixture_in_a_box_against_quadrature():
    means = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.8, -1.8]])

    def energy(x):
        return -(-4 * (x[:, None] - means).square().sum(dim=2) + torch.tensor([0.0, 1.0, 2.0])).logsumexp(dim=1)

    box = (-2.0, 2.0)
    truth = log_integral(lambda x: -energy(torch.from_numpy(x).float()).double().numpy(), box, 2)
    labels = torch.arange(30) % 3
    inputs = (means[labels] + 0.3 * torch.randn(30, 2, generator=generator(3))).clamp(*box)
    base, betas, target = truncated_mixture(inputs, labels, box), sigmoid_schedule(60), by_autograd(energy)
    sizes = tuned_steps(base, target, betas, 64, generator(3, "pilot"), box=box)
    found = annealed_importance(base, target, betas, 2000, generator(3, "run"), step_sizes=sizes, box=box)
    assert abs(z_score(found.log_weights, truth.log_z)) < 4
    assert float(found.log_weights.std()) < 1.2


def test_tuned_steps_reach_their_acceptance_and_shrink_with_the_target():
    betas, target, base = sigmoid_schedule(100), by_autograd(lambda x: 50 * gaussian_energy(x)), normal_base(DIMENSION)
    sizes = tuned_steps(base, target, betas, 64, generator(4, "pilot"))
    found = annealed_importance(base, target, betas, 200, generator(4, "run"), step_sizes=sizes)
    assert len(sizes) == len(found.acceptance) == 99
    assert float(found.acceptance.mean()) == pytest.approx(0.574, abs=0.08)
    assert float(found.acceptance.min()) > 0.2
    assert sizes[-1] < sizes[0] / 20


def test_same_stream_same_weights():
    def run(seed):
        return annealed_importance(
            normal_base(2), by_autograd(gaussian_energy), [0.0, 0.5, 1.0], 5, generator(seed), step_sizes=[0.1]
        ).log_weights

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_one_temperature_is_plain_importance_sampling():
    base = normal_base(2)
    x = base.sample(7, generator(5))
    found = annealed_importance(base, by_autograd(gaussian_energy), [0.0, 1.0], 7, generator(5), step_sizes=[])
    torch.testing.assert_close(found.log_weights, (-gaussian_energy(x) - base.log_density(x)).double())
    assert len(found.acceptance) == 0


def test_a_density_of_zero_weighs_nothing():
    def energy_grad(x):
        return torch.where(x[:, 0] > 0, torch.inf, x.square().sum(dim=1) / 2), x

    betas = [0.0, 0.3, 1.0]
    found = annealed_importance(normal_base(1), energy_grad, betas, 4000, generator(6), step_sizes=[0.5])
    assert abs(z_score(found.log_weights, math.log(math.sqrt(2 * math.pi) / 2))) < 4


@pytest.mark.parametrize("betas", [[0.0], [0.1, 1.0], [0.0, 0.9], [0.0, 0.5, 0.5, 1.0]])
def test_betas_must_rise_from_0_to_1(betas):
    with pytest.raises(ConfigError):
        annealed_importance(
            normal_base(1), by_autograd(gaussian_energy), betas, 2, generator(0), step_sizes=[0.1] * (len(betas) - 2)
        )


def test_counts_must_fit():
    target = by_autograd(gaussian_energy)
    with pytest.raises(ConfigError, match="1 between"):
        annealed_importance(normal_base(1), target, [0.0, 0.5, 1.0], 2, generator(0), step_sizes=[])
    with pytest.raises(ConfigError, match="at least one chain"):
        annealed_importance(normal_base(1), target, [0.0, 1.0], 0, generator(0), step_sizes=[])
    with pytest.raises(ConfigError, match="temperature"):
        sigmoid_schedule(0)


def test_schedule_rises_and_is_closest_at_the_ends():
    betas = np.array(sigmoid_schedule(100))
    assert (betas[0], betas[-1], len(betas)) == (0, 1, 101)
    gaps = np.diff(betas)
    assert (gaps > 0).all()
    assert gaps[0] < gaps[50] / 5
    np.testing.assert_allclose(betas + betas[::-1], 1)


@pytest.fixture
def clusters():
    labels = torch.tensor([0] * 30 + [1] * 10)
    centres = torch.tensor([[-0.9, 0.2], [0.5, 0.95]])
    return (centres[labels] + 0.2 * torch.randn(40, 2, generator=generator(7))).clamp(-1, 1), labels


def test_base_is_normalised_on_the_box(clusters):
    base = truncated_mixture(*clusters, (-1.0, 1.0))
    total = log_integral(lambda x: base.log_density(torch.from_numpy(x).float()).double().numpy(), (-1.0, 1.0), 2)
    assert total.log_z == pytest.approx(0, abs=1e-5)


def test_base_samples_its_own_density(clusters):
    x, labels = clusters
    base = truncated_mixture(x, labels, (-1.0, 1.0))
    drawn = base.sample(20_000, generator(8)).numpy()
    assert np.abs(drawn).max() <= 1

    def cdf(values):
        total = 0.0
        for label, share in ((0, 0.75), (1, 0.25)):
            member = x[labels == label][:, 1].double().numpy()
            sd = max(2 * member.std(), 0.4)
            low, high = (-1 - member.mean()) / sd, (1 - member.mean()) / sd
            total = total + share * stats.truncnorm(low, high, member.mean(), sd).cdf(values)
        return total

    assert stats.kstest(drawn[:, 1], cdf).pvalue > 1e-3
    # E_p0[q / p0] = 1 for any density q: samples and density belong together in both dimensions at once.
    q = torch.full((len(drawn),), 0.25)
    ratio = q / base.log_density(torch.from_numpy(drawn)).exp()
    assert abs(float((ratio.mean() - 1) / (ratio.std() / math.sqrt(len(ratio))))) < 4


def test_base_of_images_has_their_shape_and_survives_constant_pixels():
    images = torch.full((4, 1, 3, 3), -1.0)
    base = truncated_mixture(images, torch.tensor([-1, -1, -1, -1]), (-1.0, 1.0))
    x = base.sample(5, generator(9))
    assert x.shape == (5, 1, 3, 3)
    assert base.log_density(x).isfinite().all()
