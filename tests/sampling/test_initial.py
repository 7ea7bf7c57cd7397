"""Starts against the law they claim."""

import pytest
import torch

from jemstone.errors import DataError
from jemstone.rng import generator
from jemstone.sampling import ClassGaussian, from_data, uniform
from jemstone.sampling.initial import EXACT_DIMENSION


def correlated(n: int, d: int, seed: int = 0):
    """Two classes of known mean and covariance in d dimensions."""
    rng = generator(seed, "correlated")
    mix = torch.randn(2, d, d, generator=rng) / d**0.5
    mean = torch.tensor([[1.0], [-2.0]]).expand(2, d)
    labels = torch.arange(2 * n) % 2
    x = mean[labels] + torch.einsum("nij,nj->ni", mix[labels], torch.randn(2 * n, d, generator=rng))
    return x, labels


def test_uniform_fills_the_box():
    x = uniform((1, 4, 4), (-1.0, 1.0))(torch.zeros(2000, dtype=torch.int64), generator(0, "u"))
    assert x.shape == (2000, 1, 4, 4)
    assert -1 <= x.min() < -0.999
    assert 0.999 < x.max() <= 1
    assert abs(x.mean().item()) < 4 * (1 / 3 / x.numel()) ** 0.5
    assert uniform((3,), None)(torch.zeros(500, dtype=torch.int64), generator(0, "u")).abs().max() > 3


def test_from_data_draws_members_of_the_class():
    inputs, labels = torch.arange(12.0).view(12, 1), torch.arange(12) % 3
    wanted = torch.arange(600) % 3
    x = from_data(inputs, labels, 3)(wanted, generator(0, "d"))
    assert torch.equal(x.squeeze(1).long() % 3, wanted)
    assert len(x.unique()) == 12


def test_class_gaussian_keeps_the_exact_moments_of_small_inputs():
    x, labels = correlated(3000, 6)
    start = ClassGaussian.fit(x, labels, 2, box=None, ridge=0.0)
    for label in range(2):
        members = x[labels == label]
        assert torch.allclose(start.mean[label], members.mean(dim=0), atol=1e-5)
        assert torch.allclose(start.factor[label] @ start.factor[label].T, torch.cov(members.T), atol=1e-4)
    draws = start(torch.ones(40_000, dtype=torch.int64), generator(1, "g"))
    exact = torch.cov(x[labels == 1].T)
    error = (torch.cov(draws.T) - exact).abs()
    spread = (exact.diagonal()[:, None] * exact.diagonal()[None, :] + exact.square()) / len(draws)
    assert (error / spread.sqrt()).max() < 5
    assert ((draws.mean(dim=0) - start.mean[1]).abs() / (exact.diagonal() / len(draws)).sqrt()).max() < 5


def test_class_gaussian_of_large_inputs_keeps_every_variance_and_the_leading_directions():
    d = EXACT_DIMENSION + 50
    rng = generator(2, "large")
    leading = torch.randn(3, d, generator=rng)
    x = torch.randn(400, 3, generator=rng) @ leading + 0.1 * torch.randn(400, d, generator=rng)
    labels = torch.zeros(400, dtype=torch.int64)
    start = ClassGaussian.fit(x, labels, 1, box=None, rank=8, ridge=0.0)
    assert start.factor.shape == (1, d, 8)
    modelled = start.factor[0].square().sum(dim=1) + start.residual[0].square()
    assert torch.allclose(modelled, x.var(dim=0), rtol=1e-3)
    covariance = start.factor[0] @ start.factor[0].T
    top = leading.T @ leading
    assert torch.nn.functional.cosine_similarity(covariance.flatten(), top.flatten(), dim=0) > 0.98


def test_low_rank_fit_is_deterministic_and_leaves_the_global_stream_alone():
    x = torch.randn(20, EXACT_DIMENSION + 1)
    labels = torch.zeros(20, dtype=torch.int64)
    state = torch.random.get_rng_state()
    first = ClassGaussian.fit(x, labels, 1, box=None)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.factor, ClassGaussian.fit(x, labels, 1, box=None).factor)


def test_class_gaussian_is_clamped_to_the_box_and_keeps_the_image_shape():
    x = torch.randn(200, 1, 3, 3)
    start = ClassGaussian.fit(x, torch.arange(200) % 2, 2, box=(-1.0, 1.0))
    draws = start(torch.tensor([0, 1, 1]), generator(0, "g"))
    assert draws.shape == (3, 1, 3, 3)
    assert draws.abs().max() <= 1


def test_a_class_without_examples_is_named():
    with pytest.raises(DataError, match="Class 1"):
        ClassGaussian.fit(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), 2, box=None)
    with pytest.raises(DataError, match="Class 1"):
        from_data(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), 2)
