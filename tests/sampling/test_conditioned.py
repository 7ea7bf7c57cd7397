"""Conditioned chains against closed forms: on a Gaussian every one of these laws is a Gaussian."""

import math

import pytest
import torch
from torch import nn

from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.rng import generator
from jemstone.sampling import anchored, clipped, counterfactual, denoise, inpaint, langevin, mala, normalized

PRECISION = torch.tensor([[2.0, 0.8, -0.5], [0.8, 1.5, 0.3], [-0.5, 0.3, 1.0]])
CHAINS = 8000


def gaussian(x):
    """E(x) = x^T PRECISION x / 2: the density N(0, PRECISION^-1). Any shape of row with three entries."""
    flat = x.flatten(1)
    grad = flat @ PRECISION
    return (flat * grad).sum(dim=1) / 2, grad.view_as(x)


def worst_z(x, mean, covariance):
    """The largest |z| among means, variances and covariances of the columns of x, (n, d)."""
    n, centred = len(x), x - mean
    z = [centred.mean(dim=0) / (covariance.diagonal() / n).sqrt()]
    outer = centred[:, :, None] * centred[:, None, :]
    spread = covariance.diagonal()[:, None] * covariance.diagonal() + covariance.square()  # of a product of normals
    z.append(((outer.mean(dim=0) - covariance) / (spread / n).sqrt()).flatten())
    return torch.cat(z).abs().max().item()


def conditional():
    """Where the second and third entry lie, given that the first is 1.2: the Schur complement of the precision."""
    covariance = PRECISION[1:, 1:].inverse()
    return -covariance @ PRECISION[1:, 0] * 1.2, covariance


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1)])
def test_inpainting_samples_the_conditional_law(shape):
    x = torch.full((CHAINS, *shape), 1.2)
    known = torch.tensor([True, False, False]).view(shape)
    found = inpaint(gaussian, mala(0.6), x, known, 100, generator(0, "inpaint"))
    assert found.shape == x.shape
    found = found.flatten(1)
    assert bool((found[:, 0] == 1.2).all())
    assert worst_z(found[:, 1:], *conditional()) < 4.5


def test_inpainting_by_unadjusted_langevin_has_its_exact_law():
    alpha, noise = 0.4, 0.5
    found = inpaint(
        gaussian,
        langevin(alpha, noise),
        torch.full((CHAINS, 3), 1.2),
        torch.tensor([True, False, False]),
        80,
        generator(1, "inpaint"),
    )
    contraction = torch.eye(2) - alpha * PRECISION[1:, 1:]  # u' = C (u - mean) + mean + noise xi: an AR(1) process
    covariance = noise**2 * torch.linalg.inv(torch.eye(2) - contraction @ contraction)
    assert worst_z(found[:, 1:], conditional()[0], covariance) < 4.5


def test_a_mask_per_row():
    x = torch.full((CHAINS, 3), 1.2)
    known = torch.zeros(CHAINS, 3, dtype=torch.bool)
    known[::2, 0] = known[1::2, 2] = True
    found = inpaint(gaussian, mala(0.6), x, known, 100, generator(2, "inpaint"))
    assert torch.equal(found[known], x[known])
    assert worst_z(found[::2, 1:], *conditional()) < 4.5
    covariance = PRECISION[:2, :2].inverse()
    assert worst_z(found[1::2, :2], -covariance @ PRECISION[:2, 2] * 1.2, covariance) < 4.5


def test_steps_of_fixed_length_are_measured_among_the_unknown():
    x = torch.tensor([[9.0, 0.3, -0.1]])
    known = torch.tensor([True, False, False])
    found = inpaint(gaussian, normalized(0.25, box=None), x, known, 1, generator(0, "unused"))
    assert (found - x)[:, 1:].norm().item() == pytest.approx(0.25)


def test_known_entries_may_lie_outside_the_box_of_the_chains():
    x = torch.tensor([[3.0, 0.3, -0.1]])
    found = inpaint(gaussian, clipped(0.1), x, torch.tensor([True, False, False]), 50, generator(0, "unused"))
    assert found[0, 0] == 3.0
    assert found[0, 1] == -1.0  # where it is drawn, and not let


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (torch.zeros(2, dtype=torch.bool), "shape"),
        (torch.ones(3, dtype=torch.bool), "at least one"),
        (torch.tensor([[True, False, False], [True, True, False]]), "same number"),
    ],
)
def test_masks_that_cannot_be_are_named(known, message):
    with pytest.raises(ConfigError, match=message):
        inpaint(gaussian, mala(0.5), torch.zeros(2, 3), known, 1, generator(0, "unused"))


@pytest.mark.parametrize("deviation", [0.4, 2.0])
def test_denoising_samples_the_posterior(deviation):
    noisy = torch.tensor([1.0, -2.0, 0.5])
    found = denoise(gaussian, mala(0.1), noisy.expand(CHAINS, 3), 150, generator(3, "denoise"), deviation=deviation)
    covariance = (PRECISION + torch.eye(3) / deviation**2).inverse()
    assert worst_z(found, covariance @ noisy / deviation**2, covariance) < 4.5


def test_denoising_without_noise_in_the_steps_ends_at_the_mode():
    noisy = torch.tensor([[1.0, -2.0, 0.5]])
    found = denoise(gaussian, langevin(0.1, 0.0), noisy, 400, generator(0, "unused"), deviation=0.5)
    assert torch.allclose(found[0], torch.linalg.solve(PRECISION + 4 * torch.eye(3), 4 * noisy[0]), atol=1e-5)


def test_the_anchored_energy_has_its_gradient():
    x = torch.randn(5, 3, 1, 1, dtype=torch.float64, generator=generator(4, "x"))
    centre = torch.zeros_like(x)

    def flat(x):
        return x.flatten(1).square().sum(dim=1).square(), 4 * x.flatten(1).square().sum(dim=1).view(-1, 1, 1, 1) * x

    energy_grad = anchored(flat, centre + 0.5, 0.3)
    x.requires_grad_()
    energy, grad = energy_grad(x)
    assert torch.allclose(torch.autograd.grad(energy.sum(), x)[0], grad)
    assert torch.allclose(energy, flat(x)[0] + (x - 0.5).square().flatten(1).sum(dim=1) / 0.18)


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan])
def test_an_anchor_needs_a_deviation(deviation):
    with pytest.raises(ConfigError, match="positive"):
        anchored(gaussian, torch.zeros(1, 3), deviation)


class TwoGaussians(nn.Module):
    """Logits -|x - m_y|^2 / 2 with m = (-3, 3); in train mode they would be other ones."""

    def forward(self, x):
        return -(x - torch.tensor([-3.0, 3.0])).square() / 2 * (5.0 if self.training else 1.0)


def test_counterfactuals_lie_between_the_point_and_its_class():
    model = EnergyClassifier(TwoGaussians()).train()
    labels = torch.arange(2 * CHAINS) % 2
    x = torch.full((2 * CHAINS, 1), 0.4)
    found = counterfactual(model, mala(0.8), x, labels, 60, generator(5, "counterfactual"), radius=1.5)
    variance = torch.tensor([[1 / (1 + 1 / 1.5**2)]])
    for label, mean in ((0, -3.0), (1, 3.0)):
        expected = variance[0] * (mean + 0.4 / 1.5**2)
        assert worst_z(found[labels == label], expected, variance) < 4.5
    assert model.training
    assert bool((x == 0.4).all())
