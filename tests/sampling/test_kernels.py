"""Kernels against exact truth: stationary laws on a Gaussian, formulas, invariants."""

import math

import pytest
import torch
from scipy import stats

from jemstone.errors import ConfigError
from jemstone.rng import generator
from jemstone.sampling import clipped, langevin, langevin_temperature, mala, normalized, run_chains


def quadratic(precision: float):
    """E(x) = precision |x|^2 / 2, whose density at temperature 1 is N(0, 1 / precision)."""

    def energy_grad(x):
        return precision * x.square().flatten(1).sum(dim=1) / 2, precision * x

    return energy_grad


@pytest.mark.parametrize(("step_size", "noise", "precision"), [(0.1, 0.3, 1.0), (0.5, 0.2, 1.5), (0.9, 1.0, 0.7)])
def test_unadjusted_langevin_has_its_exact_stationary_variance(step_size, noise, precision):
    # x' = (1 - a l) x + s xi is an AR(1) process: variance s^2 / (1 - (1 - a l)^2).
    exact = noise**2 / (1 - (1 - step_size * precision) ** 2)
    x = torch.zeros(40_000, 1)
    x, _ = run_chains(langevin(step_size, noise), x, quadratic(precision), 120, generator(0, "ula"))
    z = (x.var().item() / exact - 1) / math.sqrt(2 / len(x))
    assert abs(z) < 4
    # As the step shrinks at a fixed temperature, the law tends to exp(-E / T), variance T / precision.
    assert exact > langevin_temperature(step_size, noise) / precision


def test_temperature_of_the_original_recipe():
    assert langevin_temperature(1.0, 0.01) == pytest.approx(5e-5)


@pytest.mark.parametrize(("step_size", "temperature"), [(0.8, 1.0), (0.3, 0.5), (2.5, 2.0)])
def test_mala_is_exact_whatever_the_step(step_size, temperature):
    x = torch.randn(4000, 1, generator=generator(1, "start")) * 3
    sampler = mala(step_size, temperature=temperature)
    x, info = run_chains(sampler, x, quadratic(1.0), 150, generator(1, "mala"))
    assert stats.kstest(x.squeeze(1).numpy(), stats.norm(scale=math.sqrt(temperature)).cdf).pvalue > 1e-3
    assert 0.05 < info.accepted[50:].mean() < 1


def test_unadjusted_langevin_at_such_a_step_is_not_exact():
    """The power of the test above: without the acceptance test the same step fails it."""
    x = torch.randn(4000, 1, generator=generator(1, "start"))
    x, _ = run_chains(langevin(0.8, math.sqrt(1.6)), x, quadratic(1.0), 150, generator(1, "ula"))
    assert stats.kstest(x.squeeze(1).numpy(), stats.norm.cdf).pvalue < 1e-6


def test_mala_in_a_box_samples_the_truncated_law():
    x = torch.zeros(4000, 1)
    x, _ = run_chains(mala(0.5, box=(-1.0, 1.0)), x, quadratic(1.0), 150, generator(2, "box"))
    assert x.abs().max() <= 1
    assert stats.kstest(x.squeeze(1).numpy(), stats.truncnorm(-1, 1).cdf).pvalue > 1e-3


def test_mala_never_takes_a_proposal_whose_energy_is_not_a_number():
    def broken_beyond_one(x):
        energy, grad = quadratic(1.0)(x)
        return torch.where(x.flatten(1).abs().amax(dim=1) > 1, torch.nan, energy), grad

    x, _ = run_chains(mala(0.5), torch.zeros(500, 1), broken_beyond_one, 50, generator(3, "nan"))
    assert x.abs().max() <= 1


def test_mala_state_keeps_energy_and_gradient_of_its_point():
    sampler, target = mala(0.7), quadratic(2.0)
    state = sampler.init(torch.ones(50, 2), target)
    rng = generator(4, "state")
    for _ in range(5):
        state, _ = sampler.step(state, target, rng)
        energy, grad = target(state.x)
        assert torch.equal(state.energy, energy)
        assert torch.equal(state.grad, grad)


def test_langevin_step_against_its_formula():
    x = torch.randn(4, 3, 2, 2)
    noise = torch.randn(x.shape, generator=generator(5, "noise"))
    moved, info = run_chains(langevin(0.2, 0.3), x, quadratic(1.5), 1, generator(5, "noise"))
    assert torch.allclose(moved, x - 0.2 * 1.5 * x + 0.3 * noise)
    assert torch.allclose(info.energy[0], 1.5 * x.square().flatten(1).sum(dim=1) / 2)
    assert torch.allclose(info.grad_norm[0], (1.5 * x).flatten(1).norm(dim=1))
    assert info.clipped.sum() == 0


