"""Energies against their definition, and the gradient against finite differences."""

import math

import pytest
import torch
from torch import nn

from jemstone.energy import EnergyClassifier, energy_gradient, joint_energy, marginal_energy
from jemstone.errors import ConfigError


class Shifted(nn.Module):
    """A network whose logits are all raised by the same constant."""

    def __init__(self, network: nn.Module, constant: float) -> None:
        super().__init__()
        self.network = network
        self.constant = constant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x) + self.constant


def small_model(seed: int = 0) -> EnergyClassifier:
    torch.manual_seed(seed)
    return EnergyClassifier(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4)))


def test_energies_follow_from_logits():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    expected = -torch.tensor([math.log(math.e + math.e**2 + math.e**3), math.log(3)])
    assert torch.allclose(marginal_energy(logits), expected)
    assert torch.equal(joint_energy(logits, torch.tensor([2, 0])), torch.tensor([-3.0, 0.0]))


def test_joint_density_sums_to_the_marginal_and_gives_the_posterior():
    model, x = small_model(), torch.randn(5, 3)
    joint = torch.stack([model.log_density(x, torch.full((5,), y)) for y in range(4)], dim=1)
    assert torch.allclose(joint.logsumexp(dim=1), model.log_density(x), atol=1e-6)
    posterior = (joint - model.log_density(x)[:, None]).exp()
    assert torch.allclose(posterior, model(x).softmax(dim=1), atol=1e-6)


def test_a_constant_added_to_all_logits_shifts_energy_and_leaves_the_posterior():
    model, x = small_model(), torch.randn(6, 3)
    shifted = EnergyClassifier(Shifted(model.network, 2.5))
    assert torch.allclose(shifted(x).softmax(dim=1), model(x).softmax(dim=1), atol=1e-6)
    assert torch.allclose(shifted.energy(x), model.energy(x) - 2.5, atol=1e-5)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.allclose(shifted.energy(x, y), model.energy(x, y) - 2.5, atol=1e-5)


@pytest.mark.parametrize("y", [None, torch.tensor([0, 3])])
def test_energy_gradient_equals_finite_differences(y):
    model = small_model().double()
    x = torch.randn(2, 3, dtype=torch.float64)
    energy, grad = energy_gradient(model, y)(x)
    assert torch.allclose(energy, model.energy(x, y))
    step = 1e-6
    for i in range(3):
        forward, backward = x.clone(), x.clone()
        forward[:, i] += step
        backward[:, i] -= step
        slope = (model.energy(forward, y) - model.energy(backward, y)) / (2 * step)
        assert torch.allclose(grad[:, i], slope, atol=1e-7)


def test_energy_gradient_leaves_no_gradient_on_parameters_and_works_under_no_grad():
    model, x = small_model(), torch.randn(2, 3)
    with torch.no_grad():
        energy, grad = energy_gradient(model)(x)
    assert grad.abs().sum() > 0
    assert not energy.requires_grad
    assert not grad.requires_grad
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_wrong_output_shape_is_explained():
    model = EnergyClassifier(nn.Flatten(0))
    with pytest.raises(ConfigError, match="logits of shape"):
        model(torch.zeros(2, 3))
