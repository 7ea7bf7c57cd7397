"""Generation on a model whose density is known."""

import torch
from torch import nn

from jemstone.energy import EnergyClassifier
from jemstone.rng import generator
from jemstone.sampling import generate, langevin, uniform


class TwoGaussians(nn.Module):
    """Logits -|x - m_y|^2 / 2 with m = (-3, 3): p(x|y) is a unit Gaussian around m_y."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-3.0, 3.0]))

    def forward(self, x):
        return -(x - self.means).square() / 2


def test_by_class_chains_sample_their_class_and_the_mode_is_restored():
    model = EnergyClassifier(TwoGaussians()).train()
    labels = torch.arange(600) % 2
    x = generate(model, uniform((1,), None), langevin(0.1, 0.2**0.5), labels, 200, generator(0, "g"), batch_size=250)
    assert x.shape == (600, 1)
    for label, mean in ((0, -3.0), (1, 3.0)):
        drawn = x[labels == label]
        assert abs(drawn.mean().item() - mean) < 5 * (1.05 / len(drawn)) ** 0.5
        assert 0.85 < drawn.std() < 1.25
    assert model.training


def test_marginal_chains_ignore_the_label():
    model = EnergyClassifier(TwoGaussians())
    labels = torch.zeros(400, dtype=torch.int64)
    start = uniform((1,), None)
    x = generate(model, start, langevin(0.1, 0.2**0.5), labels, 100, generator(0, "g"), by_class=False)
    assert 0.3 < (x > 0).float().mean() < 0.7
