"""Likelihoods where Z is known, by scipy, by a sum over a grid, and by annealing where quadrature is exact."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from jemstone.data import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.evaluation import likelihood
from jemstone.evaluation.forward import frozen
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.likelihood import (
    FULL,
    QUICK,
    LikelihoodSettings,
    annealed_partition,
    bits_per_dimension,
    domain_of,
    effective_sample_size,
    likelihood_section,
)
from jemstone.evaluation.section import Common, Subject, Work
from jemstone.networks import MLP
from jemstone.rng import generator, seeded

COMMON = Common(resamples=300, batch_size=4096)
SMALL = LikelihoodSettings(chains=64, temperatures=60)


class Function(nn.Module):
    """Logits (b, 2) whose logsumexp is minus `energy`."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x):
        log_f = -self.energy(x)
        return torch.stack([log_f + math.log(0.3), log_f + math.log(0.7)], dim=1)


def subject(network, inputs):
    n = len(inputs)
    labels = torch.arange(n) % 2
    parts = [Split(inputs[i], labels[i]) for i in (slice(0, n // 2), slice(n // 2, n // 2), slice(n // 2, n))]
    return Subject(EnergyClassifier(network).eval().requires_grad_(False), Dataset("toy", *parts, ("a", "b")))


def mlp(dimension):
    with seeded(0, "network"):
        network = MLP(dimension, 2, width=16, depth=2)
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data *= 2.5
    return subject(network, torch.randn(80, dimension, generator=generator(0)).clamp(-1.9, 1.9))


def measured(of, settings=SMALL, common=COMMON, work=Work()):  # noqa: B008
    with frozen(of.model):
        section = likelihood_section(of, settings, common, work)
    return {result.name: result for result in section.results}, section


def test_exact_likelihood_in_two_dimensions_integrates_to_one():
    of = mlp(2)
    results, section = measured(of)
    log_z = results["likelihood/log_z"].value

    def density(u, v):
        with torch.no_grad():
            return math.exp(-of.model.energy(torch.tensor([[u, v]])).item() - log_z)

    total, _ = integrate.nquad(density, [section.figures["domain"]] * 2, opts={"epsrel": 1e-4, "epsabs": 1e-4})
    assert total == pytest.approx(1, abs=2e-3)
    assert section.figures["method"] == "quadrature"
    assert not section.warnings


def test_a_network_that_is_a_normalised_density():
    """N(0, I) within ten standard deviations: Z = 1, and the mean log density is a sum over the test inputs."""
    inputs = torch.randn(60, 3, generator=generator(1)) * 2
    inputs[0] = torch.tensor([0.0, -8.5, 0.0])
    of = subject(Function(lambda x: (x.square().sum(dim=1) + 3 * math.log(2 * math.pi)) / 2), inputs)
    results, section = measured(of)
    assert section.figures["domain"] == [-10.0, 10.0]
    assert results["likelihood/log_z"].value == pytest.approx(0, abs=1e-2)
    log_p = -(inputs[30:].square().sum(dim=1) + 3 * math.log(2 * math.pi)) / 2
    np.testing.assert_allclose(section.examples["likelihood/test"], log_p, atol=1e-2)
    assert results["likelihood/test"].value == pytest.approx(log_p.mean().item(), abs=1e-2)
    assert results["likelihood/train"].value == pytest.approx(
        -(inputs[:30].square().sum(dim=1) + 3 * math.log(2 * math.pi)).mean().item() / 2, abs=1e-2
    )
    assert "likelihood/bits_per_dim" not in results


def test_annealing_agrees_with_quadrature_on_the_same_network(monkeypatch):
    of = mlp(3)
    exact = measured(of)[0]
    monkeypatch.setattr(likelihood, "EXACT_DIMENSION", 0)
    annealed, section = measured(of, LikelihoodSettings(chains=200, temperatures=60))
    assert section.figures["method"] == "ais"
    assert not section.warnings
    log_z = annealed["likelihood/log_z"]
    assert log_z.high - log_z.low < 1
    assert log_z.value == pytest.approx(exact["likelihood/log_z"].value, abs=log_z.high - log_z.low)
    # The same error, with the other sign, is in every likelihood.
    drift = log_z.value - exact["likelihood/log_z"].value
    assert annealed["likelihood/test"].value == pytest.approx(exact["likelihood/test"].value - drift, abs=1e-9)
    assert section.examples["likelihood/test"].shape == (40,)


def images(n=40):
    return torch.randint(0, 256, (n, 1, 4, 4), generator=generator(2), dtype=torch.uint8)


def test_a_uniform_density_on_images():
    """Constant logits: p = 2^-16 on [-1, 1]^16, and 255 steps between the grey levels cost log2(255) bits a pixel."""
    results, section = measured(subject(Function(lambda x: 7 + 0 * x.flatten(1).sum(dim=1)), images()))
    assert results["likelihood/log_z"].value == pytest.approx(-7 + 16 * math.log(2), abs=0.1)
    assert results["likelihood/test"].value == pytest.approx(-16 * math.log(2), abs=0.1)
    assert results["likelihood/bits_per_dim"].value == pytest.approx(math.log2(255), abs=0.1 / 16 / math.log(2))
    assert section.figures["domain"] == [-1.0, 1.0]
    assert any("underestimates" in note for note in section.notes)
    assert any("dequantised" in note for note in section.notes)


def test_images_with_a_gradient_have_their_closed_form():
    """E = 2 sum x on [-1, 1]^16: Z = sinh(2)^16."""
    of = subject(Function(lambda x: 2 * x.flatten(1).sum(dim=1)), images())
    results, section = measured(of, LikelihoodSettings(chains=100, temperatures=50))
    truth, log_z = 16 * math.log(math.sinh(2)), results["likelihood/log_z"]
    assert not section.warnings
    assert log_z.value == pytest.approx(truth, abs=log_z.high - log_z.low)
    x = of.data.test.inputs.double() / 127.5 - 1
    exact = (-2 * x.flatten(1).sum(dim=1) - truth).mean().item()
    assert results["likelihood/test"].low < exact < results["likelihood/test"].high


def test_a_target_that_annealing_cannot_follow_is_warned_of_and_an_easy_one_not():
    hard = Function(lambda x: 300 * (x.flatten(1) - 0.3).square().sum(dim=1))
    easy = Function(lambda x: (x.flatten(1) - 0.3).square().sum(dim=1))
    few = LikelihoodSettings(chains=40, temperatures=4)
    section = measured(subject(hard, images()), few)[1]
    assert [warned.name for warned in section.warnings] == ["unreliable-partition"]
    assert section.figures["effective_sample_size"] < 5
    assert measured(subject(easy, images()), LikelihoodSettings(chains=40, temperatures=50))[1].warnings == []


def test_a_grid_that_is_too_coarse_is_warned_of():
    sharp = subject(Function(lambda x: 2e4 * (x - 0.123).square().sum(dim=1)), torch.randn(20, 3))
    section = measured(sharp, LikelihoodSettings(grid_points=14_000))[1]
    assert [warned.name for warned in section.warnings] == ["unreliable-partition"]


def test_reliability_of_given_weights():
    even, accepted = np.random.default_rng(0).normal(size=50) * 0.5, np.full(300, 0.6)
    fine = annealed_partition(even, accepted, COMMON)
    assert fine.warnings == []
    assert fine.log_z.value == pytest.approx(math.log(np.exp(even).mean()))
    assert fine.log_z.low < fine.log_z.value < fine.log_z.high
    assert sum(fine.figures["log_weights"]["counts"]) == 50
    assert len(fine.figures["acceptance"]) == 100
    stuck = accepted.copy()
    stuck[200:210] = 0.02
    assert "acceptance falls to 2%" in annealed_partition(even, stuck, COMMON).warnings[0].text
    one = even.copy()
    one[0] += 30
    assert "worth 1.0 equal" in annealed_partition(one, accepted, COMMON).warnings[0].text
    # At 200 chains 5 % of them are 10: an effective size of 8 is enough for 64 chains and not for 200.
    eight = np.full(200, -50.0)
    eight[:8] = 0
    assert effective_sample_size(eight) == pytest.approx(8)
    assert len(annealed_partition(eight, accepted, COMMON).warnings) == 1
    assert annealed_partition(eight[:64], accepted, COMMON).warnings == []


def test_intervals_of_means_carry_that_of_log_z():
    mean, log_z = Result("likelihood/test", -3.0, -3.3, -2.6, 40), Result("likelihood/log_z", 5.0, 4.0, 5.4, 64)
    low, high = -3 - math.hypot(0.3, 0.4), -3 + math.hypot(0.4, 1.0)
    assert likelihood._with_uncertain_constant(mean, log_z) == Result("likelihood/test", -3.0, low, high, 40)


def test_bits_per_dimension_turn_the_interval_round():
    nats = Result("likelihood/test", -10.0, -12.0, -9.0, 40)
    bits = bits_per_dimension(nats, 4, (-1.0, 1.0))
    # By hand: a grey level is a cell of 2 / 255 in each of 4 dimensions.
    by_hand = [-math.log2(math.exp(v) * (2 / 255) ** 4) / 4 for v in (-10.0, -9.0, -12.0)]
    assert [bits.value, bits.low, bits.high] == pytest.approx(by_hand)


def test_domain_is_the_box_or_holds_all_splits():
    of = mlp(2)
    assert domain_of(of) == (-3.0, 3.0)
    of.data.train.inputs[0, 0] = -6.2
    assert domain_of(of) == (-8.0, 8.0)
    assert domain_of(subject(nn.Flatten(), images())) == (-1.0, 1.0)


def test_a_killed_evaluation_goes_on_bitwise(monkeypatch):
    monkeypatch.setattr(likelihood, "BLOCK", 16)
    of, settings = subject(mlp(16).model.network, images()), LikelihoodSettings(chains=40, temperatures=10)
    whole = measured(of, settings)[1]
    stored, made = {}, []

    def until(limit):
        def memo(name, make):
            if name not in stored:
                if len(made) == limit:
                    raise KeyboardInterrupt
                made.append(name)
                stored[name] = make()
            return stored[name]

        return Work(memo=memo)

    with pytest.raises(KeyboardInterrupt):
        measured(of, settings, work=until(2))
    resumed = measured(of, settings, work=until(99))[1]
    assert resumed.results == whole.results
    assert resumed.figures == whole.figures
    assert len(made) == len(set(made)) == 4  # the pilot and three blocks, each once


def test_numbers_that_are_not_finite_make_no_claim():
    for dimension in (2, 5):
        broken = subject(Function(lambda x: x.sum(dim=1) * torch.nan), torch.randn(20, dimension))
        section = measured(broken, LikelihoodSettings(chains=4, temperatures=3))[1]
        assert section.results == []
        assert "not finite" in section.notes[-1]
        assert [warned.name for warned in section.warnings] == ["unreliable-partition"]


@pytest.mark.parametrize("inputs", [torch.randn(40, 2, generator=generator(3)), images()])
def test_figures_are_plain_and_complete_and_the_global_stream_is_left_alone(inputs):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    network = Function(lambda x: x.flatten(1).square().sum(dim=1))
    results, section = measured(
        subject(network, inputs), LikelihoodSettings(chains=8, temperatures=5, train_examples=9)
    )
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    figures = json.loads(json.dumps(section.figures, allow_nan=False))
    keys = {"method", "domain", "log_z", "effective_sample_size", "acceptance", "log_weights", "test", "train"}
    assert set(figures) == keys
    assert sum(figures["test"]["counts"]) == 20
    assert sum(figures["train"]["counts"]) == results["likelihood/train"].n == 9
    assert len(figures["test"]["edges"]) == len(figures["test"]["counts"]) + 1
    assert all(result.low <= result.value <= result.high for result in results.values())


@pytest.mark.parametrize("field", ["grid_points", "tolerance", "chains", "temperatures", "steps", "train_examples"])
def test_settings_are_checked(field):
    with pytest.raises(ConfigError, match=field):
        LikelihoodSettings(**{field: 0})
    assert getattr(QUICK, field) <= getattr(FULL, field)
