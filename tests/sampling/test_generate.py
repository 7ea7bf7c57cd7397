"""Generation on a model whose density is known."""

import pytest
import torch
from torch import nn

from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.execution import PLAIN, Execution
from jemstone.networks import build_network
from jemstone.rng import generator, seeded
from jemstone.sampling import ClassGaussian, generate, langevin, run_chains, uniform


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


@pytest.fixture(scope="module")
def images():
    """A small ConvNet in eval mode, and a class-conditional start made of random images."""
    with seeded(0, "network"):
        model = EnergyClassifier(build_network("conv-16", (3, 12, 12), 4, norm="group")).eval()
    x = torch.rand(80, 3, 12, 12, generator=generator(0, "images")) * 2 - 1
    return model, ClassGaussian.fit(x, torch.arange(80) % 4, 4, box=(-1.0, 1.0))


@pytest.mark.parametrize("by_class", [False, True])
def test_plain_samples_are_bit_for_bit_those_of_chains_run_part_by_part(images, by_class):
    model, start = images
    sampler, labels = langevin(0.5, 0.01, box=(-1.0, 1.0)), torch.arange(11) % 4
    rng, parts = generator(0, "g"), []
    for part in torch.split(labels, 4):
        gradient = energy_gradient(model, part if by_class else None)
        parts.append(run_chains(sampler, start(part, rng), gradient, 3, rng)[0])
    rng = generator(0, "g")
    x = generate(model, start, sampler, labels, 3, rng, by_class=by_class, batch_size=4, execution=PLAIN)
    assert torch.equal(x, torch.cat(parts))


@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [
        (Execution(channels_last=True), 1e-4),
        (Execution("bf16-mixed"), 0.05),
        (Execution("bf16-mixed", channels_last=True), 0.05),
    ],
    ids=str,
)
def test_other_executions_move_chains_by_nearly_the_same(images, execution, tolerance):
    """Without noise, relative to how far chains went: starts that were rounded to bfloat16 would be far off."""
    model, start = images
    sampler, labels = langevin(0.5, 0.0), torch.arange(10) % 4
    plain, other = (
        generate(model, start, sampler, labels, 4, generator(0, "g"), batch_size=16, execution=how)
        for how in (PLAIN, execution)
    )
    moved = plain - start(labels, generator(0, "g"))
    error = (other - plain).norm() / moved.norm()
    assert error < tolerance
    if execution.precision == "bf16-mixed":
        assert error > 1e-4, "it was not computed in bfloat16"
    assert other.dtype == torch.float32
    assert other.is_contiguous()