def test_clipped_step_against_its_formula():
    x = torch.tensor([[0.5, -0.2, 0.9, -0.95]])
    gradient = torch.tensor([[3.0, -0.1, -5.0, 0.4]])
    moved, info = run_chains(clipped(0.5, clip=1.0), x, lambda x: (x.sum(dim=1), gradient), 1, generator(0, "unused"))
    # x - 0.5 * clip(g): 0.5 - 0.5, -0.2 + 0.05, 0.9 + 0.5 -> 1, -0.95 - 0.2 -> -1
    assert torch.allclose(moved, torch.tensor([[0.0, -0.15, 1.0, -1.0]]))
    assert info.clipped.item() == pytest.approx(0.5)
    assert info.grad_norm.item() == pytest.approx(gradient.norm().item())


def test_clipped_step_can_carry_noise_and_stays_in_the_box():
    x, _ = run_chains(clipped(1.0, noise=0.5), torch.zeros(100, 5), quadratic(1e6), 20, generator(0, "noise"))
    assert x.abs().max() <= 1
    assert x.std() > 0.1


def constant(gradient):
    """An energy with this gradient everywhere."""

    def energy_grad(x):
        return (gradient * x).flatten(1).sum(dim=1), gradient

    return energy_grad


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_normalized_step_has_its_length_however_steep_the_energy(scale):
    x = torch.randn(6, 3, 2, 2, generator=generator(6, "x"))
    gradient = scale * torch.randn(x.shape, generator=generator(6, "gradient"))
    moved, info = run_chains(normalized(0.25, box=None), x, constant(gradient), 1, generator(0, "unused"))
    step, gradient = (moved - x).flatten(1), gradient.flatten(1).double()
    assert step.norm(dim=1).tolist() == pytest.approx([0.25] * 6, rel=1e-5)
    assert torch.allclose(step.double(), -0.25 * gradient / gradient.norm(dim=1, keepdim=True), atol=1e-6)
    assert info.clipped.sum() == 0


def test_normalized_chain_without_a_gradient_stays_and_the_others_move():
    x = torch.full((2, 3), 0.5)
    gradient = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
    moved, info = run_chains(normalized(0.1), x, constant(gradient), 1, generator(0, "unused"))
    assert torch.equal(moved[0], x[0])
    assert moved[1].tolist() == pytest.approx([0.5, 0.44, 0.42])
    assert info.grad_norm[0].tolist() == [0.0, 5.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_normalized_step_shows_a_gradient_that_is_not_finite(bad):
    gradient = torch.tensor([[bad, 1.0], [3.0, 4.0]])
    moved, _ = run_chains(normalized(0.5), torch.zeros(2, 2), constant(gradient), 1, generator(0, "unused"))
    assert moved[0].isnan().all()
    assert moved[1].tolist() == pytest.approx([-0.3, -0.4])


def test_normalized_chains_walk_down_a_quadratic_at_constant_speed():
    x = 5 * torch.nn.functional.normalize(torch.randn(10, 4, generator=generator(7, "x")))
    sampler = normalized(0.5, box=None)
    distances = [run_chains(sampler, x, quadratic(3.0), n, generator(0, "unused"))[0].norm(dim=1) for n in (1, 4, 9)]
    expected = torch.tensor([4.5, 3.0, 0.5])[:, None].expand(3, 10)
    assert torch.allclose(torch.stack(distances), expected, atol=1e-5)


def test_normalized_step_can_carry_noise_and_stays_in_the_box():
    x = torch.tensor([[0.9, -0.9, 0.0]])
    noise = torch.randn(x.shape, generator=generator(8, "noise"))
    gradient = torch.tensor([[-2.0, 1.0, 2.0]])
    step = normalized(0.6, noise=0.01)
    moved, _ = run_chains(step, x, constant(gradient), 1, generator(8, "noise"))
    # 0.6 g / ||g|| = (-0.4, 0.2, 0.4): the first two leave the box.
    assert torch.allclose(moved, torch.tensor([[1.0, -1.0, -0.4 + 0.01 * float(noise[0, 2])]]))


def test_chains_do_not_touch_their_starting_point():
    x = torch.ones(2, 2)
    run_chains(langevin(0.1, 0.1), x, quadratic(1.0), 3, generator(0, "x"))
    assert torch.equal(x, torch.ones(2, 2))


def test_same_stream_same_chain():
    def end(position):
        return run_chains(langevin(0.1, 0.1), torch.zeros(3, 2), quadratic(1.0), 4, generator(0, position))[0]

    assert torch.equal(end("a"), end("a"))
    assert not torch.equal(end("a"), end("b"))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: langevin(0.0, 0.1), "step_size"),
        (lambda: langevin(1.0, -0.1), "noise"),
        (lambda: clipped(1.0, clip=0.0), "clip"),
        (lambda: clipped(-1.0), "step_size"),
        (lambda: normalized(0.0), "step_size"),
        (lambda: normalized(1.0, noise=-0.1), "noise"),
        (lambda: mala(1.0, temperature=0.0), "temperature"),
        (lambda: langevin(math.nan, 0.1), "step_size"),
    ],
)
def test_impossible_settings_are_named(make, name):
    with pytest.raises(ConfigError, match=name):
        make()


def test_no_steps_is_an_error():
    with pytest.raises(ConfigError, match="at least one step"):
        run_chains(langevin(0.1, 0.1), torch.zeros(1, 1), quadratic(1.0), 0, generator(0, "x"))
